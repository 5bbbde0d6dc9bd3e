"""An export is whole or not there, and lies over nothing but an earlier one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import varalign
from exported import Train
from varalign.aligner.exports import own_folder
from varalign.cli import main
from varalign.data.errors import DataError
from varalign.runs.run_errors import RunFailed


def test_an_export_replaces_an_export_and_nothing_else(trained: Train, tmp_path: Path) -> None:
    model, out = varalign.load(trained(), device="cpu"), tmp_path / "out"
    model.export(out)
    (out / "search").mkdir()
    (out / "search" / "all-images.safetensors").write_bytes(b"kept by a search")
    model.export(out)
    assert not (out / "search").exists()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds what no export wrote \(mine.txt\)"):
        model.export(out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("a")
    for place, said in ((other, "no export of varalign"), (out / "config.json", "is a file")):
        with pytest.raises(DataError, match=said):
            model.export(place)
    assert main(["export", str(trained()), str(trained())]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_failed_export_leaves_the_old_one(trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = varalign.load(trained(), device="cpu"), tmp_path / "out"
    model.export(out)
    before = (out / "varalign_export.json").read_bytes()
    monkeypatch.setattr(own_folder, "write", lambda subject, folder: {"differences": {"images": np.nan}, "notes": []})
    with pytest.raises(RunFailed, match="differ from varalign's by more than 0.0001: images nan"):
        model.export(out)
    assert (out / "varalign_export.json").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [
        "out"
    ]
