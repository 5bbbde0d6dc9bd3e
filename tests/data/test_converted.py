"""Data sets written as Parquet and as image folders: read back by us and by the library `datasets`, the same pairs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from varalign.cli import main
from varalign.data.converted import MARK, convert_dataset
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.errors import DataError
from varalign.data.readers.reading import Reading

pytest.importorskip("pyarrow")
CODES = {"train": 0, "validation": 1, "test": 2}


def content(data: ImageCaptions) -> dict[str, tuple[list[str], int]]:
    """Digest of each image's file to its captions and split."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest(): (
            [data.captions[caption] for caption in data.caption_rows([row])],
            int(data.split[row]),
        )
        for row, path in enumerate(data.image_paths)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images, some in folders, with one to three captions, in and out of splits; texts that break files."""
    texts = ['a "quoted", comma', "Zeilenende é 狗", "=HYPERLINK(1)", " spaces ", "plain"]
    rows = []
    for number in range(9):
        name = f"deep/{number}.png" if number % 3 == 0 else f"{number}.jpg"
        place = tmp_path / "data" / "Images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), 25 * number, np.uint8)).save(place)
        rows += [{"image": name, "caption": f"{texts[(number + n) % 5]} {number}"} for n in range(number % 3 + 1)]
        split = ["train", "train", "train", "train", "dev", "test", "test", "train", ""][number]
        for row in rows[-(number % 3 + 1) :]:
            row["split"] = split
    (tmp_path / "data" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


@pytest.mark.parametrize("form", ["parquet", "imagefolder"])
def test_reading_it_back_gives_the_same_pairs_and_splits(folder: Path, tmp_path: Path, form: str) -> None:
    reading = Reading(cache=str(tmp_path / "cache"))
    before = content(load_dataset(folder))
    assert len(before) == 9 and {split for _, split in before.values()} == {0, 1, 2, -1}
    place = tmp_path / "new" / "all.parquet" if form == "parquet" else tmp_path / "new"
    assert main(["data", "convert", str(folder), "--to", form, "--out", str(place)]) == 0
    after = content(load_dataset(tmp_path / "new", reading=reading))
    if form == "imagefolder":
        before = {digest: one for digest, one in before.items() if one[1] >= 0}
    assert after == before


def test_the_library_datasets_reads_both(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = load_dataset(folder)
    convert_dataset(data, "parquet", tmp_path / "all.parquet")
    convert_dataset(data, "imagefolder", tmp_path / "folder")
    wanted = content(data)
    cache = str(tmp_path / "hf")
    table = datasets.load_dataset("parquet", data_files=str(tmp_path / "all.parquet"), cache_dir=cache)["train"]
    assert table.features["image"] == datasets.Image()
    for row in table.cast_column("image", datasets.Image(decode=False)):
        captions, split = wanted[hashlib.sha256(row["image"]["bytes"]).hexdigest()]
        assert row["caption"] == captions and CODES.get(row["split"], -1) == split
    assert np.asarray(table[0]["image"]).shape == (20, 24, 3)
    seen = 0
    folder_form = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), cache_dir=cache)
    for name, part in folder_form.items():
        for row in part.cast_column("image", datasets.Image(decode=False)):
            found = Path(row["image"]["path"]).read_bytes()
            assert wanted[hashlib.sha256(found).hexdigest()] == (row["caption"], CODES[name])
            seen += 1
    assert seen == 8


def test_one_caption_each_is_a_text_and_no_list(image_folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    data = load_dataset(image_folder)
    captions = [data.captions[row] for row in data.first_captions(np.arange(80))]
    one = dataclasses.replace(data, captions=captions, caption_image_ids=np.arange(80))
    convert_dataset(one, "parquet", tmp_path / "a.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet")["caption"].to_pylist() == captions


def test_what_is_there_is_replaced_only_where_it_was_written_here(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "convert", str(folder), "--out", str(tmp_path / "new"), "--to"]
    assert main([*command, "imagefolder"]) == 0
    (tmp_path / "new" / "stale").write_text("x")
    assert main([*command, "imagefolder"]) == 0, "ours"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {MARK, "train", "validation", "test"}
    assert main([*command, "parquet"]) == 2
    assert main(["data", "convert", str(folder), "--to", "imagefolder", "--out", str(folder), "--overwrite"]) == 2
    assert "holds what this command did not write" in capsys.readouterr().err
    file = tmp_path / "a.parquet"
    file.write_bytes(b"mine")
    assert main(["data", "convert", str(folder), "--to", "parquet", "--out", str(file)]) == 2
    assert file.read_bytes() == b"mine"
    assert main(["data", "convert", str(folder), "--to", "parquet", "--out", str(file), "--overwrite"]) == 0
    assert file.read_bytes()[:4] == b"PAR1"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("form", ["parquet", "imagefolder"])
def test_nothing_is_left_of_what_fails(folder: Path, tmp_path: Path, form: str) -> None:
    data = load_dataset(folder)
    data.image_paths[5].unlink()
    with pytest.raises(DataError, match="cannot be read"):
        convert_dataset(data, form, tmp_path / "out")
    assert os.listdir(tmp_path) == ["data"]
