"""Outputs are new, or ours, or need --overwrite."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from faults.harness import FileCalls
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, save_features
from varalign.data.outputs import (
    UNFINISHED,
    check_output_file,
    check_output_folder,
    marker_of,
    written_together,
)

OURS = ("diagnosis.html", "pairs.csv")


def test_a_file_is_new_or_needs_overwrite(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    check_output_file(file)
    file.write_text("mine")
    with pytest.raises(DataError, match=r"a\.npz: is there already; name another file, or pass --overwrite"):
        check_output_file(file)
    check_output_file(file, overwrite=True)
    for overwrite in (False, True):
        with pytest.raises(DataError, match="is a folder; name a file"):
            check_output_file(tmp_path, overwrite=overwrite)


def test_a_link_that_leads_nowhere_is_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DataError, match="is there already"):
        check_output_file(tmp_path / "link")
    with pytest.raises(DataError, match="is a file; name a folder"):
        check_output_folder(tmp_path / "link", OURS)


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        ((), None),
        (("diagnosis.html",), None),
        (("diagnosis.html", "pairs.csv", ".pairs.csv.12.tmp"), None),
        (("pairs.csv",), r"\(pairs\.csv\)"),
        (("pairs.csv", UNFINISHED), None),
        ((UNFINISHED,), None),
        (("notes.txt", UNFINISHED), r"\(notes\.txt\)"),
        (("diagnosis.html", "notes.txt"), r"\(notes\.txt\)"),
        (tuple(f"{n}.jpg" for n in range(6)), r"\(0\.jpg, 1\.jpg, 2\.jpg and 3 more\)"),
        ((".git",), r"\(\.git\)"),
    ],
)
def test_a_folder_is_new_or_ours(tmp_path: Path, names: tuple[str, ...], refused: str | None) -> None:
    check_output_folder(tmp_path / "absent", OURS)
    for name in names:
        (tmp_path / name).write_text("")
    if refused is None:
        check_output_folder(tmp_path, OURS)
    else:
        with pytest.raises(DataError, match=f"holds what this command did not write {refused}; name a new folder"):
            check_output_folder(tmp_path, OURS)
    check_output_folder(tmp_path, OURS, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


class Ended(BaseException):
    """Stands for the end of the process."""


def features(images: int) -> FeatureSet:
    owner, values = np.arange(images), np.ones((images, 3), np.float32)
    names = [f"{row}.jpg" for row in range(images)]
    return FeatureSet(values, values, owner, np.zeros(images, np.int8), owner, names, texts=names)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_features_file_is_never_beside_the_names_of_another_wherever_its_writing_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    states = {}
    for images in (4, 5):
        save_features(tmp_path / f"{images}.safetensors", features(images))
        states[images] = {path.suffixes[0]: path.read_bytes() for path in tmp_path.glob(f"{images}.*")}
        assert len(states[images]) == 3, "features, names, texts; no marker"
    for end in itertools.count():
        place = tmp_path / f"{end}-{replaces}"
        place.mkdir()
        if replaces:
            save_features(place / "f.safetensors", features(4))

        def hook(number: int, *_: str, end: int = end) -> None:
            if number == end:
                raise Ended

        calls = FileCalls(place, hook)
        with monkeypatch.context() as patch:
            for name, plain in calls._plain.items():
                patch.setattr(os, name, plain)
            calls.install()
            try:
                save_features(place / "f.safetensors", features(5))
                break
            except Ended:
                pass
        left = {path.suffixes[0]: path.read_bytes() for path in place.glob("f.*") if UNFINISHED not in path.name}
        marked = marker_of(place / "f.safetensors").is_file()
        assert marked or left in (states[5], states[4] if replaces else {})
        if ".safetensors" in left:
            assert left in (states[5], *([states[4]] if replaces else [])), end
        save_features(place / "f.safetensors", features(5))
        assert sorted(path.name for path in place.glob("f.*")) == ["f.names.jsonl", "f.safetensors", "f.texts.jsonl"]
    assert end > 20


def test_old_files_are_gone_before_the_first_new_one_and_the_marker_stays_after_a_failure(tmp_path: Path) -> None:
    first, second = tmp_path / "diagnosis.html", tmp_path / "pairs.csv"
    first.write_text("old")
    second.write_text("old")
    with pytest.raises(OSError, match="full"), written_together(tmp_path / UNFINISHED, [first, second]):
        assert os.listdir(tmp_path) == [UNFINISHED]
        second.write_text("new")
        raise OSError("full")
    assert sorted(os.listdir(tmp_path)) == ["pairs.csv", UNFINISHED]
    check_output_folder(tmp_path, OURS)
    with written_together(tmp_path / UNFINISHED, [first, second]):
        first.write_text("new")
    assert os.listdir(tmp_path) == ["diagnosis.html"]
