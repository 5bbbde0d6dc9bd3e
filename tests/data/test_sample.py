"""The built-in data set: the same bytes for a seed, whole or absent, and captions that tell its scenes apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from varalign.data.datasets import load_dataset
from varalign.data.errors import DataError
from varalign.data.sample import sample_scenes, split_sizes, write_sample
from varalign.data.scenes import COLOURS, SHAPES


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_loads_as_any_other_folder(tmp_path: Path) -> None:
    line = write_sample(tmp_path / "new" / "sample", images=40, size=48)
    assert line == (
        f"{tmp_path}/new/sample: wrote the built-in sample, 40 drawn images (20 train, 10 dev, 10 test) "
        "with 5 captions each, seed 0"
    )
    dataset = load_dataset(tmp_path / "new" / "sample")
    assert (len(dataset.image_names), len(dataset.captions)) == (40, 200)
    assert [len(dataset.rows(split)) for split in ("train", "dev", "test")] == [20, 10, 10]
    assert len(set(dataset.image_ids.tolist())) == 40
    assert len(dataset.notes) == 2, "nothing is missing, left over or twice"
    with Image.open(dataset.image_paths[0]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sample"]


def test_the_default_has_a_hundred_images_in_dev_and_test() -> None:
    assert split_sizes(2400) == {"train": 2000, "dev": 200, "test": 200}
    assert split_sizes(400) == {"train": 200, "dev": 100, "test": 100}
    assert split_sizes(12) == {"train": 6, "dev": 3, "test": 3}


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_sample(tmp_path / name, images=15, size=32, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    different = contents(tmp_path / "c")
    assert all(different[name] != data for name, data in contents(tmp_path / "a").items() if name.endswith(".jpg"))


def test_a_smaller_sample_is_the_start_of_a_larger_one() -> None:
    assert list(sample_scenes(200, 0))[:50] == list(sample_scenes(50, 0))


def test_scenes_and_captions() -> None:
    made = list(sample_scenes(2400, 0))
    assert len({scene for _, scene, _ in made}) == 2400, "no scene comes twice"
    owners: dict[str, set[str]] = {}
    for name, scene, captions in made:
        assert len(set(captions)) == 5
        for caption in captions:
            owners.setdefault(caption, set()).add(name)
            for thing in scene.things:
                assert thing.colour in COLOURS
                assert thing.colour in caption.lower()
                assert any(word in caption for word in SHAPES[thing.shape])
    shared = sum(len(names) for names in owners.values() if len(names) > 1)
    assert shared / 12_000 < 0.01, "a caption names one image, as a rule"
    kinds = [scene.kind for _, scene, _ in made]
    assert all(kinds.count(kind) > 300 for kind in ("one", "same", "pair", "row"))


def test_relations_are_told_as_they_are_drawn() -> None:
    for _, scene, captions in sample_scenes(300, 3):
        if scene.kind == "pair" and scene.where == "right":
            told = [caption for caption in captions if " to the left of " in caption]
            first, second = (thing.colour for thing in scene.things)
            assert all(caption.index(first) < caption.index(second) for caption in told)


def test_what_is_there_already(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    folder.mkdir()
    write_sample(folder, images=15, size=32)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    line = write_sample(folder, images=15, size=32)
    assert line == f"{folder}: the built-in sample is there already (15 images, seed 0)"
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(DataError, match=r"another built-in sample: images 15 \(wanted 20\), seed 0 \(wanted 4\); name"):
        write_sample(folder, images=20, size=32, seed=4)
    (folder / "Images" / "scene_00003.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="with files changed or missing; remove it"):
        write_sample(folder, images=15, size=32)
    (folder / "Images" / "scene_00003.jpg").unlink()
    with pytest.raises(DataError, match="with files changed or missing; remove it"):
        write_sample(folder, images=15, size=32)


@pytest.mark.parametrize("mark", [None, b"", b"[]", b"\xff", b"{}"])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, mark: bytes | None) -> None:
    (tmp_path / "captions.txt").write_text("mine")
    if mark is not None:
        (tmp_path / "sample.json").write_bytes(mark)
    with pytest.raises(DataError, match=r"holds (no|another) built-in sample"):
        write_sample(tmp_path)
    with pytest.raises(DataError, match="holds no built-in sample"):
        write_sample(tmp_path / "captions.txt")
    assert (tmp_path / "captions.txt").read_text() == "mine"


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(DataError, match="sample: the sample cannot be written: No space left on device"):
        write_sample(tmp_path / "sample", images=12, size=32)
    assert list(tmp_path.iterdir()) == []


def test_wrong_sizes(tmp_path: Path) -> None:
    for images, size in ((11, 128), (100, 31), (100, 513)):
        with pytest.raises(DataError, match="wanted at least 12 images, of 32 to 512 pixels"):
            write_sample(tmp_path / "sample", images=images, size=size)
