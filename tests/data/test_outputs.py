"""Outputs are new, or ours, or need --overwrite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from varalign.data.errors import DataError
from varalign.data.outputs import check_output_file, check_output_folder

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
