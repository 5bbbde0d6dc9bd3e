"""Reads other people's weight files without running code in them.

safetensors files contain only tensors. `.pt`, `.pth` and `.bin` files are pickles, which torch reads with
`weights_only=True`, an unpickler for tensors and containers only. TorchScript archives contain programs and are refused
here; `varalign convert` takes their tensors out without running the programs.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varalign.encoders.pickle_depth import nests_deeper
from varalign.encoders.specs import SpecError

MOST_NESTING = 500
COPIES = 8
"""Maximum bytes of all tensors, as a multiple of the file's size; above 1, since tied weights are copied."""
LEVELS = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Names under which training scripts save a model's state dict, in the order in which they are looked for."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before all names of a state dict."""
AVERAGED = "n_averaged"
"""The step counter that torch's AveragedModel stores beside a model's tensors."""
COUNTER = "num_batches_tracked"
"""A counter that BatchNorm reads only without a momentum; old files lack it, and torch then takes 0."""


class WeightsError(ValueError):
    """A weights file that cannot be read, or that does not fit the architecture."""


def named_file(text: str, spec: str) -> Path:
    """The file that a spec names after `@`, as an absolute path.

    Raises:
        SpecError: no such file.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not there"
        raise SpecError(f"'{spec}': weights file '{text}' is {what}")
    return path.resolve()


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with `code/` or `constants.pkl`, which torch.jit writes."""
    names = [entry.filename.partition("/")[2] for entry in _entries(path)]
    return any(name == "constants.pkl" or name.startswith("code/") for name in names)


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip archive; empty for other files and damaged ones, on which the reader then fails."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception:  # zipfile raises errors of many types on damaged archives
        return []


@dataclass(frozen=True)
class Weights:
    """The tensors of a weights file.

    Attributes:
        state: tensors by name, on the CPU.
        taken: which part of the file they are ("'model' of its parts model, ema; prefix 'module.' removed"); empty if
            they are all of the file, under its own names.
    """

    state: dict[str, Tensor]
    taken: str = ""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of `read_weights`."""
    return read_weights(path).state


def read_weights(path: Path) -> Weights:
    """The model in a weights file, read without running code in it.

    Training scripts save the state dict under a name of `LEVELS`, possibly nested in another; the first one that holds
    tensors is taken. Wrappers (DataParallel, torch.compile, Lightning) add a prefix of `PREFIXES` to all names; such
    prefixes are removed in any order.

    Args:
        path: `.safetensors`, or a pickle of torch.save (`.pt`, `.pth`, `.bin`).

    Raises:
        WeightsError: a TorchScript archive, a pickle of more than tensors, a broken file, a file without tensors, or
            with tensors in a mapping of another name, which may be another model.
    """
    if is_torchscript(path):
        raise WeightsError(
            f"{path} is a TorchScript archive, which holds programs: take its tensors out first with "
            f"`varalign convert {path} {path.with_suffix('.safetensors')}` and name the new file"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    remarks = []
    while level := next((name for name in LEVELS if _tensors_in(content, name)), None):
        parts = ", ".join(name for name in LEVELS if _tensors_in(content, name))
        remarks.append(repr(level) if parts == level else f"{level!r} of its parts {parts}")
        content = content[level]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict (names and tensors)")
    others = [str(name)[:40] for name in content if _tensors_in(content, name)]
    if others:
        raise WeightsError(
            f"{path}: its tensors are under {', '.join(map(repr, others[:5]))}, and a model is read from "
            f"{', '.join(LEVELS)} or from the file itself: save the state dict of the model that you mean as a file"
        )
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not any(value.ndim for value in state.values()):
        single = f" but single numbers ({', '.join(sorted(state)[:3])})" if state else ""
        raise WeightsError(f"{path} holds no tensors{single}")
    _check_sizes(state, path)
    if len(state) > 1:
        state.pop(AVERAGED, None)
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        remarks.append(f"prefix {prefix!r} removed")
    return Weights(state, "; ".join(remarks))


def _tensors_in(content: Any, name: Any) -> bool:
    """Whether `content` has a mapping of this name with tensors in it, or in one of its `LEVELS`."""
    part = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(part, Mapping):
        return False
    direct = any(isinstance(value, Tensor) for value in part.values())
    return direct or any(_tensors_in(part, level) for level in LEVELS)


def _check_sizes(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that have more elements than are stored for them: a view of 16 bytes can claim gigabytes."""
    left = COPIES * path.stat().st_size
    for name, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        size = tensor.numel() * tensor.itemsize
        left -= size
        if not plain or size > tensor.untyped_storage().nbytes() or left < 0:
            shape = tuple(tensor.shape)
            raise WeightsError(f"{path}: {name[:200]!r} {shape} has more elements than the file stores; refused")


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The metadata strings of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {first_line(error)}") from error


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: Path, spec: str) -> None:
    """Copy `state` into `module`; every name and shape must fit, except that BatchNorm's counters may be missing.

    Raises:
        WeightsError: the message names the first missing, unknown and misshapen tensors.
    """
    wanted = module.state_dict()
    state = {**{name: value for name, value in wanted.items() if name.rpartition(".")[2] == COUNTER}, **state}
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    faults = [
        f"{len(names)} {word} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for word, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if faults:
        raise WeightsError(f"'{spec}': the tensors in {source} do not fit this architecture: {'; '.join(faults)}")
    module.load_state_dict(dict(state))


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors raises errors of several types on damaged files
        raise WeightsError(f"{path} is not a whole safetensors file: {first_line(error)}") from error


def check_pickle(path: Path) -> None:
    """Refuse a file of torch.save that would need more work than its size allows, or would end the process.

    Raises:
        WeightsError: compressed entries, which may be gigabytes of zeros, or a pickle that is nested too deep.
    """
    if sum(entry.file_size for entry in _entries(path)) > path.stat().st_size:
        raise WeightsError(f"{path}: its entries are compressed, or overlap, which torch.save never writes; refused")
    if nests_deeper(path, MOST_NESTING):
        raise WeightsError(f"{path}: its pickle is nested more than {MOST_NESTING} deep; refused")


def _read_pickle(path: Path) -> Any:
    if not _is_pickle(path):
        raise WeightsError(f"{path} is not a weights file: neither safetensors nor a file of torch.save")
    check_pickle(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds Python objects besides tensors, which would have to be run; refused. Save its state dict "
            f"(names and tensors) as safetensors where you trust it ({first_line(error)})"
        ) from error
    except Exception as error:  # torch's unpickler raises errors of any type on damaged bytes
        raise WeightsError(f"{path} is not a whole weights file of torch's: {first_line(error)}") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as torch.save's do: a zip archive, or a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def first_line(error: Exception) -> str:
    """The first line of an error of another library, for a message."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
