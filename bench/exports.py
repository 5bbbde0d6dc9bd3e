"""Exports beside the libraries that read them: how far their vectors are from ours, what they weigh, what is refused.

Small towers and 80 made pictures: the differences come from the formats, not from what was learnt.

    python bench/exports.py --out bench/results/exports.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Row, main, single

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
RUNS: dict[str, dict[str, Any]] = {
    "linear heads": {"text": "clip", "head": "linear", "voices": "none", "epochs": 2},
    "closed form": {"text": "clip", "voices": "closed-form"},
    "closed form, hub correction": {"text": "clip", "voices": "closed-form", "hub_correction": "train"},
    "ensemble": {"voices": "closed-form,members", "members": 2, "epochs": 2},
    "kernel voices, hub correction": {"voices": "kernel,lexical", "hub_correction": "train"},
    "all voices, hub correction": {"voices": "auto", "members": 2, "epochs": 2, "hub_correction": "train"},
    "ResNet-18 and LSTM": {"text": "", "epochs": 1},
}
"""Options of each run; `text` names the text encoder, with CLIP for images, and is empty for the default encoders."""
PACKAGES = ("torch", "sentence-transformers", "open_clip_torch", "onnx", "onnxruntime", "huggingface_hub")


def write_data(folder: Path) -> None:
    """80 pictures with two captions each."""
    from varalign.data.sample import write_sample

    write_sample(folder, images=80, size=32)


def train(options: dict[str, Any], folder: Path, name: str) -> Any:
    """The trained model of a run."""
    import varalign
    from checkpoints import write_bert, write_clip

    given = {"voices": "closed-form", "hub_correction": "off", "embedding_dim": 8, **options}
    text = given.pop("text", "bert")
    if not (folder / "clip").exists():
        write_clip(folder / "clip")
        (folder / "bert").mkdir()
        write_bert(folder / "bert")
        write_data(folder / "data")
    if text:
        given["image_encoder"] = f"clip:ViT-tiny@{folder / 'clip'}"
        given["text_encoder"] = given["image_encoder"] if text == "clip" else f"bert:{folder / 'bert'}"
    else:
        del given["voices"]
        given["image_size"] = 32
    given |= {"data": str(folder / "data"), "out": str(folder / name), "cache": str(folder / "cache")}
    varalign.train(varalign.TrainConfig(**given, batch_size=16, device="cpu", threads=1), say=lambda _: None)
    return varalign.load(folder / name, device="cpu")


def subjects(options: argparse.Namespace) -> Iterator[list[Row]]:
    """A group of rows a run: the largest difference of each format, or why it is refused."""
    from varalign.aligner.exports import TARGETS
    from varalign.data.errors import DataError

    with tempfile.TemporaryDirectory() as place:
        for name, given in ((name, RUNS[name]) for name in options.run or RUNS):
            model = train(given, Path(place), name)
            rows = []
            for target in TARGETS:
                try:
                    made = model.export(Path(place) / f"{name} {target}", to=target)
                except DataError as refused:
                    said = str(refused).replace(place, "…").partition("train with")
                    rows.append(single(name, target, 0.0, "refused", note=said[1] + said[2] or said[0]))
                    continue
                far = max(made["differences"].values())
                note = f"{made['bytes'] / 1e6:.1f} MB"
                note += "; trust_remote_code" if "trust_remote" in "".join(made["notes"]) else ""
                about = {"agrees": far < 1e-4, "note": note, "packages": PACKAGES}
                rows.append(single(name, target, far, "largest difference", **about))
            yield rows


if __name__ == "__main__":
    choice = {"action": "append", "choices": tuple(RUNS), "help": "one run of the table; may stand several times"}
    main(__doc__, subjects, lambda parser: parser.add_argument("--run", **choice))
