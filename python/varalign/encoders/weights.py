"""Other people's weight files, read as tensors and never run.

Source of the rules: safetensors hold nothing but tensors; `.pt`, `.pth` and `.bin` files are pickles, which torch reads
with `weights_only=True`, an unpickler that knows tensors and containers and calls nothing else; TorchScript archives
hold programs and are refused here (`varalign convert` takes their tensors out without running them).
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varalign.encoders.specs import SpecError


class WeightsError(ValueError):
    """A weights file that cannot be read, or that does not fit the architecture."""


def named_file(text: str, spec: str) -> Path:
    """The file that a spec names behind `@`, absolute.

    Raises:
        SpecError: no such file.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not there"
        raise SpecError(f"'{spec}': weights file '{text}' is {what}")
    return path.resolve()


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with `code/` or `constants.pkl`, as torch.jit saves it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    return any(name == "constants.pkl" or name.startswith("code/") for name in names)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict file by name, on the CPU, without running anything that is in it.

    A `state_dict` or `model` level around the tensors and DataParallel's `module.` before all names are taken off.

    Args:
        path: `.safetensors`, or a pickle of torch's (`.pt`, `.pth`, `.bin`).

    Raises:
        WeightsError: a TorchScript archive, a pickle of more than tensors, a broken file, or no tensors in it.
    """
    if is_torchscript(path):
        raise WeightsError(
            f"{path} is a TorchScript archive, which holds programs: take its tensors out first with "
            f"`varalign convert {path} {path.with_suffix('.safetensors')}` and name the new file"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for level in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(level), Mapping):
            content = content[level]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict (names and tensors)")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The metadata strings of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: Path, spec: str) -> None:
    """Copy `state` into `module`; every name and shape must fit.

    Raises:
        WeightsError: names the first missing, unknown and misshapen tensors.
    """
    wanted = module.state_dict()
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    if not _is_pickle(path):
        raise WeightsError(f"{path} is not a weights file: neither safetensors nor a file of torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds Python objects besides tensors, which would have to be run; refused. Save its state dict "
            f"(names and tensors) as safetensors where you trust it ({_first_line(error)})"
        ) from error
    except Exception as error:  # on bytes that are no pickle torch's unpickler raises whatever they lead it to
        raise WeightsError(f"{path} is not a whole weights file of torch's: {_first_line(error)}") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as torch.save's do: a zip archive, or a pickle of protocol 2 or later."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
