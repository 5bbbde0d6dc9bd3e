"""Image decoding and loading on one thread, against Pillow, torchvision and (where installed) OpenCV and simplejpeg.

Photographs: --images FOLDER of JPEG files, else some that are made here (500 x 375, 4:2:0 and 4:4:4, quality 90).
Decoding gives RGB of the whole picture; loading gives normalised float32 [B, 3, 224, 224] as CLIP wants it. What agrees
is within one level of Pillow on average (decoding) or of one level's worth (loading); ours is equal to the bit.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contender, Row, compare, main
from PIL import Image
from varalign.data.images import Preprocess, decode_image, load_images

PACKAGES = ["numpy", "pillow", "torch", "torchvision", "opencv-python-headless", "simplejpeg"]


def photographs(folder: Path | None, count: int) -> list[bytes]:
    """Files of the folder, or pictures with the statistics of photographs (blurred noise at several scales)."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.iterdir())[:count]]
    made = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        picture = np.zeros((375, 500, 3))
        for scale in (4, 16, 64, 128):
            noise = rng.normal(0, 12 * scale**0.3, (375 // scale + 2, 500 // scale + 2, 3))
            layers = [Image.fromarray(noise[..., c].astype(np.float32)).resize((500, 375)) for c in range(3)]
            picture += np.stack([np.asarray(layer) for layer in layers], -1)
        out = io.BytesIO()
        levels = np.clip(picture + 128, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(out, "JPEG", quality=90, subsampling=2 * (seed % 2))
        made.append(out.getvalue())
    return made


def decoders() -> Iterable[tuple[str, Callable[[bytes], Any]]]:
    """The peers that are installed, each bytes to uint8 (H, W, 3)."""
    yield "Pillow", lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if importlib.util.find_spec("torchvision"):
        import torch
        from torchvision.io import decode_jpeg

        torch.set_num_threads(1)
        yield (
            "torchvision.io",
            lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy(),
        )
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        yield "OpenCV", lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        yield "simplejpeg", simplejpeg.decode_jpeg


def torchvision_loader(preprocess: Preprocess) -> Callable[[Sequence[bytes]], Any] | None:
    """CLIP's own preprocessing: torchvision's transforms on Pillow."""
    if not importlib.util.find_spec("torchvision"):
        return None
    import torch
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(preprocess.size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(preprocess.size),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    return lambda files: torch.stack([steps(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]).numpy()


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    """Decoding, then loading."""
    import tempfile

    files = photographs(options.images, options.count)

    def close(ours: list[Any], theirs: list[Any]) -> bool:
        pairs = zip(ours, theirs, strict=True)
        return all(np.abs(a.astype(np.int16) - b).mean() < 1 for a, b in pairs)

    contenders = [Contender("varalign", lambda: [decode_image(data) for data in files], ours=True)]
    for name, decode in decoders():
        contenders.append(Contender(name, lambda decode=decode: [decode(data) for data in files]))
    yield compare(
        f"decode {len(files)} JPEG files to RGB, one thread",
        contenders,
        work=len(files),
        unit="images/s",
        agree=close,
        rounds=options.rounds,
        packages=PACKAGES,
    )

    preprocess = Preprocess()
    level = 1 / 255 / min(preprocess.std)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        loaders = [Contender("varalign", lambda: load_images(paths, preprocess, threads=1)[0], ours=True)]
        if (peer := torchvision_loader(preprocess)) is not None:
            loaders.append(Contender("torchvision on Pillow", lambda: peer([path.read_bytes() for path in paths])))
        yield compare(
            f"load {len(files)} JPEG files to float32 [B, 3, 224, 224], one thread",
            loaders,
            work=len(files),
            unit="images/s",
            agree=lambda ours, theirs: bool(np.abs(ours - theirs).mean() < level),
            rounds=options.rounds,
            packages=PACKAGES,
        )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: made here)")
    parser.add_argument("--count", type=int, default=40, help="files (default: 40)")


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
