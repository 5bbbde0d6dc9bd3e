"""Near-duplicates: the hash against the library's, pairs against a slow comparison, pictures that were changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from varalign.data.checks.near_duplicates import NearDuplicates, find_near_duplicates, pairs_above, perceptual_hash
from varalign.data.errors import DataError
from varalign.data.features import FeatureSet, save_features


def photo(seed: int) -> Image.Image:
    """A picture of random soft blobs: two seeds have nothing in common."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC)


def test_the_hash_is_that_of_the_library() -> None:
    imagehash = pytest.importorskip("imagehash")
    for seed in range(5):
        ours = perceptual_hash(np.asarray(photo(seed)))
        assert (ours == imagehash.phash(photo(seed), hash_size=16).hash.ravel()).all()


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_pairs_equal_those_of_a_slow_comparison(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varalign.data.checks.near_duplicates._ROWS", 64)
    signs = np.sign(np.random.default_rng(rows).normal(size=(rows, 16))).astype(np.float32)
    pairs, products = pairs_above(signs, 8)
    slow = [(i, j) for i in range(rows) for j in range(i + 1, rows) if signs[i] @ signs[j] >= 8]
    assert sorted(map(tuple, pairs.tolist())) == slow
    assert products.tolist() == [signs[i] @ signs[j] for i, j in pairs.tolist()]


def test_pictures_saved_anew_scaled_and_brightened_are_found_and_others_are_not(tmp_path: Path) -> None:
    whole = photo(0)
    pictures = {
        "whole": whole,
        "half": whole.resize((160, 120)),
        "contrast": ImageEnhance.Contrast(whole).enhance(0.7),
        "cut": whole.crop((1, 1, 319, 239)),
        **{f"other {seed}": photo(seed) for seed in range(1, 40)},
        "mirrored": whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }
    names = [*pictures, "unreadable"]
    for name, picture in pictures.items():
        picture.save(tmp_path / name, "JPEG", quality=40 if name == "half" else 90)
    (tmp_path / "unreadable").write_bytes(b"text")
    found = find_near_duplicates([tmp_path / name for name in names], names)
    assert sorted(map(tuple, found.pairs.tolist())) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert (found.bits <= 24).all() and np.isnan(found.cosine).all()
    groups = found.groups(np.arange(len(names)))
    assert len(set(groups[:4])) == 1 and len(set(groups.tolist())) == len(names) - 3


def test_groups_join_what_a_chain_of_pairs_and_copies_joins() -> None:
    found = NearDuplicates(np.array([[0, 1], [1, 2], [4, 5]]), np.zeros(3, np.int64), np.full(3, np.nan))
    groups = found.groups(np.array([0, 1, 2, 3, 4, 5, 3]))
    assert [groups.tolist().index(group) for group in groups] == [0, 0, 0, 3, 4, 4, 3]


def test_features_find_what_pixels_do_not(tmp_path: Path) -> None:
    """The file has its images in another order and one more; those of 1.jpg and 3.jpg are nearly equal."""
    names = [f"{number}.jpg" for number in range(6)]
    for number, name in enumerate(names):
        photo(number).save(tmp_path / name)
    rows = ["elsewhere.jpg", *names[::-1]]
    features = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32) + 100
    features[rows.index("3.jpg")] = features[rows.index("1.jpg")] + 0.01
    owner = np.arange(7)
    file = tmp_path / "f.safetensors"
    save_features(file, FeatureSet(features, features, owner, np.zeros(7, np.int8), owner, rows), dtype="float32")
    found = find_near_duplicates([tmp_path / name for name in names], names, features=file)
    assert found.pairs.tolist() == [[1, 3]] and found.cosine[0] > 0.99 and found.bits[0] > 24
    (tmp_path / "f.names.jsonl").write_text("".join(json.dumps(f"x{n}") + "\n" for n in range(7)))
    with pytest.raises(DataError, match="none of its images is among those of the data folder"):
        find_near_duplicates([tmp_path / name for name in names], names, features=file)
    (tmp_path / "f.names.jsonl").unlink()
    with pytest.raises(DataError, match="wanted the names of its images beside it"):
        find_near_duplicates([tmp_path / name for name in names], names, features=file)


def test_a_number_of_bits_that_says_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="--differing-bits 64: wanted 0 to 63 of 256"):
        find_near_duplicates([], [], bits=64)


def test_the_known_pair_of_flickr8k(shared_data: Path) -> None:
    folder = shared_data / "flickr8k_128" / "Images"
    pair = ["2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg"]
    names = sorted({*pair, *sorted(path.name for path in folder.iterdir())[::40]})
    found = find_near_duplicates([folder / name for name in names], names)
    assert [[names[row] for row in rows] for rows in found.pairs.tolist()] == [pair]
