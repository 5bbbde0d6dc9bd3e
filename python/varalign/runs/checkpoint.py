"""Checkpoints: safetensors and JSON with a checksum, written whole or not at all.

A checkpoint is a folder `step-N` with `tensors.safetensors` and `state.json`; the latter holds the checksum of the
former and one of itself. The folder is filled under a temporary name, synced and renamed. `best` and `last` are links
to step folders.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from varalign.data.files import remove_folder, sync_folder, write_atomically
from varalign.runs.folder import RunError

STEP_FOLDER = re.compile(r"step-(\d+)")
_WITHOUT_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}


class CheckpointError(RunError):
    """A checkpoint that is missing or damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: every tensor by name, on the CPU.
        state: plain values (step, epoch, best so far, …).
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix.`, without it."""
        start = prefix + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write `folder/step-N`.

    Args:
        folder: the run's `checkpoints`.
        step: number of optimiser steps done.
        tensors: every tensor by name; tensors may share no memory.
        state: values that JSON takes.

    Returns:
        The new folder; one of the same step is replaced.

    Raises:
        OSError: the disk refused; checkpoints written before are untouched.
    """
    os.makedirs(folder, exist_ok=True)
    target = folder / f"step-{step}"
    temporary = folder / f".step-{step}.{os.getpid()}.tmp"
    retired = folder / f".step-{step}.{os.getpid()}.old"
    shutil.rmtree(temporary, ignore_errors=True)
    os.mkdir(temporary)
    try:
        data = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_atomically(temporary / "tensors.safetensors", data)
        body = {**state, "step": step, "sha256": hashlib.sha256(data).hexdigest()}
        write_atomically(temporary / "state.json", _sealed(body))
        if target.exists():
            os.rename(target, retired)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _bring_back(folder)
        raise
    sync_folder(folder)
    if retired.exists():
        remove_folder(retired)
    return target


def _bring_back(folder: Path) -> None:
    """Give a checkpoint its name again that was about to be replaced by a new one of its step, which never came."""
    for retired in folder.glob(".step-*.old"):
        target = folder / retired.name.split(".")[1]
        if not target.exists():
            os.rename(retired, target)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder (`step-N`, `best` or `last`).

    Raises:
        CheckpointError: missing, cut short, changed, or not a checkpoint.
    """
    try:
        raw = (folder / "state.json").read_bytes()
        data = (folder / "tensors.safetensors").read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder}: no checkpoint there: {error.strerror or error}") from None
    state = _opened(raw, folder)
    if hashlib.sha256(data).hexdigest() != state.get("sha256"):
        raise CheckpointError(f"{folder / 'tensors.safetensors'}: damaged, its checksum is not the one in state.json")
    try:
        return Checkpoint(load_tensors(data), state)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / 'tensors.safetensors'}: not a safetensors file: {error}") from None


def newest_checkpoint(
    folder: Path, say: Callable[[str], None], fits: Callable[[dict[str, Any]], bool] = lambda _: True
) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole; damaged ones are passed over, saying so.

    Args:
        folder: the run's `checkpoints`.
        say: called with a line for each checkpoint that was passed over.
        fits: which of them, by their state, are wanted; where none is, the oldest whole one is taken.

    Raises:
        CheckpointError: there are checkpoints but none is whole.
    """
    _bring_back(folder)
    steps = step_folders(folder)
    oldest = None
    for _, path in reversed(steps):
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            say(f"{error}; falling back to the checkpoint before")
            continue
        if fits(found.state):
            return found
        oldest = found
    if steps and oldest is None:
        raise CheckpointError(f"{folder}: none of its {len(steps)} checkpoints is whole")
    return oldest


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoint folders by step, oldest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := STEP_FOLDER.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def point(folder: Path, name: str, target: Path) -> None:
    """Make `folder/name` stand for the step folder `target`: a link, or where there are none a copy.

    Raises:
        OSError: the disk refused; what `name` stood for before is untouched.
    """
    link = folder / name
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    if temporary.is_symlink():
        os.unlink(temporary)
    try:
        os.symlink(target.name, temporary)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS and os.name != "nt":
            raise
        shutil.copytree(target, temporary)
        if link.exists():
            remove_folder(link)
    os.replace(temporary, link)
    sync_folder(folder)


def prune(folder: Path, keep: int, wanted: Collection[int] = ()) -> None:
    """Delete all but the newest `keep` checkpoints and the wanted steps, and what a crash left half-written."""
    for _, path in [item for item in step_folders(folder)[:-keep] if item[0] not in wanted]:
        remove_folder(path)
    for path in [*folder.glob(".*.tmp"), *folder.glob(".step-*.old")]:
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            os.unlink(path)


def flatten_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors by name: `<index of the parameter>.<key>`."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value) for index, values in state.items() for key, value in values.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `flatten_optimiser`; hyperparameters stay those of `optimiser`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _sealed(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, allow_nan=False, sort_keys=True)
    return json.dumps({"checksum": hashlib.sha256(text.encode()).hexdigest(), "state": text}).encode()


def _opened(raw: bytes, folder: Path) -> dict[str, Any]:
    try:
        sealed = json.loads(raw)
        text = sealed["state"]
        if hashlib.sha256(text.encode()).hexdigest() != sealed["checksum"]:
            raise ValueError("its checksum does not match")
        state = json.loads(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'state.json'}: damaged: {error}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / 'state.json'}: damaged: no object")
    return state
