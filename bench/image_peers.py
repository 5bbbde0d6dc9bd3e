"""What bench/decode.py and bench/pipeline.py share: photographs, and other people's ways to decode and load them.

A peer that is not installed is left out, and `left_out` says so. None of them is a dependency of the project beyond
torch, torchvision and Pillow: `pip install simplejpeg opencv-python-headless` brings the others, but for the crate
zune-jpeg, which an example in rust/ makes a module of (where cargo is there to build it).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import importlib.util
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from varalign.data.images import Preprocess

PACKAGES = ["numpy", "pillow", "torch", "torchvision", "opencv-python-headless", "simplejpeg"]
ROOT = Path(__file__).parents[1]
Load = Callable[[bytes], Any]
"""Bytes to float32 (3, S, S), a tensor or an array."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both scripts."""
    parser.add_argument("--data", type=Path, help="folder of JPEG files, or one with flickr8k_originals/Images in it")
    parser.add_argument("--count", type=int, default=100, help="files (default: 100)")


def photographs(options: argparse.Namespace) -> list[bytes]:
    """Files of `--data`, else pictures made here, of the same size."""
    folder: Path | None = options.data
    if folder is None:
        return made(500, 375, options.count)
    nested = folder / "flickr8k_originals" / "Images"
    files = sorted(path for path in (nested if nested.is_dir() else folder).iterdir() if path.suffix == ".jpg")
    return [path.read_bytes() for path in files[: options.count]]


def made(width: int, height: int, count: int) -> list[bytes]:
    """Pictures with about the spectrum of photographs (blurred noise at several scales), half 4:4:4 and half 4:2:0."""
    files = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        picture = np.zeros((height, width, 3), np.float32)
        for scale in (2, 4, 16, 64, 128):
            noise = rng.normal(0, 10 * scale**0.3, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
            layers = [Image.fromarray(noise[..., c]).resize((width, height)) for c in range(3)]
            picture += np.stack([np.asarray(layer) for layer in layers], -1)
        out = io.BytesIO()
        levels = np.clip(picture + 128, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(out, "JPEG", quality=90, subsampling=2 * (seed % 2))
        files.append(out.getvalue())
    return files


def have(module: str, name: str) -> bool:
    """Whether a peer can be imported; says so on standard error where not."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(f"left out: {name} ({error})", file=sys.stderr)
        return False
    return True


def decoders() -> Iterator[tuple[str, Load]]:
    """Bytes to uint8 (H, W, 3)."""
    yield "Pillow", lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if have("torchvision", "torchvision.io"):
        import torch
        from torchvision.io import decode_jpeg

        torch.set_num_threads(1)
        yield "torchvision.io", lambda data: decode_jpeg(as_tensor(data)).permute(1, 2, 0).numpy()
    if have("cv2", "OpenCV"):
        import cv2

        cv2.setNumThreads(1)
        yield "OpenCV", lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    if have("simplejpeg", "simplejpeg"):
        import simplejpeg

        yield "simplejpeg (libjpeg-turbo)", simplejpeg.decode_jpeg
    try:
        yield "zune-jpeg 0.5 (Rust)", zune_jpeg()
    except (OSError, ImportError, subprocess.CalledProcessError) as error:
        print(f"left out: zune-jpeg ({error})", file=sys.stderr)


def zune_jpeg() -> Load:
    """The crate, by rust/examples/zune_peer.rs; raises OSError or CalledProcessError where it cannot be built."""
    cargo = shutil.which("cargo")
    if cargo is None:
        raise OSError("cargo is not on the path; install Rust (https://rustup.rs)")
    command = [cargo, "build", "--release", "--quiet", "--features", "extension-module", "--example", "zune_peer"]
    subprocess.run(command, cwd=ROOT, check=True)
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    library = ROOT / "target" / "release" / "examples" / f"libzune_peer{suffix}"
    loader = importlib.machinery.ExtensionFileLoader("zune_peer", str(library))
    spec = importlib.util.spec_from_file_location("zune_peer", library, loader=loader)
    if spec is None:
        raise OSError(f"{library} is no module")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    decode: Load = module.decode
    return decode


def as_tensor(data: bytes) -> Any:
    """Bytes as torch wants them, without a warning about their being read-only."""
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def pillow_steps(preprocess: Preprocess, first: Sequence[Any] | None = None) -> Any:
    """torchvision's transforms on Pillow: CLIP's own, or with `first` in place of resizing and cropping."""
    from torchvision import transforms

    whole = [
        transforms.Resize(preprocess.size, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(preprocess.size),
    ]
    last = [transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)]
    return transforms.Compose([*(whole if first is None else first), *last])


def tensor_steps(preprocess: Preprocess, first: Sequence[Any] | None = None) -> Any:
    """The same by torchvision's v2 transforms, on a uint8 tensor (3, H, W)."""
    import torch
    from torchvision.transforms import InterpolationMode, v2

    whole = [
        v2.Resize(preprocess.size, InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(preprocess.size),
    ]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(preprocess.mean), list(preprocess.std))]
    return v2.Compose([*(whole if first is None else first), *last])


def loaders(preprocess: Preprocess) -> Iterator[tuple[str, Load, str]]:
    """Name, bytes to a normalised (3, S, S), and why it differs where it is known to."""
    if not have("torchvision", "torchvision"):
        return
    import torch
    from torchvision.io import decode_jpeg

    torch.set_num_threads(1)
    pillow, tensor = pillow_steps(preprocess), tensor_steps(preprocess)
    yield "torchvision on Pillow", lambda data: pillow(Image.open(io.BytesIO(data)).convert("RGB")), ""
    yield "torchvision.io + v2", lambda data: tensor(decode_jpeg(as_tensor(data))), ""
    if have("simplejpeg", "simplejpeg + v2"):
        import simplejpeg

        yield (
            "simplejpeg + v2 (antialiased)",
            lambda data: tensor(torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)),
            "",
        )
    if have("cv2", "OpenCV"):
        yield "OpenCV", lambda data: by_opencv(data, preprocess, 1), "bicubic without antialiasing"


def reduced_loaders(preprocess: Preprocess) -> Iterator[tuple[str, Load, str]]:
    """The same by a scaled inverse DCT, at the smallest size that still has a pixel for each one of the result."""
    if not have("torchvision", "torchvision"):
        return
    import torch

    torch.set_num_threads(1)
    size, pillow, tensor = preprocess.size, pillow_steps(preprocess), tensor_steps(preprocess)

    def draft(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (size, size))
        return pillow(image.convert("RGB"))

    yield "Pillow draft + torchvision", draft, ""
    if have("simplejpeg", "simplejpeg reduced + v2"):
        import simplejpeg

        yield (
            "simplejpeg reduced + v2 (antialiased)",
            lambda data: tensor(
                torch.from_numpy(simplejpeg.decode_jpeg(data, min_height=size, min_width=size, min_factor=1)).permute(
                    2, 0, 1
                )
            ),
            "",
        )
    if have("cv2", "OpenCV"):

        def reduced(data: bytes) -> Any:
            side = min(Image.open(io.BytesIO(data)).size)
            factor = max(factor for factor in (1, 2, 4, 8) if side >= factor * size)
            return by_opencv(data, preprocess, factor)

        yield "OpenCV reduced", reduced, "bicubic without antialiasing"


def by_opencv(data: bytes, preprocess: Preprocess, factor: int) -> Any:
    """Decoded at 1/`factor`, resized and cropped by OpenCV."""
    import cv2

    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    cv2.setNumThreads(1)
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flags[factor]), cv2.COLOR_BGR2RGB)
    height, width, size = *image.shape[:2], preprocess.size
    wide, high = max(size, size * width // height), max(size, size * height // width)
    image = cv2.resize(image, (wide, high), interpolation=cv2.INTER_CUBIC)
    top, left = round((high - size) / 2), round((wide - size) / 2)
    levels = image[top : top + size, left : left + size].astype(np.float32) / 255
    return ((levels - np.float32(preprocess.mean)) / np.float32(preprocess.std)).transpose(2, 0, 1)
