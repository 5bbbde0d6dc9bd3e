"""The features file: what frozen encoders said about a data set, in one safetensors file.

Tensors: `image_features` (I, Dx) and `text_features` (T, Dy), float16, float32 or float64; `text_image_ids` (T,), the
row of each text's image; `split` (I,) 0 train, 1 dev, 2 test, -1 none; optionally `image_ids` (I,), equal for copies of
one image. Optionally `image_names.txt` beside it, one name a row. Nothing is read by pickle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError, first_three
from varalign.data.files import read_bytes, write_atomically
from varalign.data.index import CaptionIndex
from varalign.data.splits import limit_training, separate_twins

NAMES_FILE = "image_names.txt"
_FLOATS = ("F16", "F32", "F64")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "U16", "U32")


@dataclass(frozen=True)
class FeatureSet(CaptionIndex):
    """Features of I images and T texts.

    image_features: (I, Dx) float32. text_features: (T, Dy) float32. text_image_ids: (T,) int64 image rows. split: (I,)
    int8. image_ids: (I,) int64, equal for copies of one image; an id is never in two splits. image_names: (I,) or None.
    """

    image_features: NDArray[np.float32]
    text_features: NDArray[np.float32]
    text_image_ids: NDArray[np.int64]
    split: NDArray[np.int8]
    image_ids: NDArray[np.int64]
    image_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the features and whose they are; not of the splits."""
        digest = hashlib.sha256()
        for values in (self.image_features, self.text_features, self.text_image_ids):
            digest.update(str(values.shape).encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def limited(self, size: int | None, seed: int) -> FeatureSet:
        """The same with `size` training images drawn by `seed`; rows stand for names where there are none."""
        if size is None:
            return self
        names = self.image_names or [str(row) for row in range(len(self.split))]
        return replace(self, split=limit_training(self.split, names, size, seed))

    @property
    def caption_owner(self) -> NDArray[np.int64]:
        """(T,) int64: the image row that each caption belongs to."""
        return self.text_image_ids


def load_features(path: Path | str) -> FeatureSet:
    """Read a features file; images whose features are equal bit for bit count as one where it has no `image_ids`.

    Raises DataError for a file that is absent, damaged or no safetensors file, for missing tensors, wrong dtypes or
    shapes, ids out of range, values that are not finite, and images in a split that have no text.
    """
    path = Path(path)
    tensors = _read_tensors(path)
    raw_images = tensors["image_features"]
    with np.errstate(over="ignore"):
        images, texts = (np.ascontiguousarray(tensors[f"{side}_features"], np.float32) for side in ("image", "text"))
    owner, split = tensors["text_image_ids"], tensors["split"]
    for name, other in (("text_image_ids", texts), ("split", images), ("image_ids", images)):
        if name in tensors and tensors[name].shape != other.shape[:1]:
            raise DataError(f"{path}: {name} has shape {tensors[name].shape}, wanted ({len(other)},)")
    _check_range(path, "text_image_ids", owner, 0, len(images) - 1, f"rows of the {len(images):,} images")
    _check_range(path, "split", split, -1, 2, "0 train, 1 dev, 2 test, -1 none")
    for name, values in (("image_features", images), ("text_features", texts)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise DataError(
                f"{path}: {name} row {bad[0]} is not finite in float32 (NaN, infinity or above 3.4e38); "
                f"{len(bad):,} rows are not"
            )
    bare = np.flatnonzero((split >= 0) & (np.bincount(owner, minlength=len(images)) == 0))
    if len(bare):
        raise DataError(
            f"{path}: image row {bare[0]} is in a split and has no text; {len(bare):,} such rows: give them split -1"
        )
    split = split.astype(np.int8)
    image_ids = _canonical(tensors["image_ids"]) if "image_ids" in tensors else _canonical(_row_bytes(raw_images))
    notes = separate_twins(split, image_ids)
    return FeatureSet(
        images,
        texts,
        owner.astype(np.int64),
        split,
        image_ids,
        _read_names(path.parent / NAMES_FILE, len(images)),
        notes,
    )


def save_features(path: Path | str, features: FeatureSet, dtype: Literal["float16", "float32"] = "float16") -> None:
    """Write a features file, and `image_names.txt` beside it where there are names; both whole or not at all.

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
    write_atomically(path, save(tensors, metadata={"format": "varalign features", "version": "1"}))
    if features.image_names is not None:
        text = "".join(f"{name}\n" for name in features.image_names)
        write_atomically(path.parent / NAMES_FILE, text.encode("utf-8", "surrogateescape"))


def check_names_file(path: Path, image_names: list[str]) -> None:
    """Refuse to write features beside an `image_names.txt` that names other images: it belongs to another file.

    Raises DataError naming it.
    """
    names = path.parent / NAMES_FILE
    if names.is_file() and _decode_names(names) != image_names:
        raise DataError(f"{names}: names the images of another features file; write to another folder by --out")


def _decode_names(path: Path) -> list[str]:
    return read_bytes(path).decode("utf-8", "surrogateescape").removeprefix("\ufeff").splitlines()


def _read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"{path}: no such features file; 'varalign embed --features' writes one")
    wanted = {
        "image_features": (_FLOATS, 2),
        "text_features": (_FLOATS, 2),
        "text_image_ids": (_INTEGERS, 1),
        "split": (_INTEGERS, 1),
    }
    optional = {"image_ids": (_INTEGERS, 1)}
    tensors = {}
    try:
        with safe_open(str(path), framework="numpy") as file:
            there = set(file.keys())
            absent = [name for name in wanted if name not in there]
            if absent:
                raise DataError(
                    f"{path}: no tensor {first_three(absent)}; it has {first_three(sorted(there)) or 'none'}"
                )
            for name, (dtypes, dimensions) in {**wanted, **optional}.items():
                if name not in there:
                    continue
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                if part.get_dtype() not in dtypes:
                    raise DataError(f"{path}: {name} has dtype {part.get_dtype()}, wanted one of {', '.join(dtypes)}")
                if len(shape) != dimensions or 0 in shape:
                    raise DataError(f"{path}: {name} has shape {shape}, wanted {dimensions} dimensions, none of them 0")
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        start = _first_bytes(path)
        pickled = start[:2] == b"PK" or start[:1] == b"\x80"
        mend = (
            "it looks like a PyTorch file: 'varalign convert' makes a safetensors file of it"
            if pickled
            else "write it anew"
        )
        raise DataError(f"{path}: not a whole safetensors file ({error}); {mend}") from None
    return tensors


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError:
        return b""


def _check_range(path: Path, name: str, values: NDArray[Any], low: int, high: int, what: str) -> None:
    bad = np.flatnonzero((values < low) | (values > high))
    if len(bad):
        raise DataError(
            f"{path}: {name}[{bad[0]}] is {values[bad[0]]}, wanted {low} to {high} ({what}); {len(bad):,} are not"
        )


def _row_bytes(values: NDArray[Any]) -> NDArray[Any]:
    rows = np.ascontiguousarray(values)
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)


def _canonical(values: NDArray[Any]) -> NDArray[np.int64]:
    """(I,) int64: for each entry the index of the first entry that is equal to it."""
    first: dict[Any, int] = {}
    return np.array([first.setdefault(value, row) for row, value in enumerate(values.tolist())], dtype=np.int64)


def _read_names(path: Path, count: int) -> list[str] | None:
    if not path.is_file():
        return None
    names = _decode_names(path)
    if len(names) != count:
        raise DataError(
            f"{path}: {len(names):,} names for {count:,} images; wanted one a line, in the order of the rows"
        )
    return names
