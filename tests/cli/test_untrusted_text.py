"""Captions and names with escape codes, through the commands that print them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from varalign.cli import main

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"


def test_no_control_character_reaches_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    (folder / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(40):
        name = f"{number}\x1b[31m.jpg"
        Image.new("RGB", (24, 24), (6 * number, 40, 90)).save(folder / "Images" / name, "JPEG")
        lines += [f"{name},a dog {ESCAPES} number {number}", f"{name},the same dog"]
    (folder / "Images" / "broken\x1b[31m.jpg").write_bytes(b"no image")
    lines.append("broken\x1b[31m.jpg,nothing\x1b[31m")
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    run = str(tmp_path / "run")
    options = "--image-size 32 --embedding-dim 8 --epochs 1 --batch-size 8 --threads 1 --device cpu --max-bad 0.5"
    said = ""
    for words in (
        ["data", "check", str(folder)],
        ["data", "stats", str(folder)],
        ["train", "--data", str(folder), *options.split(), "--out", run],
        ["search", run, "dog", "--device", "cpu"],
        ["search", run, "--image", str(folder / "Images" / "3\x1b[31m.jpg"), "--device", "cpu"],
        ["eval", run, "--data", str(tmp_path / "no\x1b[31mwhere")],
        ["eval", f"no{ESCAPES}run"],
    ):
        main(words)
        output = capsys.readouterr()
        said += output.out + output.err
    assert r"\x1b[2J\x1b]0;title\x07\x9b31m\u202e" in said and r"\x1b[31m.jpg" in said
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said)
