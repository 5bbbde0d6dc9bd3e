"""The features file: written and read back, and every way it can be wrong."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    odd = ["é", "\u2028", "\x85", "\n", '"', "\udcff"]  # the last is a byte of a name that is not UTF-8
    names, texts = [f"{odd[i]} {i}.jpg" for i in range(IMAGES)], [f"text\u2029 {i}" for i in range(T)]
    named = FeatureSet(**{**vars(features), "image_names": names, "texts": texts})
    path = tmp_path / "new" / "features.safetensors"
    path.parent.mkdir()
    save_features(path, named, dtype=dtype)  # type: ignore[arg-type]
    again = load_features(path)
    for name in ("image_features", "text_features", "text_image_ids", "split", "image_ids"):
        assert np.array_equal(getattr(again, name), getattr(features, name)), name
    assert (again.image_names, again.texts) == (names, texts)
    beside = ["features.names.jsonl", "features.safetensors", "features.texts.jsonl"]
    assert sorted(p.name for p in path.parent.iterdir()) == beside


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_dtypes(tmp_path: Path, dtype: type) -> None:
    features = load_features(written(tmp_path, image_features=tensors()["image_features"].astype(dtype)))
    assert np.array_equal(features.image_features, tensors()["image_features"].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_reading_takes_little_more_memory_than_the_arrays(
    tmp_path: Path, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varalign.data.features._ROWS_AT_ONCE", 1024)
    rng = np.random.default_rng(0)
    vectors = {"image_features": (2000, 512), "text_features": (10000, 384)}
    large = {name: rng.standard_normal(shape, dtype=np.float32).astype(dtype) for name, shape in vectors.items()}
    path = written(tmp_path, **large, text_image_ids=np.repeat(np.arange(2000), 5), split=np.zeros(2000, np.int8))
    tracemalloc.start()
    features = load_features(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * (features.image_features.nbytes + features.text_features.nbytes)
    for name, values in large.items():
        assert np.array_equal(getattr(features, name), values.astype(np.float32))


def test_equal_rows_are_one_image_and_in_one_split(tmp_path: Path) -> None:
    images = tensors()["image_features"]
    images[1] = images[4]
    images[0] = images[3]
    features = load_features(written(tmp_path, image_features=images))
    assert features.image_ids.tolist() == [0, 1, 2, 0, 1, 5]
    assert features.split.tolist() == [-1, 0, 1, 2, 0, -1]
    assert features.notes == ["1 images taken out of their split, copies of dev or test images: row 0"]


def test_without_splits_every_image_with_a_text_is_for_training(tmp_path: Path) -> None:
    owner = tensors()["text_image_ids"].copy()
    owner[owner == 2] = 3
    found = load_features(written(tmp_path, split=None, text_image_ids=owner))
    assert found.split.tolist() == [-1 if row == 2 or row not in owner else 0 for row in range(IMAGES)]


NAN = tensors()["text_features"]
NAN[[3, 8], [1, 0]] = [np.nan, np.inf]
BAD: dict[str, tuple[dict[str, NDArray[Any] | None], str]] = {
    "missing tensors": (
        {"split": None, "text_features": None},
        "no tensor text_features; it has image_features, text_image_ids",
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
    "not finite": (
        {"text_features": NAN},
        "text_features row 3 is not finite in float32 .*; 2 rows are not",
    ),
    "too large for float32": (
        {"image_features": np.array([[1e39] * DX] * IMAGES)},
        "image_features row 0 is not finite in float32 .*; 6 rows are not",
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


def test_names_and_texts_must_fit(tmp_path: Path) -> None:
    path = written(tmp_path)
    names = tmp_path / "features.names.jsonl"
    for text, message in [
        ('"a.jpg"\n"b.jpg"\n', "2 lines for 6 images; wanted one each"),
        ('"a.jpg"\n3\n', "line 2: wanted a JSON string such as"),
        ('"a", "b", "c"\n"d\ne"\n"f"\n"g"\n"h"\n', "line 1: wanted a JSON string"),  # 6 strings as one array
        ('"a"\n"b"\n"c"\n"d", "e"\n\n"f"\n', "line 4: wanted a JSON string"),
        ("a.jpg\n", "line 1: wanted a JSON string"),
        ("[" * 100_000, "line 1: wanted a JSON string"),
        ("", "line 1: wanted a JSON string"),
    ]:
        names.write_text(text)
        with pytest.raises(DataError, match=message):
            load_features(path)
    names.unlink()
    (tmp_path / "features.texts.jsonl").write_text('"one"\n')
    with pytest.raises(DataError, match="1 lines for 14 texts"):
        load_features(path)


def test_names_of_older_files_are_read_where_they_fit(tmp_path: Path) -> None:
    path, old = written(tmp_path), tmp_path / "image_names.txt"
    old.write_bytes("a.jpg\nb\u2028.jpg\nc\x85.jpg\nd.jpg\ne.jpg\nf.jpg\n".encode())
    assert load_features(path).image_names == ["a.jpg", "b\u2028.jpg", "c\x85.jpg", "d.jpg", "e.jpg", "f.jpg"]
    (tmp_path / "features.names.jsonl").write_text("".join(f'"{i}"\n' for i in range(IMAGES)))
    assert load_features(path).image_names == [str(i) for i in range(IMAGES)]
    (tmp_path / "features.names.jsonl").unlink()
    old.write_text("a.jpg\nb.jpg\n")
    features = load_features(path)
    assert features.image_names is None
    assert features.notes == [f"{old}: not read, it has 2 names for 6 images"]


def test_a_features_file_that_is_written_anew_leaves_no_old_names(tmp_path: Path) -> None:
    features = load_features(written(tmp_path))
    path = tmp_path / "new.safetensors"
    save_features(path, replace(features, image_names=[str(i) for i in range(IMAGES)]))
    save_features(path, features)
    assert load_features(path).image_names is None


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match="not a file but a (folder|named pipe)"):
        load_features(path)


@pytest.mark.parametrize("examples", [200, pytest.param(30_000, marks=pytest.mark.long)])
def test_any_damage_gives_features_or_a_data_error(tmp_path: Path, examples: int) -> None:
    whole = written(tmp_path).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "damaged.safetensors"
    names = st.none() | st.binary(max_size=60) | st.just(b'"a"\n' * IMAGES)

    @settings(max_examples=examples, deadline=None)
    @given(st.data(), names, names)
    def reads(data: st.DataObject, names: bytes | None, old_names: bytes | None) -> None:
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(0, 6))):
            place = data.draw(st.integers(0, header - 1) | st.integers(0, len(whole) - 1))
            damaged[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0129"{}[],:-'))
        path.write_bytes(damaged[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
        for place, content in ((tmp_path / "damaged.names.jsonl", names), (tmp_path / "image_names.txt", old_names)):
            place.unlink(missing_ok=True)
            if content is not None:
                place.write_bytes(content)
        try:
            found = load_features(path)
        except DataError as error:
            assert str(tmp_path) in str(error)
        else:
            assert np.isfinite(found.image_features).all() and found.text_image_ids.max() < len(found.split)
            assert found.image_names is None or len(found.image_names) == len(found.split)

    reads()


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
