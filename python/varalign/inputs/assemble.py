"""Chooses the sources of a run: cached features where a tower stays as it is, else live inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varalign.data.datasets import ImageCaptions
from varalign.data.decoded import DecodedCache, decoded_cache
from varalign.data.features import FeatureSet
from varalign.data.files import default_cache
from varalign.data.images import Augment
from varalign.data.noise import Noise, parse_noise
from varalign.data.ranks import world
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.specs import SIDES, Side
from varalign.encoders.towers import Towers
from varalign.inputs.feature_cache import GroupedTexts, image_rows, text_rows
from varalign.inputs.live import LiveCaptions, LiveImages
from varalign.inputs.open_data import Data
from varalign.inputs.parts import Inputs, Parts
from varalign.inputs.sources import FeatureRows, ImageSource, TextSource
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError

Say = Callable[[str], None]


def assemble(
    config: TrainConfig,
    data: Data,
    model: DualEncoder,
    say: Say,
    *,
    noise: Noise | None = None,
    sides: Sequence[Side] = SIDES,
) -> Parts:
    """`open_sources` for a whole model, which is on its device."""
    device = model.log_logit_scale.device
    return open_sources(config, data, model, device, say, noise=noise, sides=sides).with_model(model, config)


def open_sources(
    config: TrainConfig,
    data: Data,
    towers: Towers,
    device: torch.device,
    say: Say,
    *,
    noise: Noise | None = None,
    sides: Sequence[Side] = SIDES,
) -> Inputs:
    """Sources for towers: cached features where a tower is frozen and sees no augmentation, else live inputs.

    Args:
        config: the options, from `open_data`.
        data: the data, from `open_data`.
        towers: on the device.
        device: where inputs go.
        say: called with remarks on progress.
        noise: noise for the pixels of plain batches; else the options' noise goes into the pixels of training batches.
        sides: the sides that are needed; the source of another one has no rows.

    Raises:
        ConfigError: the features of a file are not as wide as the model takes them.
    """
    images: ImageSource
    texts: TextSource
    if isinstance(data, FeatureSet):
        found = (data.image_features.shape[1], data.text_features.shape[1])
        wanted = (towers.image_feature_dim, towers.text_feature_dim)
        if found != wanted:
            raise ConfigError(
                f"{config.features}: features of {found[0]} and {found[1]} dimensions, but the model takes "
                f"{wanted[0]}, {wanted[1]}"
            )
        images = FeatureRows(torch.from_numpy(data.image_features).to(device))
        texts = FeatureRows(torch.from_numpy(data.text_features).to(device))
    else:
        none = FeatureRows(torch.empty(0, 0, device=device))
        images = _image_source(config, data, towers, device, say, noise) if "image" in sides else none
        texts = _text_source(config, data, towers, device, say) if "text" in sides else none
    return Inputs(config, data, towers, images, texts, device)


def _image_source(
    config: TrainConfig, data: ImageCaptions, towers: Towers, device: torch.device, say: Say, noise: Noise | None
) -> ImageSource:
    encoder = towers.image_encoder
    assert encoder is not None
    in_pixels = noise if noise is not None else parse_noise(config.noise)
    frozen = towers.fully_frozen("image")
    augmented = config.augment if config.augment is not None else not frozen
    augment = Augment((config.crop_area, 1.0), flip=config.flip, jitter=(config.color_jitter,) * 3)
    live = LiveImages(
        paths=data.image_paths,
        names=data.image_names,
        preprocess=replace(encoder.preprocess, decode=config.decode),
        augment=augment if augmented else None,
        seed=config.seed,
        threads=config.threads,
        device=device,
        max_bad=config.max_bad,
        noise=in_pixels,
        noise_in="training" if noise is None else "plain",
    )
    if frozen and not augmented and not in_pixels.pixels:
        return image_rows(towers, live, cache_folder(config), say, config.feature_precision)
    if config.decoded_cache != "off":
        live.decoded = lambda: _decoded(config, data, live, say)
    return live


def _decoded(config: TrainConfig, data: ImageCaptions, live: LiveImages, say: Say) -> DecodedCache | None:
    folder, rows = cache_folder(config), data.rows("train")
    settings: dict[str, Any] = {"augment": live.augment, "rows": rows, "threads": config.threads, "say": say}
    try:
        return world().writer_first(lambda: decoded_cache(live.paths, live.preprocess, folder, **settings))
    except OSError as error:  # the run can go on without its cache
        say(f"decoded images are not kept: {folder} cannot be written: {error}; name another folder by --cache")
        return None


def _text_source(
    config: TrainConfig, data: ImageCaptions, towers: Towers, device: torch.device, say: Say
) -> TextSource:
    encoder = towers.text_encoder
    assert encoder is not None
    if not towers.fully_frozen("text"):
        return LiveCaptions(
            data.captions, encoder.tokenizer, device, word_dropout=config.word_dropout, seed=config.seed
        )

    def make(captions: Sequence[str]) -> FeatureRows:
        live = LiveCaptions(captions, encoder.tokenizer, device)
        return text_rows(towers, live, captions, cache_folder(config), say, config.feature_precision)

    if config.dataset_size is None:
        return make(data.captions)
    split = data.split[data.caption_owner]
    groups = np.select([split == 0, split > 0], [0, 1], 2).astype(np.int8)
    found = GroupedTexts(
        groups, lambda rows: make([data.captions[row] for row in rows.tolist()]), encoder.feature_dim, device
    )
    found.inputs(np.flatnonzero(split >= 0))
    return found


def cache_folder(config: TrainConfig) -> Path:
    """Where features of frozen towers are kept."""
    return Path(config.cache) if config.cache is not None else default_cache()
