"""Features of images and texts that have no partner: `--unpaired-images` and `--unpaired-texts`.

Nothing of dev or test is among them: images that are nearly images of dev or test are left out (by their perceptual
hashes, or by their features where there are no files), and so are texts equal to captions of dev or test.

I unpaired images, T unpaired texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.checks.near_duplicates import DIFFERING, features_alike, files_alike
from varalign.data.datasets import ImageCaptions
from varalign.data.errors import DataError, first_three, shown
from varalign.data.features import FeatureSet, load_rows, load_texts
from varalign.data.files import cache_key, content_key
from varalign.data.images import core_key
from varalign.data.readers.image_folder import ImageFile, ImageFolder
from varalign.data.readers.reading import Reading
from varalign.data.readers.texts import read_texts
from varalign.data.same_captions import normalised, numbered
from varalign.encoders.specs import Side
from varalign.inputs.assemble import cache_folder
from varalign.inputs.feature_cache import image_rows, text_rows
from varalign.inputs.kept import Arrays, kept_arrays
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.open_data import Data
from varalign.inputs.parts import Inputs
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError

Say = Callable[[str], None]
Bools = NDArray[np.bool_]
FLAGS: dict[Side, str] = {"image": "--unpaired-images", "text": "--unpaired-texts"}
SAME_TEXT = 0.9999
"""Cosine of centred features from which on two texts count as equal where the texts themselves are not known."""


@dataclass(frozen=True)
class Unpaired:
    """Features of unpaired images and texts, on the device; a side that the options do not name has no row.

    Attributes:
        image_features: (I, Dx) float32. image_names: (I,); None where they are not known.
        text_features: (T, Dy) float32. texts: (T,); None where they are not known.
    """

    image_features: Tensor
    image_names: list[str] | None
    text_features: Tensor
    texts: list[str] | None


@dataclass(frozen=True)
class _Rows:
    """One side before anything is left out.

    Attributes:
        features: (N, D) on the device. names: (N,) or None: of the images, or the texts themselves.
        held_out: (N,) bool, which are of dev or test. unreadable: (N,) bool, which could not be read.
    """

    features: Tensor
    names: list[str] | None
    held_out: Bools
    unreadable: Bools


def open_unpaired(inputs: Inputs, say: Say) -> Unpaired | None:
    """The unpaired images and texts that the options name, through the frozen towers; None where they name none.

    Args:
        inputs: towers, and the data that nothing may be of.
        say: called with a line that counts what is left out.

    Raises:
        DataError: what is named is not there or cannot be read, or nothing of it is left.
        ConfigError: features of another width than the model takes, or what has no features for one that takes those.
    """
    config, towers = inputs.config, inputs.towers
    if config.unpaired_images is None and config.unpaired_texts is None:
        return None
    images = _side(inputs, "image", config.unpaired_images, towers.image_feature_dim, say)
    return Unpaired(*images, *_side(inputs, "text", config.unpaired_texts, towers.text_feature_dim, say))


def _side(inputs: Inputs, side: Side, named: str | None, width: int, say: Say) -> tuple[Tensor, list[str] | None]:
    """(N, D) features of the rows of one side that may be used, and their names or texts."""
    if named is None:
        return torch.zeros(0, width, device=inputs.device), None
    place = Path(named)
    if isinstance(inputs.data, FeatureSet):
        found = _of_file(inputs.data, side, place, inputs.device)
        if found.features.shape[1] != width:
            raise ConfigError(
                f"{FLAGS[side]} {place}: features of {found.features.shape[1]} dimensions, but the model takes {width}"
            )
    elif place.suffix == ".safetensors":
        raise ConfigError(
            f"{FLAGS[side]} {place}: holds features, and this run has encoders of its own: name the "
            f"{'folder of the images' if side == 'image' else 'file of the texts'} itself"
        )
    else:
        found = (_of_images if side == "image" else _of_texts)(inputs, inputs.data, place, say)
    kept = np.flatnonzero(~found.held_out & ~found.unreadable)
    say(f"{FLAGS[side]} {place.name}: {len(kept):,} {side}s{_left_out(side, found)}")
    if not len(kept):
        raise DataError(f"{FLAGS[side]} {place}: nothing is left of it; name other {side}s, or leave the option out")
    names = None if found.names is None else [found.names[row] for row in kept.tolist()]
    return found.features[torch.from_numpy(kept).to(inputs.device)], names


def _left_out(side: Side, found: _Rows) -> str:
    gone = np.flatnonzero(found.held_out)
    kind = "images that are nearly one" if side == "image" else "texts that are a caption"
    told = f"; {len(gone):,} {kind} of dev or test are left out" if len(gone) else ""
    if len(gone) and found.names is not None:
        told += f": {first_three([shown(found.names[row]) for row in gone.tolist()])}"
    bad = int(found.unreadable.sum())
    return told + (f"; {bad:,} cannot be read and are left out" if bad else "")


def _of_file(data: FeatureSet, side: Side, place: Path, device: torch.device) -> _Rows:
    """The rows of a features file; `data` are features too."""
    if place.suffix != ".safetensors":
        raise ConfigError(
            f"{FLAGS[side]} {place}: --features has no encoders for it; wanted a features file, as `varalign embed RUN "
            f"--features {FLAGS[side]} …` makes it with the encoders of a run"
        )
    features, held_out = load_rows(place, f"{side}_features"), np.flatnonzero(data.split > 0)
    texts = load_texts(place, len(features)) if side == "text" else None
    fits = features.shape[1] == (data.image_features if side == "image" else data.text_features).shape[1]
    if not fits:
        alike = np.zeros(len(features), dtype=np.bool_)  # refused by the caller
    elif side == "image":
        alike = features_alike(features, data.image_features[held_out]) >= 0
    elif texts is not None and data.texts is not None:
        alike = _held_out_texts(data, texts)
    else:
        others = data.text_features[data.caption_rows(held_out)]
        alike = features_alike(features, others, cosine=SAME_TEXT) >= 0
    return _Rows(torch.from_numpy(features).to(device), texts, alike, np.zeros_like(alike))


def _of_images(inputs: Inputs, data: ImageCaptions, place: Path, say: Say) -> _Rows:
    """The images of a folder, through the image tower."""
    config, encoder, files = inputs.config, inputs.towers.image_encoder, _listed(place, inputs.config)
    assert encoder is not None
    paths, names = [file.path for file in files], [file.name for file in files]
    preprocess = replace(encoder.preprocess, decode=config.decode)
    given = (config.seed, config.threads, inputs.device, config.max_bad)
    live = LiveImages(paths, names, preprocess, None, *given)
    found = image_rows(inputs.towers, live, cache_folder(config), say, config.feature_precision)
    unreadable = np.zeros(len(files), dtype=np.bool_)
    unreadable[list(found.unreadable)] = True
    held_out = [data.image_paths[row] for row in np.flatnonzero(data.split > 0).tolist()]
    key = cache_key("unpaired", core_key(), content_key(paths), content_key(held_out), DIFFERING)

    def make() -> Arrays:
        return {"alike": files_alike(paths, held_out, threads=config.threads or None)}

    alike = kept_arrays(cache_folder(config) / f"unpaired-{key}.safetensors", key, make, say=say)["alike"]
    return _Rows(found.matrix, names, alike >= 0, unreadable)


def _listed(place: Path, config: TrainConfig) -> list[ImageFile]:
    if not place.is_dir():
        raise DataError(f"{FLAGS['image']} {place}: there is no such folder; wanted a folder of images")
    folder = ImageFolder(place, follow_links=config.follow_links)
    found = [folder.find(name, lenient=False) for name in folder.all_names()]
    files = [file for file in found if file is not None]
    if not files:
        raise DataError(f"{FLAGS['image']} {place}: no image in it or in its subfolders")
    return files


def _of_texts(inputs: Inputs, data: ImageCaptions, place: Path, say: Say) -> _Rows:
    """The texts of a file, through the text tower; of equal ones the first."""
    config, encoder = inputs.config, inputs.towers.text_encoder
    assert encoder is not None
    texts, notes = read_texts(place, replace(Reading.of(config), image_column=None))
    for note in notes:
        say(note)
    texts = [texts[row] for row in np.unique(numbered(texts)).tolist()]
    live = LiveCaptions(texts, encoder.tokenizer, inputs.device)
    found = text_rows(inputs.towers, live, texts, cache_folder(config), say, config.feature_precision)
    alike = _held_out_texts(data, texts)
    return _Rows(found.matrix, texts, alike, np.zeros_like(alike))


def _held_out_texts(data: Data, texts: list[str]) -> Bools:
    """(N,) which texts are captions of dev or test."""
    captions = data.caption_texts or ()
    known = {normalised(captions[row]) for row in data.caption_rows(np.flatnonzero(data.split > 0)).tolist()}
    return np.array([normalised(text) in known for text in texts], dtype=np.bool_)
