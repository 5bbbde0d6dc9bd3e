"""Checkpoints: safetensors and JSON with a checksum, written whole or not at all.

A checkpoint is a folder `step-N` with `tensors.safetensors` and `state.json`; the latter holds the checksum of the
former and one of itself. The folder is filled under a temporary name, synced and renamed. `best` and `last` are links
to step folders.

A checkpoint consists of parts. The tensors of a part are stored as `<part>.<name>`, its plain values in `state.json`
under the name of the part. `varalign.training.state` writes the parts and restores a run from them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from varalign.data.errors import DataError
from varalign.data.files import open_user_file, remove_folder, sync_folder, write_atomically
from varalign.encoders.dual_encoder import DualEncoder
from varalign.runs.position import POSITION_SCHEMA, Position
from varalign.runs.run_errors import RunError
from varalign.runs.schema import FORMAT, format_number, number, record, text, whole

MODEL, OPTIMISER, SCHEDULE, LOSS = "model", "optimiser", "schedule", "loss"
AVERAGED = "averaged"  # the weights that the optimiser changes, where those of the model are averages of them
PAIRS = "pairs"  # statistics of the training pairs
PAIR_WEIGHTS = "weights.pairs"  # one tensor, absent where all pairs count alike
RANDOM_CPU, RANDOM_CUDA = "random.cpu", "random.cuda"  # states of torch's generators, one tensor each
SCALER = "scaler"  # plain values: the loss scaling of float16
POSITION = "progress"  # plain values: steps, epochs and the best evaluation so far
WISE_FT = "wise_ft"  # plain value: the share of the way from the start, in a best checkpoint that wise-ft has replaced

STATE_SCHEMA = record(
    {POSITION: POSITION_SCHEMA, SCALER: record({}), "step": whole(), "sha256": text},
    {"format": format_number, WISE_FT: number},
)

START_STEP = 0  # the checkpoint before the first step

STEP_FOLDER = re.compile(r"step-(\d+)")
_WITHOUT_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}


class CheckpointError(RunError):
    """A checkpoint that is missing or damaged; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        path: its folder.
        tensors: every tensor by its name in the file, on the CPU.
        state: the plain values by part, and `format`, `step` and `sha256` (of the tensors' file).
    """

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part, by their names within it."""
        start = name + "."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.state["step"])

    @property
    def position(self) -> Position:
        """How far the run had come."""
        return Position(**self.state[POSITION])

    @property
    def epochs(self) -> int:
        """Whole epochs done."""
        return self.position.epoch

    @property
    def checksum(self) -> str:
        """Hexadecimal sha256 of the tensors' file: the same checksum, the same weights."""
        return str(self.state["sha256"])

    def fill(self, model: DualEncoder) -> None:
        """Load the weights into `model`; CheckpointError where it is another one."""
        with self.fitting():
            model.load_checkpoint_state(self.part(MODEL))

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Within, its tensors are given to a model; CheckpointError where they are not that model's."""
        try:
            yield
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{self.path}: does not fit the run's config.json or data, is it another run's? {reason}"
            ) from error


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part by their names in the file: the inverse of `Checkpoint.part`."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


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
        body = {**state, "format": FORMAT, "step": step, "sha256": hashlib.sha256(data).hexdigest()}
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
    """Restore a checkpoint that was moved aside for a new one of the same step which was never finished."""
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
        with open_user_file(folder / "state.json") as file:
            raw = file.read()
        with open_user_file(folder / "tensors.safetensors") as file:
            data = file.read()
    except OSError as error:
        raise CheckpointError(f"{folder}: no checkpoint there: {error.strerror or error}") from None
    except DataError as error:
        raise CheckpointError(str(error)) from None
    state = _opened(raw, folder)
    if hashlib.sha256(data).hexdigest() != state.get("sha256"):
        raise CheckpointError(f"{folder / 'tensors.safetensors'}: damaged, its checksum is not the one in state.json")
    try:
        return Checkpoint(folder, load_tensors(data), state)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / 'tensors.safetensors'}: not a safetensors file: {error}") from None


def newest_checkpoint(
    folder: Path, say: Callable[[str], None], fits: Callable[[Position], bool] = lambda _: True
) -> Checkpoint | None:
    """The newest whole checkpoint of a run; damaged ones are skipped with a remark.

    Args:
        folder: the run's `checkpoints`.
        say: called with a line for each checkpoint that is skipped.
        fits: whether a checkpoint of this position is wanted; where none is, the oldest whole one is taken.

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
        if fits(found.position):
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
    """Let `folder/name` be the step folder `target`: a link, or a copy where the file system has no links.

    Raises:
        OSError: the disk refused; `name` is then what it was.
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
    """Delete all checkpoints but the newest `keep` and the wanted steps, and what a crash left half-written."""
    for _, path in [item for item in step_folders(folder)[:-keep] if item[0] not in wanted]:
        remove_folder(path)
    for path in [*folder.glob(".*.tmp"), *folder.glob(".step-*.old")]:
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            os.unlink(path)


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
    try:
        STATE_SCHEMA(state)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'state.json'}: {error}") from None
    return dict(state)
