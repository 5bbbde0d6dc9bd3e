"""Where the heads start: at the closed form of the training pairs' features, chosen on dev, or at random weights.

One pass over the training images, batch by batch, from cached rows or straight from the towers, keeps means and
covariances only: memory is that of the covariances, whatever the number of pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varalign.canonical.choice import (
    DEV_IMAGES,
    Grid,
    choose_settings,
    mean_recall_at_1,
    negative_loss,
)
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.start import ClosedForm, Whitening
from varalign.data.index import first_of_each
from varalign.encoders.dual_encoder import MAX_LOGIT_SCALE
from varalign.encoders.ensemble import ensemble_heads
from varalign.encoders.heads import NoisyHead
from varalign.encoders.residual import residual_heads
from varalign.inputs.build import Parts
from varalign.inputs.pair_features import PairFeatures, all_pairs, batches_of_pairs
from varalign.losses.pairs import best_logit_scale
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.training.pair_weights import PairVerdict, score_pairs

Say = Callable[[str], None]


@dataclass(frozen=True)
class StartChoice:
    """What the closed-form start came to, as `config.json` keeps it.

    Attributes:
        ridge, text_ridge, power, dimensions: the settings of the maps.
        recall: mean of i2t and t2i Recall@1 on dev (at most 1,000 of its images), a fraction.
        tried: how many settings were tried.
        pairs: training pairs fitted on.
        logit_scale: at the least dev loss.
        seconds: for all of it.
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
    """How a run begins.

    Attributes:
        config: the options with what was chosen for the start.
        choice: of the closed form; None for a random start.
        pairs: scores and weights of the training pairs under `--pair-weighting closed-form`, else None.
    """

    config: TrainConfig
    choice: StartChoice | None
    pairs: PairVerdict | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what was chosen and found."""
        choice = None if self.choice is None else self.choice.as_dict()
        return {"closed_form": choice, "pairs": None if self.pairs is None else self.pairs.as_dict()}


def begin(parts: Parts, config: TrainConfig, say: Say) -> Beginning:
    """Weigh the pairs if that is asked for, bring the model to its start, and seed what is drawn from here on.

    Args:
        parts: with a model whose heads are still to be trained.
        config: the options, the recipe filled in.
        say: called with a line on what was found and chosen.

    Raises:
        ConfigError, DataError: no start can be made of these features, saying why.
    """
    pairs = None
    if config.pair_weighting == "closed-form":
        pairs = score_pairs(parts, seed=config.seed)
        say(pairs.line())
    config, choice = place_start(parts, config, say, pair_weights=None if pairs is None else pairs.weights)
    if choice is not None:
        torch.manual_seed(config.seed)  # so that a run that has to begin again draws the same
    return Beginning(config, choice, pairs)


def place_start(
    parts: Parts, config: TrainConfig, say: Say, *, pair_weights: Tensor | None = None
) -> tuple[TrainConfig, StartChoice | None]:
    """Bring the model of `parts` to its start.

    Args:
        parts: with a model whose heads are still to be trained.
        config: the options, the recipe filled in.
        say: called with the line of what was chosen.
        pair_weights: (T,) how much each caption's pair counts in the fit; None: all alike.

    Returns:
        The options with ridge, power and dimensions as they were chosen, and what is to be said of the choice.

    Raises:
        ConfigError: the features have nothing in common that a start could be made of.
        DataError: a tower gives NaN or infinity, naming the image or caption.
    """
    if config.resolved_start == "random":
        if config.input_noise:
            _tell_deviations(parts)
        return config, None
    started = time.perf_counter()
    found, covariance, tried, dev = _fit(parts, config, pair_weights)
    if found.dimensions == 0:
        raise ConfigError(
            "--start closed-form: image and text features of the training pairs have nothing in common (are they "
            "constant, or is there one pair only?): see what the encoders gave, or pass --start random"
        )
    kept = found.dimensions
    if config.embedding_dim is not None:
        found = _widened(found, config.embedding_dim)
    scale = _logit_scale(found, dev, config)
    rates: dict[str, Any] = {"dropout": config.dropout, "noise": config.input_noise, "seed": config.seed}
    if config.members:
        shape = {"hidden_dim": config.hidden_dim, "members": config.members}
        parts.model.take_heads(*ensemble_heads(found, covariance, logit_scale=scale, **shape, **rates))
    else:
        hidden_dim = 0 if config.head == "linear" else config.hidden_dim
        heads = residual_heads(found, covariance, hidden_dim, train_linear=config.map_lr != 0, **rates)
        parts.model.take_heads(*heads, logit_scale=scale)
    choice = StartChoice(
        ridge=found.ridge,
        power=found.power,
        dimensions=kept,
        recall=mean_recall_at_1(
            found.embed_images(dev.image_features), found.embed_texts(dev.text_features), dev.owner
        ),
        tried=tried,
        pairs=covariance.pairs,
        logit_scale=scale,
        seconds=time.perf_counter() - started,
        text_ridge=found.text_ridge,
    )
    say(choice.line())
    config = replace(config, ridge=found.ridge, text_ridge=found.text_ridge, power=found.power)
    config = replace(config, embedding_dim=found.dimensions)
    return config, choice


def _fit(
    parts: Parts, config: TrainConfig, pair_weights: Tensor | None
) -> tuple[ClosedForm, RunningCovariance, int, PairFeatures]:
    covariance = _covariance(parts, pair_weights)
    rows = parts.data.rows("dev")
    if len(rows) > DEV_IMAGES:
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed))[:DEV_IMAGES]
        rows = rows[np.sort(drawn.numpy())]
    dev = all_pairs(parts, rows, training=False)
    usual = Grid()
    grid = Grid(
        ridges=usual.ridges if config.ridge is None else (config.ridge,),
        powers=usual.powers if config.power is None else (config.power,),
        dimensions=usual.dimensions if config.embedding_dim is None else (config.embedding_dim,),
        text_parts=usual.text_parts if config.ridge is None else (),
        text_ridge=config.text_ridge,
    )
    whitening = Whitening(covariance)
    best, trials = choose_settings(
        whitening, dev.image_features, dev.text_features, dev.owner, grid=grid, metric=negative_loss
    )
    return best.solved(whitening), covariance, len(trials), dev


def _covariance(parts: Parts, pair_weights: Tensor | None) -> RunningCovariance:
    """Means and covariances of the training pairs' features, in one pass."""
    covariance = RunningCovariance(parts.model.image_feature_dim, parts.model.text_feature_dim, parts.device)
    for part in batches_of_pairs(parts, parts.train_rows, training=True):
        weights = None if pair_weights is None else pair_weights[torch.from_numpy(part.captions)]
        covariance.update(part.image_features[part.owner], part.text_features, weights)
    return covariance


def _widened(found: ClosedForm, dimensions: int) -> ClosedForm:
    """The same closed form in a wider space: the added dimensions are 0 and left to the residual."""
    more = dimensions - found.dimensions
    pad = torch.nn.functional.pad
    return replace(
        found,
        image_map=pad(found.image_map, (0, more)),
        text_map=pad(found.text_map, (0, more)),
        singular_values=pad(found.singular_values, (0, more)),
    )


def _logit_scale(found: ClosedForm, dev: PairFeatures, config: TrainConfig) -> float:
    """α at the least dev loss, of the first caption of each image, in the run's batches."""
    if len(dev.rows) < 2:
        return MAX_LOGIT_SCALE
    first = torch.from_numpy(first_of_each(dev.owner.cpu().numpy())).to(dev.owner.device)
    u, v = found.embed_images(dev.image_features), found.embed_texts(dev.text_features[first])
    return best_logit_scale(u, v, batch_size=config.batch_size, high=MAX_LOGIT_SCALE)


def _tell_deviations(parts: Parts) -> None:
    """Give heads whose inputs get noise the deviations of the training features."""
    covariance = _covariance(parts, None)
    for head, matrix in ((parts.model.image_head, covariance.cov_x), (parts.model.text_head, covariance.cov_y)):
        assert isinstance(head, NoisyHead)
        head.deviation.copy_(matrix.diagonal().clamp_min(0).sqrt())
