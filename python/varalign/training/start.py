"""The start of a run: opens its sources and builds its model, with heads from the closed form or from random weights.

The closed form needs one pass over the training pairs' features, read in batches from the cache or from the towers. The
pass keeps only means and covariances, so its memory does not depend on the number of pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varalign.canonical.choice import Grid, choose_settings, mean_recall_at_1, negative_loss
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.maps import ClosedForm, Whitening
from varalign.data.index import Candidates
from varalign.data.ranks import alone, world
from varalign.encoders.dual_encoder import INITIAL_LOGIT_SCALE, MAX_LOGIT_SCALE, DualEncoder
from varalign.encoders.head_shape import MEMBER_DIM, HeadShape
from varalign.encoders.heads import NoisyHead, closed_form_heads
from varalign.inputs.assemble import assemble, open_sources
from varalign.inputs.continued import continued_model
from varalign.inputs.models import adapt_towers, new_model, new_towers
from varalign.inputs.open_data import Data
from varalign.inputs.pair_features import PairFeatures, batches_of_pairs, dev_pairs, first_pairs
from varalign.inputs.parts import Inputs, Parts
from varalign.losses.pair_loss import Ids, best_logit_scale
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.voice_list import NONE
from varalign.training.mixing.material import narrowed
from varalign.training.mixing.start_voices import Look, VoicesChoice, start_by_voices
from varalign.training.pair_weights import PairVerdict, score_pairs

Say = Callable[[str], None]


@dataclass(frozen=True)
class StartChoice:
    """The settings and results of the closed-form start, as written to `config.json`.

    Attributes:
        ridge, text_ridge, power, dimensions: the settings of the maps.
        recall: mean of i2t and t2i Recall@1 on dev (at most 1,000 of its images), a fraction.
        tried: number of settings tried.
        pairs: number of training pairs in the fit.
        logit_scale: at the minimum of the dev loss.
        seconds: wall time of the start.
    """

    ridge: float
    power: float
    dimensions: int
    recall: float
    tried: int
    pairs: int
    logit_scale: float
    seconds: float
    text_ridge: float

    def line(self) -> str:
        """One line for people."""
        chosen = f", the best of {self.tried} settings" if self.tried > 1 else ""
        return (
            f"closed-form start: ridge {self.ridge:g} (texts {self.text_ridge:g}), power {self.power:g}, "
            f"{self.dimensions} dimensions{chosen}; dev "
            f"mean R@1 {100 * self.recall:.1f}, logit scale {self.logit_scale:.1f}; {self.pairs:,} pairs in "
            f"{self.seconds:.1f} s"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Beginning:
    """The initial state of a run.

    Attributes:
        parts: model and sources; their options include the settings chosen for the start.
        choice: of the closed form; None for a random start, and for one by voices.
        pairs: scores and weights of the training pairs under `--pair-weighting closed-form`, else None.
        voices: what was found where the start is by voices.
        look: figures of its cross-validation, in place of those on dev where no dev split is held out.
    """

    parts: Parts
    choice: StartChoice | None
    pairs: PairVerdict | None
    voices: VoicesChoice | None = None
    look: Look | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the choices and the pairs' estimate."""
        found = {"closed_form": self.choice, "voices": self.voices, "pairs": self.pairs}
        return {name: None if value is None else value.as_dict() for name, value in found.items()}


def begin(config: TrainConfig, data: Data, device: torch.device, say: Say) -> Beginning:
    """Build model and sources, compute pair weights if the options ask for them, and set torch's seed for training.

    Args:
        config: the options, with the recipe filled in.
        data: the data, from `open_data`.
        device: where to train.
        say: called with remarks on progress and results.

    Raises:
        ConfigError: the two sides' features are uncorrelated, or there are too few images to score pairs.
        DataError: a tower gives NaN or infinity; the message names the image or caption.
        WeightsUnavailable: pretrained weights are not on this machine and cannot be downloaded.
    """
    torch.manual_seed(config.seed)
    if config.continue_from is not None:
        model = continued_model(config.continue_from)
        if config.gradient_checkpointing:
            model.checkpoint_activations()
        parts = assemble(config, data, model.to(device), say)
        say(f"start: the best weights of {config.continue_from}")
        return Beginning(parts, None, _weighed(parts, say))
    if config.resolved_start == "random":
        parts = assemble(config, data, new_model(config, data).to(device), say)
        if config.word_vectors is not None:
            found, words = getattr(parts.model.text_encoder, "words_found")  # noqa: B009 - of the lstm alone
            say(f"word vectors: {found:,} of the {words:,} words of the training captions")
        pairs = _weighed(parts, say)
        if config.input_noise:
            _set_deviations(parts)
        return Beginning(parts, None, pairs)
    towers = new_towers(config, data)
    adapt_towers(towers, config)
    inputs = open_sources(config, data, towers.to(device), device, say)
    pairs = _weighed(inputs, say)
    if config.voices != NONE:
        parts, voices, look = start_by_voices(inputs, None if pairs is None else pairs.weights, say)
        torch.manual_seed(config.seed)
        return Beginning(parts, None, pairs, voices, look)
    parts, choice = _closed_form_start(inputs, None if pairs is None else pairs.weights)
    say(choice.line())
    torch.manual_seed(config.seed)  # so that training draws the same numbers whatever the start has drawn
    return Beginning(parts, choice, pairs)


def _weighed(inputs: Inputs, say: Say) -> PairVerdict | None:
    if inputs.config.pair_weighting != "closed-form":
        return None
    pairs = score_pairs(inputs, seed=inputs.config.seed)
    say(pairs.line())
    return pairs


def _closed_form_start(inputs: Inputs, pair_weights: Tensor | None) -> tuple[Parts, StartChoice]:
    """The model with the closed form of the training pairs in its heads; the settings are chosen on dev.

    Args:
        inputs: towers and sources.
        pair_weights: (T,) weight of each caption's pair in the fit; None: all 1.
    """
    config, started = inputs.config, time.perf_counter()
    covariance = _covariance(inputs, pair_weights)
    dev = dev_pairs(inputs)
    images, texts, ids = first_pairs(inputs.data, dev)
    found, tried = _chosen(covariance, dev, config, ids)
    if found.dimensions == 0:
        raise ConfigError(
            "--start closed-form: image and text features of the training pairs have nothing in common (are they "
            "constant, or is there one pair only?): see what the encoders gave, or pass --start random"
        )
    kept = found.dimensions
    if config.embedding_dim is not None:
        found = _widened(found, config.embedding_dim)
    scale = MAX_LOGIT_SCALE
    if len(dev.rows) > 1:  # at the least dev loss, of the first caption of each image, in the run's batches
        u, v = found.embed_images(dev.image_features[images]), found.embed_texts(dev.text_features[texts])
        scale = best_logit_scale(u, v, ids=ids, batch_size=config.batch_size, high=MAX_LOGIT_SCALE)
    heads = closed_form_heads(_shape(found, config), found, covariance, logit_scale=scale, seed=config.seed)
    # Members start at the usual scale; a residual starts at that of the closed form that it is added to.
    first_scale = INITIAL_LOGIT_SCALE if config.members else scale
    model = DualEncoder(inputs.towers, _shape(found, config), heads=heads, logit_scale=first_scale)
    choice = StartChoice(
        ridge=found.ridge,
        power=found.power,
        dimensions=kept,
        recall=_recall(found, inputs.data.candidates(dev.rows), dev),
        tried=tried,
        pairs=covariance.pairs,
        logit_scale=scale,
        seconds=time.perf_counter() - started,
        text_ridge=found.text_ridge,
    )
    settings: dict[str, Any] = {"ridge": found.ridge, "text_ridge": found.text_ridge, "power": found.power}
    config = replace(config, embedding_dim=found.dimensions, **settings)
    return inputs.with_model(model.to(inputs.device), config), choice


def _shape(found: ClosedForm, config: TrainConfig) -> HeadShape:
    rates: dict[str, Any] = {"dropout": config.dropout, "input_noise": config.input_noise}
    if config.members:
        width = found.dimensions + config.members * MEMBER_DIM
        return HeadShape(width, "ensemble", config.hidden_dim, members=config.members, **rates)
    hidden_dim = 0 if config.head == "linear" else config.hidden_dim
    return HeadShape(found.dimensions, "residual", hidden_dim, train_map=config.map_lr != 0, **rates)


def _recall(found: ClosedForm, candidates: Candidates, dev: PairFeatures) -> float:
    """Mean of i2t and t2i Recall@1 on dev."""
    texts = np.argsort(dev.captions)
    texts = texts[np.searchsorted(dev.captions[texts], candidates.captions)]
    u, v = found.embed_images(dev.image_features[candidates.places]), found.embed_texts(dev.text_features[texts])
    return mean_recall_at_1(u, v, torch.from_numpy(candidates.pairs).to(u.device))


def _chosen(
    covariance: RunningCovariance, dev: PairFeatures, config: TrainConfig, ids: Ids | None
) -> tuple[ClosedForm, int]:
    """The closed form with the lowest dev loss among the settings that the options allow, and the number of them."""
    grid = narrowed(Grid(), config)
    whitening = Whitening(covariance)
    best, trials = choose_settings(
        whitening, dev.image_features, dev.text_features, dev.owner, grid=grid, metric=partial(negative_loss, ids=ids)
    )
    return best.solved(whitening), len(trials)


def _covariance(inputs: Inputs, pair_weights: Tensor | None) -> RunningCovariance:
    """Means and covariances of the training pairs' features, in one pass; each process reads its share."""
    towers, rows = inputs.towers, world().share(inputs.train_rows)
    covariance = RunningCovariance(towers.image_feature_dim, towers.text_feature_dim, inputs.device)
    with alone():
        for part in batches_of_pairs(inputs, rows, training=True):
            weights = None if pair_weights is None else pair_weights[torch.from_numpy(part.captions)]
            covariance.update(part.image_features[part.owner], part.text_features, weights)
    first, *others = world().gathered(covariance)
    for other in others:
        first.merge(other)
    return first


def _widened(found: ClosedForm, dimensions: int) -> ClosedForm:
    """The same closed form in a wider space; only the residual uses the added dimensions."""
    more = dimensions - found.dimensions
    pad = torch.nn.functional.pad
    return replace(
        found,
        image_map=pad(found.image_map, (0, more)),
        text_map=pad(found.text_map, (0, more)),
        singular_values=pad(found.singular_values, (0, more)),
    )


def _set_deviations(parts: Parts) -> None:
    """Set the standard deviations of the training features in heads that add noise to their inputs."""
    covariance = _covariance(parts, None)
    for head, matrix in ((parts.model.image_head, covariance.cov_x), (parts.model.text_head, covariance.cov_y)):
        assert isinstance(head, NoisyHead)
        head.deviation.copy_(matrix.diagonal().clamp_min(0).sqrt())
