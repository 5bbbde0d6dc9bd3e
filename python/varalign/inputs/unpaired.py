"""Features of images and texts that have no partner: `--unpaired-images`, `--unpaired-texts`, `--hub-correction FILE`.

Nothing that figures are judged on is among them, be it dev, test or the pairs of a cross-validation: images that are
nearly one of these are left out (by their perceptual hashes, or by their features where there are no files), and so are
texts equal to one of their captions.

I unpaired images, T unpaired texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.canonical.hub_correction import BANK_IMAGES, BANK_TEXTS
from varalign.data.checks.near_duplicates import DIFFERING, features_alike, files_alike
from varalign.data.datasets import ImageCaptions
from varalign.data.errors import DataError, first_three, shown
from varalign.data.features import FeatureSet, load_rows, load_texts, tensor_names
from varalign.data.files import cache_key, content_key
from varalign.data.images import core_key
from varalign.data.readers.image_folder import ImageFile, ImageFolder
from varalign.data.readers.reading import Reading
from varalign.data.readers.texts import read_texts
from varalign.data.same_captions import normalised, numbered
from varalign.encoders.specs import SIDES, Side
from varalign.inputs.assemble import cache_folder
from varalign.inputs.feature_cache import image_rows, text_rows
from varalign.inputs.kept import Arrays, kept_arrays
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.open_data import Data
from varalign.inputs.parts import Inputs
from varalign.inputs.sources import Rows
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.hub_sources import HUB_SOURCES
from varalign.options.voice_list import chooses_on_dev

Say = Callable[[str], None]
Bools = NDArray[np.bool_]
FLAGS: dict[Side, str] = {"image": "--unpaired-images", "text": "--unpaired-texts"}
BANK_FLAG = "--hub-correction"
SAME_TEXT = 0.9999
"""Cosine of centred features from which on two texts count as equal where the texts themselves are not known."""


@dataclass(frozen=True)
class Unpaired:
    """Features of unpaired images and texts, on the device; a side that is not named has no row.

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
        held_out: (N,) bool, which are judged on. unreadable: (N,) bool, which could not be read.
    """

    features: Tensor
    names: list[str] | None
    held_out: Bools
    unreadable: Bools


@dataclass(frozen=True)
class _Named:
    """What an option names as one side's images or texts: the option's flag, and the place."""

    flag: str
    side: Side
    place: Path

    def __str__(self) -> str:
        return f"{self.flag} {self.place}"


def open_unpaired(inputs: Inputs, say: Say) -> Unpaired | None:
    """The unpaired images and texts that the options name, through the frozen towers; None where they name none.

    Args:
        inputs: towers, and the data that nothing may be of.
        say: called with a line that counts what is left out.

    Raises:
        DataError: what is named is not there or cannot be read, or nothing of it is left.
        ConfigError: features of another width than the model takes, or what has no features for one that takes those.
    """
    places: dict[Side, str | None] = {"image": inputs.config.unpaired_images, "text": inputs.config.unpaired_texts}
    named = {side: _Named(FLAGS[side], side, Path(place)) for side, place in places.items() if place is not None}
    return _opened(inputs, named, say) if named else None


def fills_a_bank(found: Unpaired, data: Data) -> bool:
    """Whether unpaired queries are a bank for hub correction: on each side that they have, at least half as many as
    those of the larger of train and dev.
    """
    rows = max(data.rows("train"), data.rows("dev"), key=len)
    images = len(found.image_features), min(len(rows), BANK_IMAGES)
    texts = len(found.text_features), min(len(data.caption_rows(rows)), BANK_TEXTS)
    return all(2 * count >= wanted for count, wanted in (images, texts) if count)


def open_bank(inputs: Inputs, place: Path, say: Say) -> Unpaired:
    """The queries that `--hub-correction FILE` names: a folder of images, a file of texts, or a features file.

    Args, Raises: as `open_unpaired`.
    """
    sides: list[Side] = ["image"] if place.is_dir() else ["text"]
    if place.suffix == ".safetensors":
        there = tensor_names(place)
        sides = [side for side in SIDES if f"{side}_features" in there]
        if not sides:
            raise DataError(f"{BANK_FLAG} {place}: holds neither image_features nor text_features")
    elif not place.exists():
        raise DataError(
            f"{BANK_FLAG} {place}: there is no such file or folder; wanted {', '.join(HUB_SOURCES)}, a features file, "
            "a file of texts or a folder of images"
        )
    return _opened(inputs, {side: _Named(BANK_FLAG, side, place) for side in sides}, say)


def _opened(inputs: Inputs, named: Mapping[Side, _Named], say: Say) -> Unpaired:
    towers = inputs.towers
    widths: dict[Side, int] = {"image": towers.image_feature_dim, "text": towers.text_feature_dim}
    found: list[tuple[Tensor, list[str] | None]] = []
    for side, width in widths.items():
        if side in named:
            found.append(_side(inputs, named[side], width, say))
        else:
            found.append((torch.zeros(0, width, device=inputs.device), None))
    return Unpaired(*found[0], *found[1])


def _side(inputs: Inputs, named: _Named, width: int, say: Say) -> tuple[Tensor, list[str] | None]:
    """(N, D) features of the rows of one side that may be used, and their names or texts."""
    side, place = named.side, named.place
    judged, told = _judged(inputs)
    if isinstance(inputs.data, FeatureSet):
        found = _of_file(inputs.data, named, judged, inputs.device)
        if found.features.shape[1] != width:
            raise ConfigError(
                f"{named}: {side} features of {found.features.shape[1]} dimensions, but the model takes {width}"
            )
    elif place.suffix == ".safetensors":
        raise ConfigError(
            f"{named}: holds features, and this run has encoders of its own: name the "
            f"{'folder of the images' if side == 'image' else 'file of the texts'} itself"
        )
    else:
        found = (_of_images if side == "image" else _of_texts)(inputs, inputs.data, named, judged, say)
    kept = np.flatnonzero(~found.held_out & ~found.unreadable)
    say(f"{named.flag} {place.name}: {len(kept):,} {side}s{_left_out(side, found, told)}")
    if not len(kept):
        raise DataError(f"{named}: nothing is left of it; name other {side}s, or leave the option out")
    names = None if found.names is None else [found.names[row] for row in kept.tolist()]
    return found.features[torch.from_numpy(kept).to(inputs.device)], names


def _judged(inputs: Inputs) -> tuple[Rows, str]:
    """The image rows that choices or figures are judged on, and a name: dev and test, or all by cross-validation."""
    data = inputs.data
    dev, test = len(data.rows("dev")), len(data.rows("test"))
    if test and chooses_on_dev(inputs.config.settings, dev, test):
        return np.flatnonzero(data.split > 0), "dev or test"
    return np.flatnonzero(data.split >= 0), "the pairs, which a cross-validation judges"


def _left_out(side: Side, found: _Rows, judged: str) -> str:
    gone = np.flatnonzero(found.held_out)
    kind = "images that are nearly one" if side == "image" else "texts that are a caption"
    told = f"; {len(gone):,} {kind} of {judged} are left out" if len(gone) else ""
    if len(gone) and found.names is not None:
        told += f": {first_three([shown(found.names[row]) for row in gone.tolist()])}"
    bad = int(found.unreadable.sum())
    return told + (f"; {bad:,} cannot be read and are left out" if bad else "")


def _of_file(data: FeatureSet, named: _Named, judged: Rows, device: torch.device) -> _Rows:
    """The rows of a features file; `data` are features too."""
    side, place = named.side, named.place
    if place.suffix != ".safetensors":
        if not place.exists():
            raise ConfigError(f"{named}: no such file")
        raise ConfigError(
            f"{named}: --features has no encoders for it; wanted a features file, as `varalign embed RUN "
            f"--features {FLAGS[side]} …` makes it with the encoders of a run"
        )
    features = load_rows(place, f"{side}_features")
    texts = load_texts(place, len(features)) if side == "text" else None
    fits = features.shape[1] == (data.image_features if side == "image" else data.text_features).shape[1]
    if not fits:
        alike = np.zeros(len(features), dtype=np.bool_)  # refused by the caller
    elif side == "image":
        alike = features_alike(features, data.image_features[judged]) >= 0
    elif texts is not None and data.texts is not None:
        alike = _captions_among(data, judged, texts)
    else:
        others = data.text_features[data.caption_rows(judged)]
        alike = features_alike(features, others, cosine=SAME_TEXT) >= 0
    return _Rows(torch.from_numpy(features).to(device), texts, alike, np.zeros_like(alike))


def _of_images(inputs: Inputs, data: ImageCaptions, named: _Named, judged: Rows, say: Say) -> _Rows:
    """The images of a folder, through the image tower."""
    config, encoder, files = inputs.config, inputs.towers.image_encoder, _listed(named, inputs.config)
    assert encoder is not None
    paths, names = [file.path for file in files], [file.name for file in files]
    preprocess = replace(encoder.preprocess, decode=config.decode)
    given = (config.seed, config.threads, inputs.device, config.max_bad)
    live = LiveImages(paths, names, preprocess, None, *given)
    found = image_rows(inputs.towers, live, cache_folder(config), say, config.feature_precision)
    unreadable = np.zeros(len(files), dtype=np.bool_)
    unreadable[list(found.unreadable)] = True
    held_out = [data.image_paths[row] for row in judged.tolist()]
    key = cache_key("unpaired", core_key(), content_key(paths), content_key(held_out), DIFFERING)

    def make() -> Arrays:
        return {"alike": files_alike(paths, held_out, threads=config.threads or None)}

    alike = kept_arrays(cache_folder(config) / f"unpaired-{key}.safetensors", key, make, say=say)["alike"]
    return _Rows(found.matrix, names, alike >= 0, unreadable)


def _listed(named: _Named, config: TrainConfig) -> list[ImageFile]:
    if not named.place.is_dir():
        raise DataError(f"{named}: there is no such folder; wanted a folder of images")
    folder = ImageFolder(named.place, follow_links=config.follow_links)
    found = [folder.find(name, lenient=False) for name in folder.all_names()]
    files = [file for file in found if file is not None]
    if not files:
        raise DataError(f"{named}: no image in it or in its subfolders")
    return files


def _of_texts(inputs: Inputs, data: ImageCaptions, named: _Named, judged: Rows, say: Say) -> _Rows:
    """The texts of a file, through the text tower; of equal ones the first."""
    config, encoder = inputs.config, inputs.towers.text_encoder
    assert encoder is not None
    texts, notes = read_texts(named.place, replace(Reading.of(config), image_column=None))
    for note in notes:
        say(note)
    texts = [texts[row] for row in np.unique(numbered(texts)).tolist()]
    live = LiveCaptions(texts, encoder.tokenizer, inputs.device)
    found = text_rows(inputs.towers, live, texts, cache_folder(config), say, config.feature_precision)
    alike = _captions_among(data, judged, texts)
    return _Rows(found.matrix, texts, alike, np.zeros_like(alike))


def _captions_among(data: Data, judged: Rows, texts: list[str]) -> Bools:
    """(N,) which texts are captions of these images."""
    captions = data.caption_texts or ()
    known = {normalised(captions[row]) for row in data.caption_rows(judged).tolist()}
    return np.array([normalised(text) in known for text in texts], dtype=np.bool_)
