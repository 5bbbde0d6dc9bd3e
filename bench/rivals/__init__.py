"""Other ways to align two frozen encoders from few pairs, a file each, on the same features, draws and splits as ours.

A file has `models(draw)`, which yields a `Model` for each of its settings; of those of one name the one of least loss
on dev counts, as for our closed form. Or it has `scores(draw, base)`, which corrects the similarities of our closed
form. Formulas come from the papers named in the files; no code of theirs is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from drawn import Draw, Part, Scores
from torch import Tensor
from varalign.aligner.hub_bank import thinned_texts
from varalign.canonical import RunningCovariance, negative_loss
from varalign.canonical.hub_correction import HubCorrection
from varalign.canonical.maps import ClosedForm, Whitening
from varalign.losses.pair_loss import best_logit_scale

FILES = (
    "closed_form",
    "csa",
    "asif",
    "shrinkage",
    "bagged",
    "ridge_both_ways",
    "structure",
    "sotalign",
    "nearest_neighbours",
    "sinkhorn",
)


@dataclass(frozen=True)
class Model:
    """Two maps into one space, of (n, dx) and of (n, dy) features; the similarity is the inner product there."""

    name: str
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor], Tensor]

    def first_pairs(self, part: Part) -> tuple[Tensor, Tensor]:
        """(P, k) each of the images with a text, and of the first text of each."""
        return self.images(part.x[part.first[:, 0]]), self.texts(part.y[part.first[:, 1]])

    def dev_loss(self, draw: Draw) -> float:
        """The symmetric loss of dev's images with their first texts, at its best scale."""
        return -negative_loss(*self.first_pairs(draw.dev), torch.arange(len(draw.dev.first)))

    def logit_scale(self, draw: Draw) -> float:
        """The scale of that loss."""
        return best_logit_scale(*self.first_pairs(draw.dev))

    def correction(self, draw: Draw) -> HubCorrection:
        """Our hub correction, by the training pairs, of this model's similarities."""
        queries = self.images(draw.train.x[:1000]), thinned_texts(self.texts(draw.train.y))
        return HubCorrection.of(*queries, self.logit_scale(draw), source="train")


def best_of(models: Iterator[Model], draw: Draw) -> dict[str, Model]:
    """Of the models of each name the one of least loss on dev."""
    best: dict[str, tuple[float, Model]] = {}
    for model in models:
        loss = model.dev_loss(draw)
        if model.name not in best or loss < best[model.name][0]:
            best[model.name] = loss, model
    return {name: model for name, (_, model) in best.items()}


def models_of(file: str) -> Callable[[Draw], Iterator[Model]] | None:
    """`models` of a rival's file; None where it has `scores`."""
    return getattr(importlib.import_module(f"rivals.{file}"), "models", None)


def scores_of(file: str) -> Callable[[Draw, Model], Iterator[tuple[str, Scores]]]:
    """`scores` of a rival's file."""
    found: Callable[[Draw, Model], Iterator[tuple[str, Scores]]] = importlib.import_module(f"rivals.{file}").scores
    return found


def whitening_of(draw: Draw, rows: Tensor | None = None) -> Whitening:
    """The moments of the training pairs, or of these rows of them, ready to be solved for any ridge."""
    x, y = (draw.pair_x, draw.pair_y) if rows is None else (draw.pair_x[rows], draw.pair_y[rows])
    covariance = RunningCovariance(x.shape[1], y.shape[1])
    covariance.update(x, y)
    return Whitening(covariance)


def model_of(name: str, maps: ClosedForm) -> Model:
    """The model of a closed form."""
    return Model(name, maps.embed_images, maps.embed_texts)
