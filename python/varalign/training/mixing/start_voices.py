"""The start of a run by voices: fitted and weighed on held-out pairs, and put into the model's heads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from varalign.canonical.voices.fit import Fitted, Mixture
from varalign.canonical.voices.pooled import JudgedPart, pooled
from varalign.canonical.voices.voice_pairs import Pairs
from varalign.data.tokens.lexicon import Lexicon
from varalign.encoders.dual_encoder import INITIAL_LOGIT_SCALE, MAX_LOGIT_SCALE, DualEncoder
from varalign.encoders.ensemble import Members
from varalign.encoders.head_shape import MEMBER_DIM, HeadShape
from varalign.encoders.specs import SIDES
from varalign.encoders.voices_head import VoicesHead
from varalign.inputs.parts import Inputs, Parts
from varalign.inputs.unpaired import Unpaired
from varalign.options.declaration import ConfigError
from varalign.options.recipe import FEWEST_FOR_MEMBERS
from varalign.options.voice_list import EVERY_PAIR
from varalign.training.mixing.fold_members import out_of_fold_share
from varalign.training.mixing.material import Material
from varalign.training.mixing.nested import check_images

Say = Callable[[str], None]
Look = dict[str, Any]
"""Figures as an evaluation on dev gives them."""


@dataclass(frozen=True)
class VoicesChoice:
    """What the start found, as written to `config.json`.

    Attributes:
        settings: what it was chosen on: "dev" or "cv".
        fitted_on: "train", or "every pair", those of dev too.
        weights: of each voice among the fitted ones, 0 for one that was tried and not kept.
        trials: ridge, text_ridge, power and dimensions of each voice that has them.
        tried: number of settings tried.
        pairs: number of pairs in the fit.
        loss, recall: of the mixture on held-out pairs, Recall@1 within blocks of at most 256 images.
        logit_scale: at the minimum of that loss.
        hub: what hub correction by the pairs of the fit changes there, `Gain.as_dict`; None where it was not judged.
        lexical_dim: width of the lexical vectors that the kernel voice reads, 0 without.
        seconds: wall time.
        self_training: numbers of unpaired `images` and `texts`, and held-out `losses`: of the pairs alone, then of each
            round that was taken. None without unpaired ones.
    """

    settings: str
    fitted_on: str
    weights: dict[str, float]
    trials: dict[str, dict[str, float]]
    tried: int
    pairs: int
    loss: float
    recall: float
    logit_scale: float
    hub: dict[str, Any] | None
    lexical_dim: int
    seconds: float
    self_training: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def start_by_voices(inputs: Inputs, pair_weights: Tensor | None, say: Say) -> tuple[Parts, VoicesChoice, Look | None]:
    """The model with the voices that count in its heads, what was chosen, and where no dev split is held out the
    figures of the folds, without hub correction.

    Args:
        inputs: towers and sources.
        pair_weights: (T,) weight of each caption's pair in the fits; None: all 1.
        say: called with what was chosen.

    Raises:
        ConfigError: features without anything in common, or too few images to choose on.
    """
    config, started, tested = inputs.config, time.perf_counter(), len(inputs.data.rows("test")) > 0
    material = Material.of(inputs, pair_weights, say)
    if not tested:
        if material.by_dev:
            raise ConfigError(
                "--settings dev: these data have no test split, and the nested cross-validation that gives the figures "
                "instead chooses settings by cross-validation too: leave --settings out, or give a test split"
            )
        check_images(material.every_pair())
    # Members' best epoch is judged on dev, which is then not fitted on; without members every pair is.
    if material.by_dev:
        recipe = material.fit(material.train, material.dev)
    else:
        recipe = material.fit(material.every_pair(), fit_on=material.train if config.members else None)
        # With fewer images, members are there because someone wants them.
        if config.members and config.members_share is None and len(inputs.train_rows) >= FEWEST_FOR_MEMBERS:
            inputs = _with_share(inputs, recipe.fitted, say)
            if not inputs.config.members:
                recipe = material.fit(material.every_pair())
    whole = not material.by_dev and not inputs.config.members
    fitted, train, lexicon, unpaired = recipe.fitted, recipe.pairs, recipe.lexicon, material.unpaired
    lexical = fitted.mixture.reads_lexical()
    parts = _model(inputs, fitted, train, lexicon if lexical else None)
    choice = VoicesChoice(
        settings=fitted.settings,
        fitted_on=EVERY_PAIR if whole else "train",
        weights=fitted.weighing.weights,
        trials={name: _settings(trial) for name, trial in fitted.trials.items()},
        tried=fitted.tried,
        pairs=len(train.texts),
        loss=fitted.weighing.loss,
        recall=fitted.weighing.recall,
        logit_scale=fitted.scale,
        hub=fitted.hub_gain.as_dict(),
        lexical_dim=lexicon.width if lexical and lexicon is not None else 0,
        seconds=time.perf_counter() - started,
        self_training=None if unpaired is None else _self_training(unpaired, fitted),
    )
    say(fitted.line())
    if material.dev is not None and not material.by_dev:
        on = "train and dev together" if whole else "train alone: dev is left for the members' share and the best epoch"
        say(f"voices fitted on {on}")
    if not tested:
        say("no test split: the figures come from nested cross-validation, each fold scored by a fit without it")
    if choice.self_training is not None:
        losses = " -> ".join(f"{loss:.3f}" for loss in fitted.rounds)
        say(
            f"self-training on unpaired images and texts: {len(fitted.rounds) - 1} rounds taken, held-out loss {losses}"
        )
    judged = [JudgedPart(part.held_out, part.mixture, fitted.scale) for part in fitted.parts]
    return parts, choice, pooled(judged)[0] if whole else None


def _with_share(inputs: Inputs, fitted: Fitted, say: Say) -> Inputs:
    """The inputs with the members' share that is best out of fold; without members where that is none."""
    share = out_of_fold_share(fitted.parts, inputs.config)
    say(f"members, by the loss of {len(fitted.parts)} folds: {f'share {share:g}' if share else 'none'}")
    said: dict[str, Any] = {"members_share": share} if share else {"members": 0, "epochs": 0}
    return replace(inputs, config=replace(inputs.config, **said))


def _self_training(unpaired: Unpaired, fitted: Fitted) -> dict[str, Any]:
    images, texts = len(unpaired.image_features), len(unpaired.text_features)
    return {"images": images, "texts": texts, "losses": fitted.rounds}


def _settings(trial: Any) -> dict[str, float]:
    return {name: getattr(trial, name) for name in ("ridge", "text_ridge", "power", "dimensions")}


def _model(inputs: Inputs, fitted: Fitted, pairs: Pairs, lexicon: Lexicon | None) -> Parts:
    """Model and sources, with the mixture in the heads, and members of random weights where the options want some."""
    config, towers, mixture = inputs.config, inputs.towers, fitted.mixture
    widths = mixture.embed_images(pairs.images[:1]).shape[1]
    sizes: dict[str, Any] = {
        name: {side: cast(Any, module).sizes for side, module in zip(SIDES, sides, strict=True)}
        for name, sides in mixture.sides.items()
    }
    shape = HeadShape(
        widths + config.members * MEMBER_DIM,
        "voices",
        config.hidden_dim,
        config.dropout,
        config.input_noise,
        members=config.members,
        voices=sizes,
        lexical_dim=0 if lexicon is None else lexicon.width,
        lexical_members=lexicon is not None,
    )
    heads = _heads(shape, mixture, fitted.scale, pairs, config.seed)
    scale = INITIAL_LOGIT_SCALE if config.members else min(MAX_LOGIT_SCALE, fitted.scale)
    model = DualEncoder(towers, shape, heads=heads, logit_scale=scale).to(inputs.device)
    model.lexicon = lexicon
    # The closed form's settings are recorded, so that a run resumed before its first checkpoint starts with the same.
    found: dict[str, Any] = {"dimensions": shape.embedding_dim}
    found = _settings(fitted.trials["closed-form"]) if "closed-form" in fitted.trials else found
    return inputs.with_model(model, replace(config, embedding_dim=int(found.pop("dimensions")), **found))


def _heads(shape: HeadShape, mixture: Mixture, scale: float, pairs: Pairs, seed: int) -> tuple[nn.Module, nn.Module]:
    heads = []
    widths = (pairs.images.shape[1], pairs.texts.shape[1] - pairs.lexical)
    for place, (side, rows, width) in enumerate(zip(SIDES, (pairs.images, pairs.texts), widths, strict=True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2 * seed + place)
            head = VoicesHead(width, shape, side).to(rows.device)
        sides = {name: both[place] for name, both in mixture.sides.items()}
        head.fill(sides, mixture.weights, scale)
        if isinstance(head.members, Members):
            read = rows[:, : head.member_dim]
            head.members.standardise(read.mean(0), read.var(0, correction=0))
        heads.append(head)
    return heads[0], heads[1]
