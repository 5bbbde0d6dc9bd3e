"""Captions as pandas and the library `datasets` read them: the same pairs, on files made to be awkward."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from varalign.data.datasets import load_dataset
from varalign.data.readers.captions import read_captions
from varalign.data.readers.reading import Reading

PIECES = [
    *('"', '""', "'", ",", ", ", ";", "\t", "|", "\n", "\r\n", "\n\n", " ", "  ", "\\", "\\n", "#0", "a.jpg", "["),
    *("A dog", "run, run", 'a "sign"', "café", "狗 在 跑", "🐕", "e\u0301", "\u2028", "\x85", "\xa0", "http", "train"),
]


def awkward(draw: random.Random) -> str:
    """A caption of odd pieces that is not empty and does not look like the next row."""
    while True:
        text = "".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 9)))
        if plain(text) and not re.search(r"jpg\s*[,;|\t]", text) and not plain(text).startswith('["'):
            return text


def plain(caption: str) -> str:
    """What varalign makes of line ends within a caption, and of spaces around it."""
    return re.sub(r"\r\n|\r|\n", " ", caption).strip()


def rows(draw: random.Random, count: int = 60) -> list[tuple[str, str]]:
    stems = ["a", "é", "狗", "b c", "x,y", "q'q", "z;z"]
    return [(f"{draw.choice(stems)}{draw.randrange(20)}.jpg", awkward(draw)) for _ in range(count)]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("seed", range(6))
def test_delimited_text_as_pandas_reads_it(tmp_path: Path, separator: str, seed: int) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install '.[dev]'")
    draw = random.Random(seed)
    frame = pandas.DataFrame(rows(draw), columns=["image", "caption"])
    frame["note"] = [str(k) for k in range(len(frame))]
    path = tmp_path / "captions.csv"
    encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16"])
    how = {"sep": separator, "encoding": encoding, "lineterminator": draw.choice(["\n", "\r\n"])}
    frame.to_csv(path, index=draw.random() < 0.5, quoting=draw.choice([0, 1]), **how)
    theirs = pandas.read_csv(path, sep=separator, encoding=encoding, dtype=str, keep_default_na=False)
    found = read_captions(path)
    assert found.image_names == theirs["image"].tolist()
    assert found.captions == [plain(caption) for caption in theirs["caption"]]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_folders_as_the_library_datasets_reads_them(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")
    import pandas

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    draw, number = random.Random(form), 0
    folder = tmp_path / "data"
    for split in ("train", "validation", "test"):
        (folder / split / "sub").mkdir(parents=True)
        names = [f"{'sub/' * (k % 2)}{'é狗'[k % 2]}{k}.png" for k in range(8)]
        for name in names:
            number += 1
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / split / name)
        texts = [awkward(draw) for _ in names]
        if form == "jsonl":
            lines = [json.dumps({"file_name": n, "text": t}) for n, t in zip(names, texts, strict=True)]
            (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        else:
            frame = pandas.DataFrame({"file_name": names, "text": texts})
            if form == "csv":
                frame.to_csv(folder / split / "metadata.csv", index=False)
            else:
                frame.to_parquet(folder / split / "metadata.parquet")
    theirs = set()
    parts = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
    for code, split in enumerate(("train", "validation", "test")):
        assert len(parts[split]) == 8
        theirs |= {(code, row["image"].getpixel((0, 0))[0], " ".join(row["text"].split())) for row in parts[split]}
    ours = load_dataset(folder, reading=Reading(cache=str(tmp_path / "unpacked")))
    pixels = [Image.open(path).getpixel((0, 0))[0] for path in ours.image_paths]
    assert {
        (int(ours.split[row]), pixels[row], " ".join(caption.split()))
        for row, caption in zip(ours.caption_image_ids.tolist(), ours.captions, strict=True)
    } == theirs
