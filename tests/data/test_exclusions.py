"""Which pairs a table of struck pairs takes out of training."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from varalign.aligner.diagnosis.diagnosis import Settings, diagnose
from varalign.data.errors import DataError
from varalign.data.exclusions import excluded_rows, without_excluded
from varalign.data.features import FeatureSet
from varalign.options.config import TrainConfig
from varalign.runs.folder import RunFolder

NAMES = ["a.jpg", "b.jpg", "=c.jpg", "d.jpg"]
TEXTS = ["A dog.", "a dog", "A cat", "+ sign", "a, b", "A dog", "last"]


@pytest.fixture
def data() -> FeatureSet:
    """Four images, the last in dev; image 0 has three captions, two of which are equal."""
    owner = np.array([0, 0, 0, 1, 2, 1, 3])
    x, y = np.eye(4, dtype=np.float32), np.eye(7, dtype=np.float32)
    return FeatureSet(x, y, owner, np.array([0, 0, 0, 1], np.int8), np.arange(4), list(NAMES), texts=list(TEXTS))


def written(folder: Path, text: str) -> Path:
    path = folder / "struck.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("image,caption\na.jpg,A DOG .\n", [0, 1]),  # as equal captions are: both
        ("image,caption\r\nb.jpg,a dog\r\n\r\n", [5]),
        ("caption;file_name\n'+ sign;B.JPG\na, b;'=c.jpg\n", [3, 4]),  # an apostrophe as `csv_table` writes it
        ("image,caption_row,caption\nb.jpg,,A dog\na.jpg,2,\n", [2, 5]),
        (
            'image,caption,exclude\na.jpg,A dog,\nb.jpg,"+ sign",x\n=c.jpg,"a, b",No\nd.jpg,last,0\na.jpg,A cat,1\n',
            [2, 3],
        ),
        ("caption_row,image_row,image,weight,caption\n6,3,d.jpg,0.1,last\n", [6]),
    ],
)
def test_lines_name_pairs(data: FeatureSet, text: str, rows: list[int], tmp_path: Path) -> None:
    assert np.flatnonzero(excluded_rows(data, written(tmp_path, text))).tolist() == rows


@pytest.mark.parametrize("names", [None, NAMES])
def test_without_texts_the_row_says_it(data: FeatureSet, names: list[str] | None, tmp_path: Path) -> None:
    bare = dataclasses.replace(data, texts=None, image_names=names)
    file = written(tmp_path, f"image,caption_row,caption\n{'1' if names is None else 'b.jpg'},5,whatever\n")
    assert np.flatnonzero(excluded_rows(bare, file)).tolist() == [5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("image,caption\n", "a header and no pair"),
        ("image,caption,exclude\na.jpg,A dog,\n", "no line is marked in the column exclude; write x there"),
        ("name,words\na.jpg,A dog\n", "the columns are 'name', 'words'; wanted those of the image and of its caption"),
        ("image,caption\na.jpg,A dog\nz.jpg,A dog\n", "line 3: the data have no image 'z.jpg'; name pairs as"),
        ("image,caption\nb.jpg,A cat\n", "line 2: image 'b.jpg' has no caption 'A cat'; name pairs as"),
        ("image,caption,caption_row\nb.jpg,,0\n", "line 2: caption row '0' is not of image 'b.jpg'"),
        ("image,caption,caption_row\nb.jpg,,\n", "line 2: caption is empty"),
        ("image,caption\n=c.jpg,a, b\n", "line 2: 3 columns where the header has 2"),
        ("image,caption_row\na.jpg,0\na.jpg,1\na.jpg,2\nb.jpg,3\n=c.jpg,4\nb.jpg,5\n", "names every training pair"),
    ],
)
def test_what_names_no_pair_is_refused(data: FeatureSet, text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        without_excluded(data, written(tmp_path, text))
    assert words in str(caught.value) and str(caught.value).startswith("--exclude ")


def test_pairs_leave_training_and_bare_images_with_them(data: FeatureSet, tmp_path: Path) -> None:
    file = written(tmp_path, 'image,caption\na.jpg,A dog\n=c.jpg,"a, b"\nd.jpg,last\n')
    left, line = without_excluded(data, file)
    assert line == (
        "--exclude struck.csv: 3 pairs left out of training, and with them 1 images that have no other; 1 named pairs "
        "are not in the training split and stay"
    )
    assert left.texts == ["A cat", "+ sign", "A dog", "last"] and left.text_image_ids.tolist() == [0, 1, 1, 3]
    assert left.split.tolist() == [0, 0, -1, 1] and data.split.tolist() == [0, 0, 0, 1]
    assert np.array_equal(left.text_features, data.text_features[[2, 3, 5, 6]])


def test_a_run_leaves_out_what_a_person_marked(features_file: Path, tmp_path: Path) -> None:
    """Diagnosed with injected noise, marked, trained without; resumed, evaluated and diagnosed as it was trained."""
    noise: dict[str, Any] = {"features": str(features_file), "noise": "swap-images=0.3", "device": "cpu"}
    noise |= {"epochs": 2, "batch_size": 16, "hidden_dim": 16}
    first = varalign.train(TrainConfig(**noise, out=str(tmp_path / "first")), say=lambda _: None, progress=False)
    found = diagnose(Settings(run=first.run), say=lambda _: None)
    with open(found.csv, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["exclude"] for row in rows} == {""}
    marked = tmp_path / "marked.csv"
    with open(marked, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "exclude": "x" if row["injected"] == "1" else ""} for row in rows)
    said: list[str] = []
    config = TrainConfig(**noise, exclude=str(marked), out=str(tmp_path / "second"))
    result = varalign.train(config, say=said.append, progress=False)
    assert "--exclude marked.csv: 72 pairs left out of training, and with them 36 images that have no other" in said
    assert (result.run / "excluded.csv").read_bytes() == marked.read_bytes()
    assert RunFolder.open(result.run).config()["options"]["exclude"] == str(marked)
    marked.unlink()  # the run has its own copy
    assert varalign.load(result.run).evaluate("test")["i2t_recall@1"] == result.test["i2t_recall@1"]
    after = diagnose(Settings(run=result.run), say=lambda _: None)
    assert after.pairs == 168 and after.average_precision == {}
