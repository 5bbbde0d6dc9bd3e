"""The command lines of the paper's scripts, with only the program's name exchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a small `data/flickr8k`: 4 training images, 2 of dev and 26 of test, 32 pixels wide."""
    folder = tmp_path / "data" / "flickr8k"
    (folder / "Images").mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(32)]
    lines = ["image,caption"]
    for name in names:
        colour = random.integers(0, 256, 3)
        Image.new("RGB", (32, 32), tuple(int(part) for part in colour)).save(folder / "Images" / name)
        lines += [f"{name},a picture of colour {' '.join(map(str, colour // 64))}"]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    for split, part in (("train", names[:4]), ("dev", names[4:6]), ("test", names[6:])):
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part) + "\n")
    return tmp_path


def varalign(workplace: Path, command: str, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a place without any hub: what stood after the script's name stands after the command's."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(workplace / "hub"),
        "XDG_CACHE_HOME": str(workplace / "cache"),
        "HOME": str(workplace),
    }
    words = [sys.executable, "-m", "varalign", command, *line.split()[2:]]
    return subprocess.run(words, cwd=workplace, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_custom_encoders_then_pictures(workplace: Path) -> None:
    trained = varalign(workplace, "train", "python main.py --use_pretrained False")
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "resnet18 + lstm" in trained.stdout and "chance" in trained.stdout
    (run,) = (workplace / "runs").iterdir()
    evaluations = [
        line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line["kind"] == "eval"
    ]
    assert [line["epoch"] for line in evaluations] == list(range(31))

    drawn = varalign(workplace, "visualize", "python visualize.py --perplexities 5 10 30 50")
    assert drawn.returncode == 0, drawn.stderr[-3000:]
    assert run.name in drawn.stderr
    assert {f"tsne_perplexity_{p}.png" for p in (5, 10, 30, 50)} <= {path.name for path in (run / "pictures").iterdir()}


def test_pretrained_encoders_without_a_hub_say_what_to_download(workplace: Path) -> None:
    trained = varalign(workplace, "train", "python main.py --use_pretrained True")
    assert trained.returncode == 2 and "Traceback" not in trained.stderr
    assert "varalign: error:" in trained.stderr and "--image-encoder" in trained.stderr
    assert "--text-encoder" in trained.stderr and "\\n" not in trained.stderr
