"""The default recipe: what a run does where nothing was said, as a rule of its start and its number of images.

From random weights the recipe is the usual one. From the closed form little is left to learn, and the fewer images, the
less: the learning rate falls faster than their number, and the map moves nearer the residual's pace. The rates are
those that were best on dev in bench/studies/schedules.toml (docs/evidence.md). No torch here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from varalign.training.config import RECIPE, TrainConfig

RANDOM: Mapping[str, Any] = {
    "embedding_dim": 256,
    "head": "mlp",
    "hidden_dim": 512,
    "dropout": 0.1,
    "epochs": 30,
    "batch_size": 128,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "input_noise": 0.0,
    "captions_per_step": 1,
    "captions_as": "mean",
}

SCRATCH_TEXT: Mapping[str, Any] = {"captions_per_step": 5, "captions_as": "each"}
"""A text encoder that starts from random weights sees all of an image's usual five captions beside it: on Flickr8k at
112 pixels, 12 epochs, test R@10 is 20 % instead of 14 %, in about the same time (one seed each)."""

CLOSED_FORM: Mapping[str, Any] = {
    "head": "mlp",
    "hidden_dim": 1024,
    "dropout": 0.3,
    "epochs": 40,
    "batch_size": 256,
    "weight_decay": 0.0,
    "input_noise": 1.0,
    "captions_per_step": 2,
    "captions_as": "mean",
}

FULL = 6000
"""Training images of the study; its rates at a twentieth and a tenth of them are the rules' other points."""


def recipe(start: Literal["closed-form", "random"], images: int, *, scratch_text: bool = False) -> dict[str, Any]:
    """The values of the recipe's options.

    Args:
        start: the start, `auto` resolved.
        images: training images, at least 1.
        scratch_text: whether the text encoder trains from random weights.

    Example:
        At 6,000 images the closed-form start trains at a rate of 1e-3 and its map at a tenth of that; at 600 at 3.2e-5
        and at 0.3 of it.
    """
    if start == "random":
        return {**RANDOM, **SCRATCH_TEXT} if scratch_text else dict(RANDOM)
    share = images / FULL
    lr = 1e-3 * min(1.0, max(0.03, share**1.5))
    map_lr = 0.1 * min(3.0, max(1.0, share**-0.5))
    return {**CLOSED_FORM, "lr": float(f"{lr:.2g}"), "map_lr": float(f"{map_lr:.2g}")}


def fill(config: TrainConfig, images: int) -> TrainConfig:
    """The config with its start resolved and the recipe's values where nothing was said.

    Args:
        config: the options, validated.
        images: training images.
    """
    start = config.resolved_start
    values = recipe(start, images, scratch_text=config.scratch_text)
    values = {name: value for name, value in values.items() if getattr(config, name) is None}
    return dataclasses.replace(config, start=start, **values)


def filled(config: TrainConfig, resolved: TrainConfig) -> str:
    """What the recipe put in, as options; empty where everything was said."""
    names = [name for name in RECIPE if getattr(config, name) is None and getattr(resolved, name) is not None]
    return " ".join(f"--{name.replace('_', '-')} {_shown(getattr(resolved, name))}" for name in names)


def described(name: str) -> str:
    """An option's defaults for the help: one value, or one a start."""
    random = RANDOM.get(name)
    closed = CLOSED_FORM.get(name, "chosen on dev" if name == "embedding_dim" else None)
    if closed is None:
        low, high = (recipe("closed-form", images)[name] for images in (FULL // 10, FULL))
        closed = f"{low:g} at 600 images, {high:g} from 6,000"
        return f"closed-form start: {closed}" if random is None else f"{_shown(random)}; closed-form start: {closed}"
    shown = _shown(random) if closed == random else f"{_shown(random)}; closed-form start: {_shown(closed)}"
    return f"{shown}; text encoder from random weights: {_shown(SCRATCH_TEXT[name])}" if name in SCRATCH_TEXT else shown


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
