"""The tensors of a TorchScript archive, read without torch.jit, so that no program in it is compiled or run.

Such an archive is a zip: `NAME/data.pkl` is a pickle of the module tree whose tensors point to the raw bytes in
`NAME/data/KEY`; `NAME/code/` holds the programs as text. The pickle is read by an unpickler that knows tensors, dicts
and lists, turns every module into an inert record of its attributes, and refuses any other name. From the code text
only each class's lists of parameters and buffers are read, which tell them from other attributes that hold tensors.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varalign.encoders.weights import WeightsError

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
CLASS = re.compile(
    r"^class (\w+)\(Module\):\s+__parameters__ = \[(.*?)\]\s+__buffers__ = \[(.*?)\]", re.MULTILINE | re.DOTALL
)


class ModuleRecord:
    """What a module of the archive was: its class's name and its attributes, nothing that can be called."""

    type_name = ""

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes of a module as they were pickled."""
        self.attributes: dict[str, Any] = state if isinstance(state, dict) else {}


def read_torchscript(path: Path) -> tuple[dict[str, Tensor], str]:
    """Parameters and buffers of a TorchScript archive by their state dict names, and its code as text.

    Args:
        path: what torch.jit.save or `ScriptModule.save` wrote.

    Raises:
        WeightsError: not such an archive, or a pickle in it that names anything but modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            root = data.removesuffix("data.pkl")
            if archive.namelist().count(f"{root}byteorder") and archive.read(f"{root}byteorder") != b"little":
                raise WeightsError(f"{path} was written on a big-endian machine; such archives are not read")
            code = {
                name.removeprefix(f"{root}code/"): archive.read(name).decode("utf-8", "replace")
                for name in archive.namelist()
                if name.startswith(f"{root}code/") and name.endswith(".py")
            }
            tree = _Unpickler(archive, root, path).load()
    except WeightsError:
        raise
    except (zipfile.BadZipFile, StopIteration, KeyError, EOFError, OSError) as error:
        raise WeightsError(f"{path} is not a whole TorchScript archive: {error or 'no data.pkl'}") from error
    except (pickle.UnpicklingError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: its data.pkl is not what torch.jit writes; refused ({error})") from error
    return dict(_tensors(tree, "", _declared(code))), "\n".join(code.values())


class _Unpickler(pickle.Unpickler):
    """Calls nothing but the functions of this class: `find_class` never imports."""

    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root, self._path = archive, root, path
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type("ModuleRecord", (ModuleRecord,), {"type_name": f"{module}.{name}"})
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("collections", "OrderedDict"): OrderedDict,
        }
        known |= {("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")}
        if (module, name) not in known:
            raise WeightsError(f"{self._path}: its data.pkl calls for {module}.{name}, which no tensor needs; refused")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise WeightsError(f"{self._path}: its data.pkl points to a {kind!r}, not to a tensor's bytes; refused")
        if key not in self._storages:
            raw = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if len(raw) < count * dtype.itemsize:
                raise WeightsError(f"{self._path} is cut short: data/{key} holds {len(raw)} bytes")
            self._storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) == 0:
        return torch.empty(size, dtype=storage.dtype)
    # as_strided itself refuses what would lie outside the storage. A copy, so that no two tensors share bytes.
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone(memory_format=torch.contiguous_format)


def _first(value: Any, *_: Any) -> Any:
    return value


def _declared(code: dict[str, str]) -> dict[str, set[str]]:
    """Qualified class name → names of its parameters and buffers, as the code text lists them."""
    found = {}
    for file, text in code.items():
        package = file.removesuffix(".py").replace("/", ".")
        for name, parameters, buffers in CLASS.findall(text):
            found[f"{package}.{name}"] = set(re.findall(r'"([^"]+)"', parameters + buffers))
    return found


def _tensors(node: Any, prefix: str, declared: dict[str, set[str]]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(node, ModuleRecord):
        return
    names = declared.get(node.type_name)
    for name, value in getattr(node, "attributes", {}).items():
        if isinstance(value, Tensor) and (names is None or name in names):
            yield f"{prefix}{name}", value
        elif isinstance(value, ModuleRecord):
            yield from _tensors(value, f"{prefix}{name}.", declared)
