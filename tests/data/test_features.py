"""The features file: written and read back, and every way it can be wrong."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, load_features, save_features

IMAGES, T, DX, DY = 6, 14, 5, 3  # images, texts, their dimensions


def tensors() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "image_features": rng.standard_normal((IMAGES, DX)).astype(np.float16),
        "text_features": rng.standard_normal((T, DY)).astype(np.float16),
        "text_image_ids": np.array([0, 0, 1, 2, 3, 4, 5, 5, 0, 1, 2, 3, 4, 4]),
        "split": np.array([0, 0, 1, 2, 0, -1]),
    }


def written(folder: Path, **changes: NDArray[Any] | None) -> Path:
    path = folder / "features.safetensors"
    save_file({k: v for k, v in {**tensors(), **changes}.items() if v is not None}, path)
    return path


def test_reading(tmp_path: Path) -> None:
    features = load_features(written(tmp_path))
    assert features.image_features.dtype == features.text_features.dtype == np.float32
    assert features.image_features.tolist() == tensors()["image_features"].astype(np.float32).tolist()
    assert features.rows("train").tolist() == [0, 1, 4]
    assert features.caption_rows([5, 0]).tolist() == [6, 7, 0, 1, 8]
    assert features.first_captions([4, 2]).tolist() == [5, 3]
    assert features.image_ids.tolist() == list(range(IMAGES))
    assert (features.image_names, features.notes) == (None, [])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_saved_is_read_back(tmp_path: Path, dtype: str) -> None:
    features = load_features(written(tmp_path, image_ids=np.array([0, 1, 2, 3, 0, 5])))
    named = FeatureSet(**{**vars(features), "image_names": [f"é {i}.jpg" for i in range(IMAGES)]})
    path = tmp_path / "new" / "features.safetensors"
    path.parent.mkdir()
    save_features(path, named, dtype=dtype)  # type: ignore[arg-type]
    again = load_features(path)
    for name in ("image_features", "text_features", "text_image_ids", "split", "image_ids"):
        assert np.array_equal(getattr(again, name), getattr(features, name)), name
    assert again.image_names == named.image_names
    assert sorted(p.name for p in path.parent.iterdir()) == ["features.safetensors", "image_names.txt"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_dtypes(tmp_path: Path, dtype: type) -> None:
    features = load_features(written(tmp_path, image_features=tensors()["image_features"].astype(dtype)))
    assert np.array_equal(features.image_features, tensors()["image_features"].astype(np.float32))


def test_equal_rows_are_one_image_and_in_one_split(tmp_path: Path) -> None:
    images = tensors()["image_features"]
    images[1] = images[4]
    images[0] = images[3]
    features = load_features(written(tmp_path, image_features=images))
    assert features.image_ids.tolist() == [0, 1, 2, 0, 1, 5]
    assert features.split.tolist() == [-1, 0, 1, 2, 0, -1]
    assert features.notes == ["1 images taken out of their split, copies of dev or test images: row 0"]


NAN = tensors()["text_features"]
NAN[[3, 8], [1, 0]] = [np.nan, np.inf]
BAD: dict[str, tuple[dict[str, NDArray[Any] | None], str]] = {
    "missing tensors": (
        {"split": None, "text_features": None},
        "no tensor text_features, split; it has image_features, text_image_ids",
    ),
    "wrong dtype": (
        {"image_features": np.zeros((IMAGES, DX), np.int32)},
        "image_features has dtype I32, wanted one of F16, F32",
    ),
    "float ids": ({"text_image_ids": np.zeros(T, np.float32)}, "text_image_ids has dtype F32, wanted one of I64"),
    "wrong dimensions": ({"text_features": np.zeros((T, DY, 1), np.float16)}, r"text_features has shape \(14, 3, 1\)"),
    "no columns": ({"text_features": np.zeros((T, 0), np.float16)}, r"text_features has shape \(14, 0\), wanted 2 dim"),
    "length of ids": (
        {"text_image_ids": np.zeros(T + 1, np.int64)},
        r"text_image_ids has shape \(15,\), wanted \(14,\)",
    ),
    "length of split": ({"split": np.zeros(IMAGES - 1, np.int64)}, r"split has shape \(5,\), wanted \(6,\)"),
    "length of image_ids": (
        {"image_ids": np.zeros(IMAGES - 1, np.int64)},
        r"image_ids has shape \(5,\), wanted \(6,\)",
    ),
    "id too large": ({"text_image_ids": np.full(T, IMAGES)}, r"text_image_ids\[0\] is 6, wanted 0 to 5 .* 14 are not"),
    "id negative": ({"text_image_ids": np.array([0] * 13 + [-1])}, r"text_image_ids\[13\] is -1, wanted 0 to 5"),
    "split unknown": ({"split": np.array([0, 0, 3, 0, 0, 0])}, r"split\[2\] is 3, wanted -1 to 2"),
    "too large for float32": (
        {"image_features": np.full((IMAGES, 3), 1e39)},
        "image_features row 0 is not finite in float32 .*; 6 rows are not",
    ),
    "not finite": (
        {"text_features": NAN},
        "text_features row 3 is not finite in float32 .NaN, infinity or above 3.4e38.; 2 rows are not",
    ),
    "image without text": (
        {"text_image_ids": np.array([0] * 13 + [1])},
        "image row 2 is in a split and has no text; 3 such",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_every_fault_is_named(tmp_path: Path, fault: str) -> None:
    changes, message = BAD[fault]
    with pytest.raises(DataError, match=message):
        load_features(written(tmp_path, **changes))


def test_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(DataError, match="no such features file"):
        load_features(path)
    for data in (
        b"",
        b"abc",
        b"\xff" * 64,
        (2**40).to_bytes(8, "little") + b"{}",
        (8).to_bytes(8, "little") + b"{" * 8,
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"not a whole safetensors file .*; write it anew"):
            load_features(path)
    path.write_bytes(pickle.dumps({"image_features": 1}))
    with pytest.raises(DataError, match="it looks like a PyTorch file: 'varalign convert'"):
        load_features(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match="not a whole safetensors file"):
            load_features(path)


def test_names_must_fit(tmp_path: Path) -> None:
    path = written(tmp_path)
    (tmp_path / "image_names.txt").write_text("a.jpg\nb.jpg\n")
    with pytest.raises(DataError, match=r"image_names\.txt: 2 names for 6 images"):
        load_features(path)


def test_values_that_do_not_fit_are_not_saved(tmp_path: Path) -> None:
    features = load_features(written(tmp_path))
    features.text_features[2, 1] = 1e6
    path = tmp_path / "large.safetensors"
    with pytest.raises(ValueError, match="text_features row 2 is not finite as float16; write float32"):
        save_features(path, features)
    assert not path.exists()
    save_features(path, features, dtype="float32")
    assert load_features(path).text_features[2, 1] == 1e6
    with pytest.raises(ValueError, match="dtype 'float64'"):
        save_features(path, features, dtype="float64")  # type: ignore[arg-type]


def test_the_real_features(shared_data: Path) -> None:
    features = load_features(shared_data / "features" / "flickr8k.safetensors")
    assert features.image_features.shape == (8091, 768)
    assert features.text_features.shape == (40455, 384)
    assert [len(features.rows(split)) for split in ("train", "dev", "test")] == [6000, 1000, 1000]
    assert features.image_names is not None
    assert len(features.image_names) == 8091
    assert len(set(features.image_ids.tolist())) == 8090, "one image is there twice"
