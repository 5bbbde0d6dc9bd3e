"""The default recipe: the options of a run where nothing was said, as a function of its start and number of images.

From random weights the recipe is the usual one, with smaller batches for few images. Over frozen towers, voices are
fitted in closed form and mixed (`--voices`), and from `FEWEST_FOR_MEMBERS` training images on perceptrons are trained
from random weights beside them (`--members`). With `--voices none`, or an option that excludes voices, a residual is
trained on top of the closed form instead. With few images little is left for it to learn: its learning rate falls
faster than the number of images, and the rate of the closed form's map comes nearer to the residual's. Those rates were
the best on dev in bench/studies/schedules.toml (docs/evidence.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from varalign.options.config import TrainConfig
from varalign.options.fields import OPTIONS, RECIPE
from varalign.options.rules import idle_options
from varalign.options.voice_list import AUTO, FITTED, MEMBERS, NONE, voices_of

Start = Literal["closed-form", "random"]

RANDOM: Mapping[str, Any] = {
    "embedding_dim": 256,
    "head": "mlp",
    "hidden_dim": 512,
    "dropout": 0.1,
    "members": 0,
    "epochs": 30,
    "batch_size": 128,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "input_noise": 0.0,
    "captions_per_step": 1,
    "captions_as": "mean",
}

SCRATCH_TEXT: Mapping[str, Any] = {"captions_per_step": 5, "captions_as": "each", "lr": 3e-4}
"""Where the text encoder starts from random weights, a step has five captions of each image, each a positive: on
Flickr8k at 112 pixels, 12 epochs, test R@10 is 20 % instead of 14 %, in about the same time (one seed each)."""

SCRATCH_BATCHES = {0: 32, 1000: 64, 11_520: 128}
"""The batch of a text encoder from random weights, from so many training images on: 160 images in batches of 128 are
one step an epoch. 32 and 64 were measured at 600 and at 6,000 images, with the rate of 3e-4 (docs/evidence.md)."""

RESIDUAL: Mapping[str, Any] = {
    "head": "mlp",
    "hidden_dim": 1024,
    "dropout": 0.3,
    "members": 0,
    "epochs": 40,
    "batch_size": 256,
    "weight_decay": 0.0,
    "input_noise": 1.0,
    "captions_per_step": 2,
    "captions_as": "mean",
}

CLOSED_FORM: Mapping[str, Any] = {
    "head": "mlp",
    "hidden_dim": 512,
    "dropout": 0.0,
    "members": 8,
    "lr": 3e-3,
    "weight_decay": 0.05,
    "input_noise": 1.0,
    "captions_per_step": 1,
    "captions_as": "mean",
    "evaluations": 5,
}
"""Looks at dev are few, as each takes as long as half an epoch at 6,000 images."""

MEMBERS_IMAGES = 288_000
"""Images that members see in all, at 10 to 60 epochs. On two draws of 6,000 training images 48 epochs instead of 24
take half as much time again and lower the loss of dev, hubs corrected, from 2.277 to 2.219 and from 2.246 to 2.198; R@1
there hardly changes. Twice the steps of half the size, or three times the learning rate, change nothing at 8 epochs."""

FULL = 6000
"""Training images of that study, which also tuned the rates at a twentieth and a tenth of them."""


FEWEST_FOR_MEMBERS = 1000
"""Training images from which on members are trained where nothing is said."""


def recipe(start: Start, images: int, *, scratch_text: bool = False, residual: bool = False) -> dict[str, Any]:
    """The values of the recipe's options.

    Args:
        start: the start, `auto` resolved.
        images: training images, at least 1.
        scratch_text: whether the text encoder trains from random weights.
        residual: whether a residual is trained on top of the closed form, instead of members beside it.

    Example:
        At 6,000 images the residual's learning rate is 1e-3 and that of the map a tenth of it; at 600 images they are
        3.2e-5 and 0.3 of it.
    """
    if start == "random":
        batch_size = max(size for fewest, size in SCRATCH_BATCHES.items() if images >= fewest)
        return {**RANDOM, **SCRATCH_TEXT, "batch_size": batch_size} if scratch_text else dict(RANDOM)
    if not residual:  # at least three steps an epoch
        epochs = min(60, max(10, round(MEMBERS_IMAGES / images)))
        return {**CLOSED_FORM, "batch_size": min(256, max(32, images // 3)), "epochs": epochs}
    share = images / FULL
    lr = 1e-3 * min(1.0, max(0.03, share**1.5))
    map_lr = 0.1 * min(3.0, max(1.0, share**-0.5))
    return {**RESIDUAL, "lr": float(f"{lr:.2g}"), "map_lr": float(f"{map_lr:.2g}")}


def fill(config: TrainConfig, images: int, *, held_out: bool = True) -> TrainConfig:
    """The config with its start resolved and the recipe's values where nothing was said.

    Args:
        config: the options, validated.
        images: training images.
        held_out: whether there are dev and test splits; members are trained only where there are.
    """
    start = config.resolved_start
    residual = not config.takes_members or (config.voices == NONE and config.members == 0)
    values = recipe(start, images, scratch_text=config.scratch_text, residual=residual)
    if config.mixes_voices:
        listed = voices_of(config.voices)
        few = (images < FEWEST_FOR_MEMBERS or not held_out) and config.epochs is None and config.voices == AUTO
        if few or (listed and MEMBERS not in listed):
            values["members"] = 0
        members = values["members"] if config.members is None else config.members
        values["voices"] = ",".join((*(name for name in listed or FITTED if name != MEMBERS), *[MEMBERS][:members]))
        if not members:
            values["epochs"] = 0
            config = dataclasses.replace(config, epochs=0)
    else:
        values["voices"] = NONE
    values = {name: value for name, value in values.items() if getattr(config, name) in (None, AUTO)}
    return dataclasses.replace(config, start=start, **values)


def filled(config: TrainConfig, resolved: TrainConfig) -> str:
    """The options that the recipe gave, those without effect left out; empty where everything was said."""
    idle = idle_options(resolved)
    told = [name for name in RECIPE if getattr(config, name) is not None or name in idle]
    names = [name for name in RECIPE if name not in told and getattr(resolved, name) is not None]
    return " ".join(f"{OPTIONS[name].flag} {_shown(getattr(resolved, name))}" for name in names)


def described(name: str) -> str:
    """An option's defaults for the help: one value, or one for each start."""
    random = RANDOM.get(name)
    closed = CLOSED_FORM.get(name, "chosen on dev" if name == "embedding_dim" else None)
    members, residual = (_by_size(name, closed, residual=residual) for residual in (False, True))
    scratch = _by_size(name, random, start="random", scratch_text=True)
    values = {
        "": None if random is None else _shown(random),
        "closed-form start: ": None if members == _shown(random) else members,
        "with a residual: ": None if residual == members else residual,
        "text encoder from random weights: ": None if scratch == _shown(random) else scratch,
    }
    return "; ".join(label + value for label, value in values.items() if value is not None)


def _by_size(name: str, otherwise: Any, start: Start = "closed-form", **told: bool) -> str:
    low, high = (_shown(recipe(start, images, **told).get(name, otherwise)) for images in (FULL // 10, FULL))
    return low if low == high else f"{low} at 600 images, {high} at 6,000"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
