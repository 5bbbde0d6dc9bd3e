"""Cached features belong to the content of the files, and are used only where the cache file is sound."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from torch import Tensor
from varalign.data.errors import DataError
from varalign.data.images import Preprocess
from varalign.data.tokens.tokenizers import word_tokenizer
from varalign.encoders.base import ImageEncoder, TextEncoder
from varalign.encoders.specs import SIDES
from varalign.encoders.towers import Towers
from varalign.inputs import feature_cache
from varalign.inputs.assemble import open_sources
from varalign.inputs.kept import _checksum
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.open_data import open_data
from varalign.inputs.sources import FeatureRows
from varalign.options.config import TrainConfig

CAPTIONS = ["a red square", "a blue one", "a red square"]


class MeanColour(ImageEncoder):
    """Features are the mean of each channel; counts how many images it has seen."""

    feature_dim, spec, has_source, preprocess = 3, "mean", True, Preprocess(size=8)
    seen = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return pixels.mean((2, 3))

    def architecture(self) -> dict[str, Any]:
        return {"kind": "mean"}


class Lengths(TextEncoder):
    """Features are a text's number of tokens."""

    feature_dim, spec, has_source = 1, "lengths", True
    tokenizer = word_tokenizer(CAPTIONS)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return lengths[:, None].float()

    def architecture(self) -> dict[str, Any]:
        return {"kind": "lengths"}


@pytest.fixture
def towers() -> Towers:
    return Towers(MeanColour(), Lengths())


def pictures(folder: Path, colours: list[tuple[int, int, int]]) -> list[Path]:
    """BMP files, whose size does not depend on the colour, all of one time."""
    folder.mkdir()
    paths = [folder / f"{number}.bmp" for number in range(len(colours))]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (8, 8), colour).save(path)
        os.utime(path, ns=(10**18, 10**18))
    return paths


def images_of(paths: list[Path], towers: Towers, cache: Path, said: list[str]) -> FeatureRows:
    assert isinstance(towers.image_encoder, MeanColour)
    live = LiveImages(
        paths, [path.name for path in paths], Preprocess(size=8), None, 0, 1, torch.device("cpu"), max_bad=0.5
    )
    return feature_cache.image_rows(towers, live, cache, said.append)


def texts_of(towers: Towers, cache: Path, said: list[str], captions: list[str] = CAPTIONS) -> FeatureRows:
    live = LiveCaptions(captions, Lengths.tokenizer, torch.device("cpu"))
    return feature_cache.text_rows(towers, live, captions, cache, said.append)


def test_the_second_time_no_tower_runs(tmp_path: Path, towers: Towers) -> None:
    paths = pictures(tmp_path / "a", [(255, 0, 0), (0, 0, 255)])
    (tmp_path / "a" / "bad.bmp").write_bytes(b"no picture")
    paths.append(tmp_path / "a" / "bad.bmp")
    said: list[str] = []
    first = images_of(paths, towers, tmp_path / "cache", said)
    assert towers.image_encoder.seen == 2 and not first.matrix[2].any()
    again = images_of(paths, towers, tmp_path / "cache", said)
    assert towers.image_encoder.seen == 2 and torch.equal(again.matrix, first.matrix)
    assert again.unreadable == first.unreadable and list(first.unreadable) == [2] and "bad.bmp" in first.unreadable[2]
    assert said == ["image features: 3 rows from the cache"]
    assert torch.equal(texts_of(towers, tmp_path / "cache", said).matrix, texts_of(towers, tmp_path, said).matrix)


def test_equal_names_sizes_and_times_are_not_equal_images(tmp_path: Path, towers: Towers) -> None:
    red, blue = pictures(tmp_path / "a", [(255, 0, 0)]), pictures(tmp_path / "b", [(0, 0, 255)])
    found = [images_of(paths, towers, tmp_path / "cache", []).matrix for paths in (red, blue)]
    assert not torch.equal(*found) and towers.image_encoder.seen == 2
    assert torch.equal(images_of(blue, towers, tmp_path / "cache", []).matrix, found[1])
    red[0].write_bytes(blue[0].read_bytes())  # in place, and the time put back
    os.utime(red[0], ns=(10**18, 10**18))
    assert torch.equal(images_of(red, towers, tmp_path / "cache", []).matrix, found[1])


def test_texts_run_by_length_and_their_features_stand_in_the_order_of_the_captions(
    tmp_path: Path, towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [" ".join(["red"] * (1 + row * 7 % 13)) for row in range(150)]
    widths: list[int] = []
    monkeypatch.setattr(
        Lengths, "forward", lambda self, ids, lengths: widths.append(len(ids)) or lengths[:, None] * 1.0
    )
    tokenizer = Lengths.tokenizer
    source = LiveCaptions(captions, tokenizer, torch.device("cpu"))
    found = feature_cache.text_rows(towers, source, captions, tmp_path, lambda line: None)
    assert found.matrix[:, 0].tolist() == tokenizer(captions).lengths.tolist() and widths == [64, 64, 22]
    ordered = tokenizer(captions).lengths[source.by_length(np.arange(150))]
    assert (np.diff(ordered) <= 0).all() and ordered[0] > ordered[-1]


def test_a_run_on_few_images_encodes_their_captions_and_those_of_dev_and_test(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 / 10 / 10 images of two captions; the others' captions are encoded when one of them is asked for."""
    config = TrainConfig(data=str(image_folder), cache=str(tmp_path), dataset_size=20, image_size=8)
    config, data = open_data(config, lambda line: None)
    towers = Towers(MeanColour(), Lengths())
    for side in SIDES:
        towers.freeze(side)
    seen: list[int] = []
    forward = Lengths.forward
    monkeypatch.setattr(
        Lengths, "forward", lambda self, ids, lengths: seen.append(len(ids)) or forward(self, ids, lengths)
    )
    texts = open_sources(config, data, towers, torch.device("cpu"), lambda line: None).texts
    needed = np.concatenate([data.caption_rows(data.rows(split)) for split in ("train", "dev", "test")])
    texts.inputs(needed)
    assert sum(seen) == len(needed) == 2 * (20 + 10 + 10)
    backwards = np.arange(160)[::-1].copy()
    found = texts.features(towers, texts.inputs(backwards))
    assert sum(seen) == 160
    lengths = Lengths.tokenizer(data.captions).lengths
    assert found[:, 0].tolist() == lengths[::-1].tolist()
    again = open_sources(config, data, towers, torch.device("cpu"), lambda line: None).texts
    assert torch.equal(again.inputs(backwards)[0], found) and sum(seen) == 160


@pytest.mark.parametrize("taken", [True, False])
def test_bfloat16_is_taken_where_a_sample_keeps_its_cosine(
    tmp_path: Path, towers: Towers, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    """Texts of 1 to 13 words; in bf16 a tower that is not near enough sees the texts another way round."""
    captions = [" ".join(["red"] * (1 + row * 7 % 13)) for row in range(150)]

    def forward(self: Lengths, ids: Tensor, lengths: Tensor) -> Tensor:
        half = torch.is_autocast_enabled("cpu")
        return torch.stack([lengths.float(), (1e-3 if taken else 1.0) * half * lengths], dim=1)

    monkeypatch.setattr(Lengths, "forward", forward)
    monkeypatch.setattr(Lengths, "feature_dim", 2)
    said: list[str] = []
    source = LiveCaptions(captions, Lengths.tokenizer, torch.device("cpu"))
    towers = Towers(towers.image_encoder, Lengths())
    found = feature_cache.text_rows(towers, source, captions, tmp_path, said.append, "bf16").matrix
    exact = feature_cache.text_rows(towers, source, captions, tmp_path, lambda line: None).matrix
    assert torch.equal(found[:, 0], exact[:, 0]) and bool(found[:, 1].all()) == taken and not exact[:, 1].any()
    lines = ["text features: made in fp32, in bf16 a cosine of 0.70711 was below 0.9999"]
    assert said == ([] if taken else lines)


def test_captions_are_part_of_the_key(tmp_path: Path, towers: Towers) -> None:
    one = texts_of(towers, tmp_path, [])
    other = texts_of(towers, tmp_path, [], ["red", "a blue one", "a red square"])
    assert one.matrix.tolist() == [[5.0], [5.0], [5.0]] and other.matrix.tolist() == [[3.0], [5.0], [5.0]]


def rewritten(path: Path, **changes: np.ndarray) -> None:
    """The cache file with other arrays under a right checksum, as a faulty writer would leave it."""
    arrays = load_file(path)
    key = arrays.pop("_key")
    arrays = {**arrays, **changes}
    arrays["_sha256"] = _checksum(key.tobytes().decode(), {k: v for k, v in arrays.items() if k != "_sha256"})
    save_file({**arrays, "_key": key}, path)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_last_byte, "damaged (its checksum differs)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged ("),
        (lambda path: path.write_bytes(b""), "damaged ("),
        (lambda path: path.write_bytes(b"\xff" * 100), "damaged ("),
        (lambda path: save_file({"features": np.zeros((2, 3), np.float32)}, path), "written by another version"),
        (lambda path: rewritten(path, features=np.full((2, 3), np.nan, np.float32)), "features holds NaN or infinity"),
        (lambda path: rewritten(path, features=np.zeros((2, 3))), "features is no float32 array of (2, 3)"),
        (lambda path: rewritten(path, features=np.zeros((3, 2), np.float32)), "features is no float32 array of (2, 3)"),
        (lambda path: (path.unlink(), path.mkdir()), "not a file but a folder"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "not a file but a named pipe"),
    ],
)
def test_a_damaged_file_is_made_anew_and_said(tmp_path: Path, towers: Towers, damage: Any, reason: str) -> None:
    paths = pictures(tmp_path / "a", [(255, 0, 0), (0, 0, 255)])
    wanted = images_of(paths, towers, tmp_path / "cache", []).matrix
    (file,) = (tmp_path / "cache").iterdir()
    damage(file)
    said: list[str] = []
    assert torch.equal(images_of(paths, towers, tmp_path / "cache", said).matrix, wanted)
    assert said[0].startswith(f"{file}: ") and reason in said[0] and said[0].endswith("; made anew")
    if not file.is_dir():
        said.clear()
        images_of(paths, towers, tmp_path / "cache", said)
        assert said == ["image features: 2 rows from the cache"], "the new file is sound"


def test_images_that_change_while_they_are_read_are_no_one_s_features(
    tmp_path: Path, towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = pictures(tmp_path / "a", [(255, 0, 0)])
    forward = MeanColour.forward

    def meanwhile(self: MeanColour, pixels: Tensor) -> Tensor:
        Image.new("RGB", (8, 8), (0, 255, 0)).save(paths[0])
        return forward(self, pixels)

    monkeypatch.setattr(MeanColour, "forward", meanwhile)
    with pytest.raises(DataError, match="image files have changed while their features were made"):
        images_of(paths, towers, tmp_path / "cache", [])
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, towers: Towers) -> None:
    (tmp_path / "cache").write_text("a file")
    said: list[str] = []
    assert texts_of(towers, tmp_path / "cache", said).matrix.tolist() == [[5.0], [5.0], [5.0]]
    assert "not kept, it cannot be written" in said[-1]
