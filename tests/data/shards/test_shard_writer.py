"""A data set written as tar shards: read back it is the same one, image for image, and a run on it the same run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from varalign.cli import main
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.files import read_bytes
from varalign.data.images import Augment, Preprocess
from varalign.data.pipeline import ImagePipeline
from varalign.data.readers.reading import Reading
from varalign.data.sample import write_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 drawn scenes, and the same as seven shards."""
    place = tmp_path_factory.mktemp("sample")
    write_sample(place / "files", images=40, size=32)
    convert = ["data", "convert", str(place / "files"), "--to", "webdataset", "--shard-size", "6"]
    assert main([*convert, "--out", str(place / "shards")]) == 0
    return place


def loaded(place: Path | str, cache: Path) -> ImageCaptions:
    return load_dataset(place, reading=Reading(cache=str(cache)))


def test_reading_it_back_gives_the_same_data_set(sample: Path, tmp_path: Path) -> None:
    before, after = loaded(sample / "files", tmp_path), loaded(sample / "shards", tmp_path)
    assert after.fingerprint == before.fingerprint and len(after.image_paths) == 40
    np.testing.assert_array_equal(after.split, before.split)
    assert [read_bytes(path) for path in after.image_paths] == [path.read_bytes() for path in before.image_paths]
    for place in (sample / "shards" / "*.tar", sample / "shards" / "shard-00000[0-6].tar"):
        assert loaded(place, tmp_path).fingerprint == before.fingerprint
    assert not (tmp_path / "unpacked").exists()
    assert len(loaded(sample / "shards" / "shard-000000.tar", tmp_path).image_paths) == 6


def test_the_bytes_depend_on_the_data_alone(sample: Path, tmp_path: Path) -> None:
    """Written again from the shards themselves, and in place of others; each index is beside its shard."""
    convert = ["data", "convert", str(sample / "shards"), "--to", "webdataset", "--out", str(tmp_path / "again")]
    for size in ("9", "6"):
        assert main([*convert, "--shard-size", size]) == 0
    first, again = (sorted(path for path in (place).iterdir()) for place in (sample / "shards", tmp_path / "again"))
    assert [path.name for path in again] == [path.name for path in first] and len(first) == 1 + 2 * 7
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    assert main([*convert[:-1], str(tmp_path / "taken")]) == 2


def test_webdataset_reads_it(sample: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    data = loaded(sample / "files", tmp_path)
    shards = sorted(str(path) for path in (sample / "shards").glob("*.tar"))
    read = list(webdataset.WebDataset(shards, shardshuffle=False))
    end = data.image_paths[0].suffix[1:]
    assert [one[end] for one in read] == [path.read_bytes() for path in data.image_paths]
    texts = [one["txt"].decode().splitlines() for one in read]
    assert texts == [[data.captions[k] for k in data.caption_rows([row])] for row in range(40)]


def test_pixels_of_a_shard_are_those_of_its_files(sample: Path, tmp_path: Path) -> None:
    order = [np.array([31, 2, 17]), np.array([5, 39])]
    for augment in (None, Augment(jitter=(0.2, 0.2, 0.2))):
        made = []
        for place in ("files", "shards"):
            paths = loaded(sample / place, tmp_path).image_paths
            pipeline = ImagePipeline(paths, Preprocess(size=24), augment=augment, seed=3, threads=2)
            made.append([batch.pixels for batch in pipeline.batches(order, epoch=4)])
        for ours, theirs in zip(*made, strict=True):
            np.testing.assert_array_equal(ours, theirs)
