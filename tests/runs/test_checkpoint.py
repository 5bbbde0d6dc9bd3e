"""Checkpoints come back as they were written, or are refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from varalign.runs import checkpoint as checkpoints
from varalign.runs.checkpoint import CheckpointError
from varalign.runs.position import Position

TENSORS = {"model.weight": torch.arange(6.0).reshape(2, 3), "random.cpu": torch.get_rng_state()}


def save(folder: Path, step: int) -> Path:
    return checkpoints.save_checkpoint(folder, step, TENSORS, {"progress": asdict(Position(step=step)), "scaler": {}})


def test_round_trip(tmp_path: Path) -> None:
    found = checkpoints.load_checkpoint(save(tmp_path, 3))
    assert found.step == 3 and found.position == Position(step=3) and found.epochs == 0
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert list(found.part("model")) == ["weight"]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, 1) / name
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                checkpoints.load_checkpoint(file.parent)


def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "tensors.safetensors").write_bytes(b"no")
    said: list[str] = []
    found = checkpoints.newest_checkpoint(tmp_path, said.append)
    assert found is not None and found.state["step"] == 1
    assert len(said) == 1 and "step-2" in said[0] and "falling back" in said[0]


def test_none_whole_is_an_error_and_none_at_all_is_none(tmp_path: Path) -> None:
    assert checkpoints.newest_checkpoint(tmp_path / "absent", print) is None
    (save(tmp_path, 2) / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is whole"):
        checkpoints.newest_checkpoint(tmp_path, lambda _: None)


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    checkpoints.point(tmp_path, "best", tmp_path / "step-2")
    checkpoints.prune(tmp_path, 2, {2})
    assert [step for step, _ in checkpoints.step_folders(tmp_path)] == [2, 4, 5]
    assert checkpoints.load_checkpoint(tmp_path / "best").state["step"] == 2


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "rename", refuse)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
