"""Reads the tensors of a TorchScript archive without torch.jit, so that no program in it is compiled or run.

Such an archive is a zip file. `NAME/data.pkl` is a pickle of the module tree, whose tensors point to the raw bytes in
`NAME/data/KEY`; `NAME/code/` contains the programs as text. This file interprets only the pickle operations that
torch.jit writes, which make tensors, dicts, lists and records of modules. From the code text it reads only each class's
lists of parameters and buffers, which distinguish them from other attributes that hold tensors.

The work is bounded by the archive's size: the bytes of tensors must be stored uncompressed in the size that the pickle
declares; a tensor has at most as many elements as are stored for it, and all tensors together at most `COPIES` times
the bytes of the file; the size of the code text and the number and depth of modules are limited.
"""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varalign.encoders.weights import COPIES, WeightsError

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
MOST_CODE = 64 << 20
"""Maximum bytes of code text (ViT-B/32 has 0.5 MB)."""
MOST_DEPTH = 64
MOST_MODULES = 100_000
MOST_NAME = 4096
"""Maximum characters in the name of a tensor, with its modules' names."""

_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class ModuleRecord:
    """A module of the archive as data: the name of its class, and its attributes."""

    type_name: str
    attributes: dict[str, Any] = field(default_factory=dict)


def read_torchscript(path: Path) -> tuple[dict[str, Tensor], str]:
    """Parameters and buffers of a TorchScript archive by their state dict names, and its code as text.

    Args:
        path: a file of torch.jit.save or `ScriptModule.save`.

    Raises:
        WeightsError: not such an archive, one that needs more work than its size allows, or one whose pickle names
            anything but modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            entries = _Entries(archive, data.removesuffix("data.pkl"), path)
            if entries.has("byteorder") and entries.stored("byteorder") != b"little":
                raise WeightsError(f"{path} was written on a big-endian machine; such archives are not read")
            code = entries.code()
            tree = _Interpreter(entries).load(entries.stored("data.pkl"))
    except WeightsError:
        raise
    except (zipfile.BadZipFile, StopIteration, KeyError, EOFError, OSError) as error:
        raise WeightsError(f"{path} is not a whole TorchScript archive: {error or 'no data.pkl'}") from error
    except Exception as error:  # zipfile, the pickle operations and torch raise errors of any type on damaged bytes
        raise WeightsError(f"{path}: its data.pkl is not what torch.jit writes; refused ({error})") from error
    return dict(_tensors(tree, _declared(code), path)), "\n".join(code.values())


class _Entries:
    """The entries of an archive below its root; all reads together are limited to the size of the file."""

    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        self.archive, self.root, self.path = archive, root, path
        self.size = self._left = path.stat().st_size

    def has(self, name: str) -> bool:
        return f"{self.root}{name}" in self.archive.NameToInfo

    def stored(self, name: str, size: int | None = None) -> bytes:
        """The bytes of an uncompressed entry, which must be `size` if that is given."""
        entry = self.archive.getinfo(f"{self.root}{name}")
        if size is not None and entry.file_size < size:
            raise WeightsError(f"{self.path} is cut short: {name} holds {entry.file_size} bytes, not {size}")
        self._left -= entry.file_size
        whole = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not whole or self._left < 0 or size not in (None, entry.file_size):
            raise WeightsError(
                f"{self.path}: {name} is compressed, or of another size than its tensor, which torch.jit never writes; "
                "refused"
            )
        return self.archive.read(entry)

    def code(self) -> dict[str, str]:
        """The code text by file; torch.jit compresses it."""
        below = f"{self.root}code/"
        found = [entry for entry in self.archive.infolist() if entry.filename.startswith(below)]
        found = [entry for entry in found if entry.filename.endswith(".py")]
        total = sum(entry.file_size for entry in found)
        if total > MOST_CODE:
            raise WeightsError(f"{self.path}: {total:,} bytes of code, more than the {MOST_CODE:,} that are read")
        read = self.archive.read
        return {e.filename.removeprefix(below): read(e).decode("utf-8", "replace") for e in found}


class _Interpreter:
    """Interprets the pickle operations that torch.jit writes; it imports nothing and calls only its own methods.

    Python's unpickler with `find_class` could do the same, but a number in the pickle can make it reserve memory, and
    deeply nested tuples can make it overflow the stack.
    """

    def __init__(self, entries: _Entries) -> None:
        self.entries = entries
        self._left = COPIES * entries.size
        self._storages: dict[str, Tensor] = {}
        self._known: dict[str, Any] = {
            "torch._utils _rebuild_tensor_v2": self._tensor,
            "torch._utils _rebuild_parameter": _first,
            "collections OrderedDict": OrderedDict,
            **{f"torch {name}": dtype for name, dtype in DTYPES.items()},
            **{f"torch.jit._pickle build_{kind}list": _first for kind in ("int", "double", "bool", "tensor")},
        }

    def load(self, data: bytes) -> Any:
        """The object that the pickle makes."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def popped() -> list[Any]:
            """The values pushed since the last mark, removed from the stack."""
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        argument: Any
        for operation, argument, _ in pickletools.genops(data):
            name = operation.name
            if name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            elif name == "TUPLE":
                stack.append(tuple(popped()))
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("APPEND", "APPENDS"):
                items = popped() if name == "APPENDS" else [stack.pop()]
                _of(list, stack[-1]).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = popped() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
                _fill(stack[-1], items)
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                wanted = argument if name == "GLOBAL" else " ".join([stack.pop() for _ in range(2)][::-1])
                stack.append(self._named(wanted))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = _of(tuple, stack.pop())
                stack.append(_made(stack.pop(), arguments))
            elif name == "BUILD":
                state = stack.pop()
                _of(ModuleRecord, stack[-1]).attributes = state if isinstance(state, dict) else {}
            elif name == "BINPERSID":
                stack.append(self._storage(*_of(tuple, stack.pop())))
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"the operation {name}")
        raise ValueError("no end")

    def _named(self, wanted: str) -> Any:
        if wanted.startswith("__torch__"):
            return ModuleRecord(wanted.replace(" ", "."))
        if wanted not in self._known:
            called = wanted.replace(" ", ".")
            raise WeightsError(f"{self.entries.path}: its data.pkl calls for {called}, which no tensor needs; refused")
        return self._known[wanted]

    def _storage(self, kind: Any, dtype: Any, key: Any, _: Any, count: Any) -> Tensor:
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise WeightsError(
                f"{self.entries.path}: its data.pkl points to a {kind!r}, not to a tensor's bytes; refused"
            )
        if key not in self._storages:
            raw = bytearray(self.entries.stored(f"data/{key}", count * dtype.itemsize))
            self._storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return self._storages[key]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        if len(_of(tuple, size)) > MOST_DEPTH or not all(0 <= _of(int, length) < 1 << 48 for length in size):
            raise ValueError(f"a tensor of {len(size)} dimensions")
        storage, count = _of(Tensor, storage), math.prod(size)
        self._left -= count * storage.itemsize
        if count > storage.numel() or self._left < 0:
            raise WeightsError(
                f"{self.entries.path}: a tensor of {count:,} elements over {storage.numel():,} stored ones; refused"
            )
        if count == 0:
            return torch.empty(size, dtype=storage.dtype)
        # as_strided refuses strides that reach outside the storage. The clone lets no two tensors share bytes.
        return torch.as_strided(storage, size, stride, offset).clone(memory_format=torch.contiguous_format)


def _of(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _fill(target: Any, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Only texts and numbers as keys: the hash of deeply nested tuples overflows the stack.
        _of(dict, target)[_of(int, key) if isinstance(key, int) else _of(str, key)] = value


def _made(what: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(what, ModuleRecord):
        return ModuleRecord(what.type_name)
    if what is OrderedDict:
        return OrderedDict()
    if what is not _first and getattr(what, "__func__", None) is not _Interpreter._tensor:
        raise TypeError(f"a {type(what).__name__} is called")
    return what(*arguments)


def _first(value: Any, *_: Any) -> Any:
    return value


def _declared(code: dict[str, str]) -> dict[str, set[str]]:
    """Qualified class name → names of its parameters and buffers, from the code text."""
    found = {}
    for file, text in code.items():
        package = file.removesuffix(".py").replace("/", ".")
        for name, parameters, buffers in CLASS.findall(text):
            found[f"{package}.{name}"] = set(re.findall(r'"([^"]+)"', parameters + buffers))
    return found


def _tensors(tree: Any, declared: dict[str, set[str]], path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every parameter and buffer below a module."""
    waiting, seen = [("", tree, 0)], 0
    while waiting:
        prefix, node, depth = waiting.pop()
        seen += 1
        if seen > MOST_MODULES or depth > MOST_DEPTH or len(prefix) > MOST_NAME:
            raise WeightsError(
                f"{path}: more than {MOST_MODULES:,} modules, or modules more than {MOST_DEPTH} deep; refused"
            )
        if not isinstance(node, ModuleRecord):
            continue
        names = declared.get(node.type_name)
        for name, value in node.attributes.items():
            if isinstance(value, Tensor) and (names is None or name in names):
                yield f"{prefix}{name}", value
            elif isinstance(value, ModuleRecord):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
