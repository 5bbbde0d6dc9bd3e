"""The features file: what frozen encoders said about a data set, in one safetensors file.

Tensors: `image_features` (I, Dx) and `text_features` (T, Dy), float16, float32 or float64; `text_image_ids` (T,), the
row of each text's image; `split` (I,) 0 train, 1 dev, 2 test, -1 none; optionally `image_ids` (I,), equal for copies of
one image. Beside STEM.safetensors, each optional: `STEM.names.jsonl` and `STEM.texts.jsonl`, the images' names and the
texts, one JSON string a line in the order of the rows. Older files have `image_names.txt`, a name a line, for the whole
folder: it is read where it has as many lines as there are images. Nothing is read by pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError, first_three, shown
from varalign.data.files import open_user_file, read_bytes, readable, write_atomically
from varalign.data.index import CaptionIndex
from varalign.data.outputs import marker_of, written_together
from varalign.data.readers.caption_file import split_lines
from varalign.data.same_captions import SameCaption
from varalign.data.splits import limit_training, separate_twins

OLD_NAMES_FILE = "image_names.txt"
_ROWS_AT_ONCE = 1 << 14
_FLOATS = ("F16", "F32", "F64")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "U16", "U32")
_Kinds = Mapping[str, tuple[tuple[str, ...], int]]
_WANTED: _Kinds = {
    "image_features": (_FLOATS, 2),
    "text_features": (_FLOATS, 2),
    "text_image_ids": (_INTEGERS, 1),
}
_OPTIONAL: _Kinds = {"split": (_INTEGERS, 1), "image_ids": (_INTEGERS, 1)}


@dataclass(frozen=True)
class FeatureSet(CaptionIndex):
    """Features of I images and T texts.

    image_features: (I, Dx) float32. text_features: (T, Dy) float32. text_image_ids: (T,) int64 image rows. split: (I,)
    int8. image_ids: (I,) int64, equal for copies of one image; an id is never in two splits. image_names: (I,) or None.
    texts: (T,) or None. same_caption: whether equal texts are one, see `CaptionIndex`. image_paths: (I,) picture files,
    for what shows them, or None.
    """

    image_features: NDArray[np.float32]
    text_features: NDArray[np.float32]
    text_image_ids: NDArray[np.int64]
    split: NDArray[np.int8]
    image_ids: NDArray[np.int64]
    image_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    texts: list[str] | None = None
    same_caption: SameCaption = "positive"
    image_paths: list[Path] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the features and whose they are; not of the splits."""
        digest = hashlib.sha256()
        for values in (self.image_features, self.text_features, self.text_image_ids):
            digest.update(str(values.shape).encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def limited(self, size: int | None, seed: int) -> FeatureSet:
        """The same with `size` training images drawn by `seed`; rows stand for names where there are none."""
        if size is None:
            return self
        names = self.image_names or [str(row) for row in range(len(self.split))]
        return replace(self, split=limit_training(self.split, names, size, seed))

    def keeping(self, rows: NDArray[np.int64]) -> FeatureSet:
        """The same with some of the captions alone, given as (n,) rows."""
        texts = None if self.texts is None else [self.texts[row] for row in rows.tolist()]
        vectors, owner = self.text_features[rows], self.text_image_ids[rows]
        return replace(self, text_features=vectors, text_image_ids=owner, texts=texts, split=self.split.copy())

    @property
    def caption_owner(self) -> NDArray[np.int64]:
        """(T,) int64: the image row that each caption belongs to."""
        return self.text_image_ids

    @property
    def caption_texts(self) -> list[str] | None:
        """(T,) the texts, where the file has them beside it."""
        return self.texts


def load_features(path: Path | str) -> FeatureSet:
    """Read a features file; images whose features are equal bit for bit count as one where it has no `image_ids`.

    Without `split` every image that has a text is a training image.

    Raises DataError for a file that is absent, damaged or no safetensors file, for missing tensors, wrong dtypes or
    shapes, ids out of range, values that are not finite, and images in a split that have no text.
    """
    path = Path(path)
    with readable(path):
        return _checked(path, _read_tensors(path, _WANTED, _OPTIONAL))


def _checked(path: Path, tensors: dict[str, NDArray[Any]]) -> FeatureSet:
    images, texts = tensors["image_features"], tensors["text_features"]
    owner = tensors["text_image_ids"]
    for name, other in (("text_image_ids", texts), ("split", images), ("image_ids", images)):
        if name in tensors and tensors[name].shape != other.shape[:1]:
            raise DataError(f"{path}: {name} has shape {tensors[name].shape}, wanted ({len(other)},)")
    _check_range(path, "text_image_ids", owner, 0, len(images) - 1, f"rows of the {len(images):,} images")
    has_text = np.bincount(owner, minlength=len(images)) > 0
    split = tensors.get("split", np.where(has_text, 0, -1))
    _check_range(path, "split", split, -1, 2, "0 train, 1 dev, 2 test, -1 none")
    bare = np.flatnonzero((split >= 0) & ~has_text)
    if len(bare):
        raise DataError(
            f"{path}: image row {bare[0]} is in a split and has no text; {len(bare):,} such rows: give them split -1"
        )
    split = split.astype(np.int8)
    image_ids = _canonical(tensors["image_ids"].tolist() if "image_ids" in tensors else _row_digests(images))
    notes = separate_twins(split, image_ids)
    names = read_strings(_beside(path, "names"), len(images), "images")
    return FeatureSet(
        _finite(path, "image_features", images),
        _finite(path, "text_features", texts),
        text_image_ids=owner.astype(np.int64),
        split=split,
        image_ids=image_ids,
        image_names=_old_names(path.parent / OLD_NAMES_FILE, len(images), notes) if names is None else names,
        notes=notes,
        texts=load_texts(path, len(texts)),
    )


def load_rows(path: Path, name: str) -> NDArray[np.float32]:
    """(N, D) one matrix of a features file: `image_features` or `text_features`; the other one need not be there.

    Raises DataError as `load_features`.
    """
    with readable(path):
        return _finite(path, name, _read_tensors(path, {name: (_FLOATS, 2)}, {})[name])


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a features file; DataError where it is absent or no safetensors file."""
    from safetensors import SafetensorError, safe_open

    with readable(path):
        try:
            with open_user_file(path), safe_open(str(path), framework="numpy") as tensors:
                return sorted(tensors.keys())
        except FileNotFoundError:
            raise DataError(f"{path}: no such features file; 'varalign embed --features' writes one") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: not a whole safetensors file ({error}); write it anew") from None


def load_texts(path: Path, count: int) -> list[str] | None:
    """The texts beside a features file that has `count` of them; None where they are not there."""
    return read_strings(_beside(path, "texts"), count, "texts")


def _finite(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype=np.float32)
    blocks = (cast[start : start + _ROWS_AT_ONCE] for start in range(0, len(cast), _ROWS_AT_ONCE))
    bad = np.flatnonzero(~np.concatenate([np.isfinite(block).all(axis=1) for block in blocks]))
    if len(bad):
        raise DataError(
            f"{path}: {name} row {bad[0]} is not finite in float32 (NaN, infinity or above 3.4e38); {len(bad):,} rows "
            "are not"
        )
    return cast


def save_features(path: Path | str, features: FeatureSet, dtype: Literal["float16", "float32"] = "float16") -> None:
    """Write a features file and the files of its names and texts, where it has them; the features file comes last.

    Raises ValueError where a value does not fit the dtype, OSError where the file cannot be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype {dtype!r}: wanted float16 or float32")
    tensors: dict[str, NDArray[Any]] = {}
    for name, values in (("image_features", features.image_features), ("text_features", features.text_features)):
        with np.errstate(over="ignore"):
            tensors[name] = np.ascontiguousarray(values.astype(dtype))
        if not np.isfinite(tensors[name]).all():
            row = int(np.flatnonzero(~np.isfinite(tensors[name]).all(axis=1))[0])
            raise ValueError(f"{name} row {row} is not finite as {dtype}; write float32, or see what the encoder gave")
    tensors["text_image_ids"] = features.text_image_ids.astype(np.int64)
    tensors["split"] = features.split.astype(np.int8)
    tensors["image_ids"] = features.image_ids.astype(np.int64)
    beside = {_beside(path, "names"): features.image_names, _beside(path, "texts"): features.texts}
    with written_together(marker_of(path), [path, *beside]):
        for place, strings in beside.items():
            if strings is not None:
                write_strings(place, strings)
        # one entry: safetensors writes several in an order that differs from process to process
        write_atomically(path, save(tensors, metadata={"format": "varalign features 1"}))


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.stem}.{what}.jsonl")


def write_strings(path: Path, strings: Iterable[str]) -> None:
    """Write one JSON string a line, in ASCII: names may hold any line end and bytes that are not UTF-8."""
    write_atomically(path, "".join(f"{json.dumps(string)}\n" for string in strings).encode())


def read_strings(path: Path, count: int, what: str) -> list[str] | None:
    """The JSON strings of a file, one a line; None where it is absent, DataError where they are not `count` strings."""
    if not path.is_file():
        return None
    content = read_bytes(path).removesuffix(b"\n")
    strings = _array_of_strings(content)
    if len(strings) != content.count(b"\n") + 1:
        strings = [_string(path, number, line) for number, line in enumerate(content.split(b"\n"), 1)]
    if len(strings) != count:
        raise DataError(
            f"{path}: {len(strings):,} lines for {count:,} {what}; wanted one each, in the order of the rows"
        )
    return strings


def _array_of_strings(lines: bytes) -> list[str]:
    """The strings of all lines as one JSON array, in a fifth of the time of one after another; [] if it is none.

    No string goes over a line end, so that as many strings as lines are one a line.
    """
    try:
        values = json.loads(b"[" + lines.replace(b"\n", b",\n") + b"]")
    except (ValueError, RecursionError):
        return []
    return values if all(isinstance(value, str) for value in values) else []


def _string(path: Path, number: int, line: bytes) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, str):
        raise DataError(f'{path} line {number}: wanted a JSON string such as "a.jpg", got {shown(repr(line))}')
    return value


def _old_names(path: Path, count: int, notes: list[str]) -> list[str] | None:
    if not path.is_file():
        return None
    text = read_bytes(path).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    names = split_lines(text.removesuffix("\n"))
    if len(names) != count:
        notes.append(f"{path}: not read, it has {len(names):,} names for {count:,} images")
        return None
    return names


def _read_tensors(path: Path, wanted: _Kinds, optional: _Kinds) -> dict[str, NDArray[Any]]:
    """The tensors of these names, each of one of its dtypes and with its number of dimensions."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_user_file(path) as file:
            start = file.read(8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such features file; 'varalign embed --features' writes one") from None
    tensors = {}
    try:
        with safe_open(str(path), framework="numpy") as tensors_of, open_user_file(path) as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            data = file.tell()
            there = set(tensors_of.keys())
            absent = [name for name in wanted if name not in there]
            if absent:
                raise DataError(
                    f"{path}: no tensor {first_three(absent)}; it has {first_three(sorted(there)) or 'none'}"
                )
            for name, (dtypes, dimensions) in {**wanted, **optional}.items():
                if name not in there:
                    continue
                part = tensors_of.get_slice(name)
                shape = tuple(part.get_shape())
                if part.get_dtype() not in dtypes:
                    raise DataError(f"{path}: {name} has dtype {part.get_dtype()}, wanted one of {', '.join(dtypes)}")
                if len(shape) != dimensions or 0 in shape:
                    raise DataError(f"{path}: {name} has shape {shape}, wanted {dimensions} dimensions, none of them 0")
                file.seek(data + header[name]["data_offsets"][0])
                stored = np.dtype(f"<{part.get_dtype()[0].lower()}{int(part.get_dtype()[1:]) // 8}")
                tensors[name] = _read_array(file, name, shape, stored)
    except (SafetensorError, OSError) as error:
        pickled = start[:2] == b"PK" or start[:1] == b"\x80"
        mend = (
            "it looks like a PyTorch file: 'varalign convert' makes a safetensors file of it"
            if pickled
            else "write it anew"
        )
        raise DataError(f"{path}: not a whole safetensors file ({error}); {mend}") from None
    return tensors


def _check_range(path: Path, name: str, values: NDArray[Any], low: int, high: int, what: str) -> None:
    bad = np.flatnonzero((values < low) | (values > high))
    if len(bad):
        raise DataError(
            f"{path}: {name}[{bad[0]}] is {values[bad[0]]}, wanted {low} to {high} ({what}); {len(bad):,} are not"
        )


def _read_array(file: BinaryIO, name: str, shape: tuple[int, ...], stored: np.dtype[Any]) -> NDArray[Any]:
    """The array that follows in the file; float16 becomes float32, of which equal rows are the same, block by block.

    Read, not mapped: safetensors' own `get_tensor` holds the file and a copy of it in memory.
    """
    widened = stored == np.float16
    values = np.empty(shape, np.float32 if widened else stored)
    block = np.empty((min(len(values), _ROWS_AT_ONCE), *shape[1:]), stored) if widened else values
    for start in range(0, len(values), len(block)):
        part = block[: len(values) - start]
        if file.readinto(part.view(np.uint8).data) != part.nbytes:  # type: ignore[attr-defined]
            raise OSError(f"{name} is cut short")
        if widened:
            values[start : start + len(part)] = part
    return values


def _row_digests(values: NDArray[Any]) -> Iterator[bytes]:
    """A digest of each row (128 bits), without a copy of them all."""
    return (hashlib.blake2b(row.data, digest_size=16).digest() for row in np.ascontiguousarray(values))


def _canonical(values: Iterable[Any]) -> NDArray[np.int64]:
    """(I,) int64: for each entry the index of the first entry that is equal to it."""
    first: dict[Any, int] = {}
    return np.array([first.setdefault(value, row) for row, value in enumerate(values)], dtype=np.int64)
