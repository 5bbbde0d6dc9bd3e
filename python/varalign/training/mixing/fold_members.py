"""The members' share of a run without enough dev images, from members trained without each fold.

A few members of every fold of the cross-validation are trained as one batched product. They score the pairs that their
fold holds out, beside the voices that were fitted without these pairs.

R folds, B images of a batch, I images and T texts of a fold's pairs, C texts of an image at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from varalign.canonical.hub_correction import BANK_IMAGES
from varalign.canonical.voices.fit import Part
from varalign.canonical.voices.held_out import Block, Scores
from varalign.canonical.voices.voice_pairs import Pairs
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.ensemble import Members
from varalign.encoders.head_shape import MEMBER_DIM, HeadShape
from varalign.encoders.towers import Towers
from varalign.losses.relation import positive_pairs
from varalign.options.config import TrainConfig
from varalign.training.batched import BatchedRuns
from varalign.training.losses import named_schedule
from varalign.training.mixing.member_share import choose_share
from varalign.training.optimiser import rate_factor

FEWER = 4
"""By which a run's number of members is divided for each fold, so that all folds take about as long as the run."""


def out_of_fold_share(parts: Sequence[Part], config: TrainConfig) -> float:
    """The share of members in the similarity that is best for pairs that neither voices nor members were fitted to.

    Args:
        parts: of a cross-validation.
        config: what the run's members are trained by; its loss and schedule are not read.
    """
    if not parts[0].mixture.reads_lexical():  # then members do not either
        parts = [replace(part, fitted=_plain(part.fitted), held_out=_plain(part.held_out)) for part in parts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        models = _trained(parts, config)
    closed: list[Scores] = []
    members: list[Scores] = []
    for part, model in zip(parts, models, strict=True):
        pairs, positive = _first_pairs(part.held_out)
        bank = _first_pairs(part.fitted.thinned(BANK_IMAGES))[0] if config.hub_correction != "off" else None
        size = min(config.batch_size, len(pairs.images))
        rows = torch.arange(len(pairs.images) // size * size, device=positive.device).split(size)
        blocks = [Block(batch, batch, positive[batch][:, batch]) for batch in rows]
        for found, embed in ((closed, _voices(part)), (members, partial(_embedded, model))):
            u, v = embed(pairs)
            by = None if bank is None else embed(bank)
            found += [block.scores(u, v, by) for block in blocks]
    return choose_share(closed, members).share


def _trained(parts: Sequence[Part], config: TrainConfig) -> list[DualEncoder]:
    """A model of few members for each fold, in evaluation mode."""
    models = [_model(part.fitted, config) for part in parts]
    batched = BatchedRuns(models, [config] * len(models), [named_schedule("fixed", config) for _ in models])
    orders = [_Order(part.fitted) for part in parts]
    size = min(config.batch_size, *(len(order.pairs.images) for order in orders))
    steps = min(len(order.pairs.images) for order in orders) // size
    for epoch in range(config.epochs):
        shuffled = [order.shuffled() for order in orders]
        for step in range(steps):
            taken = [
                order.batch(rows[step * size : (step + 1) * size]) for order, rows in zip(orders, shuffled, strict=True)
            ]
            images, texts, ids, text_ids = (torch.stack(column) for column in list(zip(*taken, strict=True))[:4])
            weights = [weight for *_, weight in taken if weight is not None]
            factor = rate_factor(
                epoch * steps + step, config.epochs * steps, warmup=config.warmup, schedule=config.lr_schedule
            )
            batched.step(images, texts, ids, factor, torch.stack(weights) if weights else None, text_ids)
    return [model.eval() for model in models]


def _model(pairs: Pairs, config: TrainConfig) -> DualEncoder:
    members = max(1, config.members // FEWER)
    rates = (config.hidden_dim, config.dropout, config.input_noise)
    shape = HeadShape(members * MEMBER_DIM, "ensemble", *rates, members=members)
    sides = pairs.images, pairs.texts
    heads = Members(sides[0].shape[1], shape), Members(sides[1].shape[1], shape)
    for head, rows in zip(heads, sides, strict=True):
        head.standardise(rows.mean(0), rows.var(0, correction=0))
    dims = {"image_feature_dim": sides[0].shape[1], "text_feature_dim": sides[1].shape[1]}
    return DualEncoder(Towers(None, None, **dims), shape, heads=heads).to(pairs.images.device)


def _voices(part: Part) -> Callable[[Pairs], tuple[Tensor, Tensor]]:
    return lambda pairs: (part.mixture.embed_images(pairs.images), part.mixture.embed_texts(pairs.texts))


def _embedded(model: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.project_images(pairs.images), model.project_texts(pairs.texts)


def _plain(pairs: Pairs) -> Pairs:
    """The pairs without lexical vectors."""
    return replace(pairs, texts=pairs.texts[:, : pairs.texts.shape[1] - pairs.lexical], lexical=0)


def _first_pairs(pairs: Pairs) -> tuple[Pairs, Tensor]:
    """Each image with its first text, and (I, I) which of these texts belong to which images."""
    pairs = pairs.captioned()
    order = torch.argsort(pairs.owner, stable=True)
    first = order[torch.searchsorted(pairs.owner[order], torch.arange(len(pairs.images)).to(order))]
    table, texts = _ids(pairs)
    positive = positive_pairs(table[pairs.groups()], texts[first])
    return replace(pairs, texts=pairs.texts[first], owner=torch.arange(len(first)).to(order), weights=None), positive


def _ids(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(G, C) the texts of each group of copies of an image, filled up with numbers that no text has, and (T,) texts."""
    texts, groups = pairs.same_texts(), pairs.groups()[pairs.owner]
    both = torch.unique(torch.stack([groups, texts], dim=1), dim=0)
    counts = torch.bincount(both[:, 0], minlength=int(pairs.groups().max()) + 1)
    place = torch.arange(len(both), device=both.device) - (counts.cumsum(0) - counts)[both[:, 0]]
    shape = (len(counts), int(counts.max()))
    table = -1 - torch.arange(shape[0] * shape[1], device=both.device).view(shape)
    table[both[:, 0], place] = both[:, 1]
    return table, texts


class _Order:
    """Batches of a fold's pairs, by torch's generator: each image once an epoch, with one of its texts."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs = pairs.captioned()
        self._texts = pairs.texts
        self._of_images = torch.argsort(pairs.owner, stable=True)
        self._counts = torch.bincount(pairs.owner, minlength=len(pairs.images))
        self._starts = self._counts.cumsum(0) - self._counts
        self._table, self._ids = _ids(pairs)
        self._groups = pairs.groups()

    def shuffled(self) -> Tensor:
        return torch.randperm(len(self.pairs.images)).to(self._starts.device)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Of (B,) images: features, those of a text each, ids as the losses take them, and weights of the pairs."""
        drawn = (torch.rand(len(rows)).to(self._counts.device) * self._counts[rows]).long()
        texts = self._of_images[self._starts[rows] + drawn]
        weights = None if self.pairs.weights is None else self.pairs.weights[texts]
        return self.pairs.images[rows], self._texts[texts], self._table[self._groups[rows]], self._ids[texts], weights
