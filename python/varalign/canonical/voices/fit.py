"""The recipe for few pairs: voices fitted, their settings and weights chosen on held-out pairs, hubs corrected.

Held-out pairs are those of a dev split, or of the folds of a cross-validation by image; then everything is fitted again
on all pairs, at the logit scale of the held-out ones. Where hub correction is going to be used, settings and weights
are chosen by losses that are corrected too. Members (perceptrons) are trained elsewhere, beside this mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from varalign.canonical.choice import DEV_IMAGES, Grid, Setting, Trial, search
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.hub_choice import Gain, HeldOut, judge_parts
from varalign.canonical.hub_correction import (
    BANK_IMAGES,
    BANK_TEXTS,
    TRAIN,
    HubCorrection,
    HubForm,
    sharpness_of,
    thinned_rows,
)
from varalign.canonical.maps import Whitening
from varalign.canonical.self_training import PseudoPairs, pseudo_pairs, rounds_for, self_train
from varalign.canonical.voices import voice
from varalign.canonical.voices.held_out import Block, Embedded, Scores, best_scale, blocks_of, losses_at
from varalign.canonical.voices.voice_pairs import Pairs, folds
from varalign.canonical.voices.weighing import Weighing, weigh
from varalign.data.waiting import waiting

Sides = tuple[nn.Module, nn.Module]
HubChoice = Literal["auto", "on", "off"]
CHOICE_IMAGES, CHOICE_TEXTS = 128, 256
"""Queries of the bank, at most, by which the losses of a choice are corrected."""

T = TypeVar("T")


class Unrelated(ValueError):
    """The features of the two sides are uncorrelated."""


@dataclass(frozen=True)
class Mixture:
    """Voices that are mixed: the similarity of an image and a text is Σ w_v cos_v.

    Attributes:
        weights: of each voice, above 0, 1 in all.
        sides: of each voice, the image side and the text side.
    """

    weights: Mapping[str, float]
    sides: Mapping[str, Sides]

    @torch.no_grad()
    def embed_images(self, features: Tensor) -> Tensor:
        """(n, D) unit vectors: √w_v times voice v's, one after the other."""
        return torch.cat([self.weights[name] ** 0.5 * sides[0](features) for name, sides in self.sides.items()], dim=1)

    @torch.no_grad()
    def embed_texts(self, features: Tensor) -> Tensor:
        """(n, D) unit vectors of texts, whose features end with the lexical vectors where there are any."""
        return torch.cat([self.weights[name] ** 0.5 * sides[1](features) for name, sides in self.sides.items()], dim=1)

    def reads_lexical(self) -> bool:
        """Whether a voice reads lexical vectors."""
        return any(getattr(side, "lexical", 0) for sides in self.sides.values() for side in sides)


@dataclass(frozen=True)
class Part:
    """Held-out pairs and the mixture that was fitted without them.

    Attributes:
        fitted: the pairs of the fit. held_out: others.
        mixture: of the chosen settings and weights.
    """

    fitted: Pairs
    held_out: Pairs
    mixture: Mixture


@dataclass(frozen=True)
class Bank:
    """Queries for hub correction that are neither of the pairs nor of dev.

    Attributes:
        source: where they come from, for tables.
        rows: images and texts, one side of which may be empty; `owner` is not read.
    """

    source: str
    rows: Pairs


@dataclass(frozen=True)
class Fitted:
    """What `fit_voices` found.

    Attributes:
        mixture: of the voices that count, fitted on all pairs.
        weighing: weights of every voice that was tried, held-out loss, recall and logit scale.
        trials: the best setting of each voice that has any; tried: how many settings were tried in all.
        parts: dev, or the folds.
        settings: "dev" or "cv".
        pool: unpaired images and texts; None without.
        rounds: the held-out loss of the pairs alone, then of each round of self-training that was taken; empty without.
        bank: queries of the hub correction; None: the pairs of the fit.
        corrected: whether settings and weights were chosen by corrected losses.
    """

    mixture: Mixture
    weighing: Weighing
    trials: Mapping[str, Trial]
    tried: int
    parts: list[Part]
    settings: str
    pool: Pairs | None = None
    rounds: list[float] = field(default_factory=list)
    bank: Bank | None = None
    corrected: bool = False

    @property
    def scale(self) -> float:
        """β, the logit scale of the mixture at its least held-out loss."""
        return self.weighing.scale

    @cached_property
    def hub_gain(self) -> Gain:
        """What hub correction changes on the held-out pairs."""
        corrections = [self.correction(part.mixture, part.fitted) for part in self.parts]
        held_out = [candidates_of(part.held_out, part.mixture) for part in self.parts]
        return judge_parts(list(zip(held_out, corrections, strict=True)), self.scale)

    def correction(self, mixture: Mixture, pairs: Pairs, form: HubForm = "bank") -> HubCorrection:
        """The hub correction of a mixture.

        Args:
            mixture: fitted on `pairs`.
            form: what is kept of the bank.
        """
        rows = _queries(pairs, self.bank, BANK_IMAGES, BANK_TEXTS)
        u, v = mixture.embed_images(rows.images), mixture.embed_texts(rows.texts)
        source = TRAIN if self.bank is None else self.bank.source
        return HubCorrection.of(u, v, self.scale, source=source, form=form)

    def line(self) -> str:
        """The voices that count, and those that were tried and not kept, in one line."""
        kept = ", ".join(f"{name} {weight:g}" for name, weight in self.weighing.kept().items())
        left = [name for name, weight in self.weighing.weights.items() if not weight]
        dropped = f"; {', '.join(left)} tried, not kept" if left else ""
        judged = "dev" if self.settings == "dev" else f"{len(self.parts)} folds"
        return f"voices, by the {'corrected ' if self.corrected else ''}loss of {judged}: {kept}{dropped}"


def fit_voices(
    pairs: Pairs,
    held_out: Pairs | None = None,
    *,
    fit_on: Pairs | None = None,
    voices: Sequence[str],
    grids: Mapping[str, Grid] | None = None,
    seed: int = 0,
    pool: Pairs | None = None,
    bank: Bank | None = None,
    hub: HubChoice = "auto",
) -> Fitted:
    """Fit voices and choose their settings and weights.

    Args:
        pairs: to fit on.
        held_out: to choose on; None: cross-validation over `pairs`.
        fit_on: after a cross-validation, the pairs of the final fit; None: all of `pairs`.
        voices: names of `VOICES`, at least one.
        grids: the settings to try of a voice; those of its file where none are given.
        seed: of the folds and of the kernel's anchors.
        pool: unpaired images and texts (`owner` is not read), one side of which may be empty, for self-training (see
            `varalign.canonical.self_training`): a round is taken only if it lowers the held-out loss.
        bank: queries by which hubs are corrected; None: the pairs of each fit.
        hub: whether the choices are made by corrected losses: "on", "off", or "auto", where correction then gains on
            the held-out pairs (`Gain.taken`), and by uncorrected ones where it does not.

    Raises:
        Unrelated: image and text features have nothing in common.
        ValueError: too few different images for the folds, or held-out pairs for a choice.
    """
    if held_out is None:
        parts = folds(pairs, seed=seed)
    else:
        parts = [(pairs, held_out)]
    parts = [(fitted, held.thinned(DEV_IMAGES)) for fitted, held in parts]
    judged, blocks = [], []  # the held-out pairs that the blocks take, and no others
    for _, held in parts:
        drawn = blocks_of(held)
        used = torch.zeros(len(held.texts), dtype=torch.bool, device=held.texts.device)
        for block in drawn:
            used[block.texts] = True
        place = used.cumsum(0) - 1
        judged.append(held.part(torch.ones_like(held.images[:, 0], dtype=torch.bool), used))
        blocks.append([replace(block, texts=place[block.texts]) for block in drawn])
    if not any(blocks):
        raise ValueError("no two held-out pairs to choose by")
    image_of = torch.cat([b.images + place * DEV_IMAGES for place, part in enumerate(blocks) for b in part])
    with waiting("fitting voices", len(voices) * len(parts)) as bar:
        fits: dict[str, list[Any]] = {}
        for name in voices:
            fits[name] = []
            for fitted, _ in parts:
                fits[name].append(voice(name).Fit(fitted, seed=seed, pool=pool))
                bar.advance()

    @cache
    def of_all(name: str) -> Any:
        return fits[name][0] if held_out is not None else voice(name).Fit(fit_on or pairs, seed=seed, pool=pool)

    banks = [_queries(fitted, bank, CHOICE_IMAGES, CHOICE_TEXTS) for fitted, _ in parts]
    sharpness = sharpness_of(TRAIN if bank is None else bank.source)

    def chosen(fits: Mapping[str, Sequence[Any]], of_all: Callable[[str], Any], corrected: bool) -> Fitted:
        material = _HeldOut(judged, blocks, banks if corrected else [None] * len(parts), sharpness)
        trials, scores, tried = {}, {}, 0
        for name in voices:
            trial, count, scores[name] = _chosen(fits[name], material, (grids or {}).get(name))
            tried += count
            if trial is not None:
                trials[name] = trial
        weighing = weigh(scores, image_of)
        kept = weighing.kept()
        mixtures = [
            Mixture(kept, {name: _solved(fits[name][place], trials.get(name)) for name in kept})
            for place in range(len(parts))
        ]
        whole = mixtures[0]
        if held_out is None:
            whole = Mixture(kept, {name: _solved(of_all(name), trials.get(name)) for name in kept})
        found = [Part(fitted, held, mixture) for (fitted, held), mixture in zip(parts, mixtures, strict=True)]
        settings = "cv" if held_out is None else "dev"
        return Fitted(whole, weighing, trials, tried, found, settings, pool, bank=bank, corrected=corrected)

    first = chosen(fits, of_all, hub != "off")
    if hub == "auto" and not first.hub_gain.taken:
        first = chosen(fits, of_all, False)
    if pool is None:
        return first

    def refit(before: Fitted) -> Fitted:
        pools = [_Pool.of(pool, part.fitted, part.mixture, before.scale) for part in before.parts]
        again = {name: [one.refitted(fit) for one, fit in zip(pools, fits[name], strict=True)] for name in voices}
        whole = pools[0] if held_out is not None else _Pool.of(pool, fit_on or pairs, before.mixture, before.scale)
        return chosen(again, lambda name: whole.refitted(of_all(name)), before.corrected)

    rounds = self_train(first, refit, lambda one: one.weighing.losses, rounds_for(len((fit_on or pairs).images)))
    return replace(rounds[-1], rounds=[one.weighing.loss for one in rounds])


@dataclass(frozen=True)
class _Pool:
    """Unpaired images and texts, and the partners that a mixture gives them.

    Attributes:
        rows: the images and the texts; of a side without unpaired ones, those of the pairs of the fit.
        found: the partners.
    """

    rows: Pairs
    found: PseudoPairs

    @classmethod
    def of(cls, pool: Pairs, pairs: Pairs, mixture: Mixture, scale: float) -> _Pool:
        """The partners by a mixture that was fitted on `pairs`."""
        given = {"images": len(pool.images) > 0, "texts": len(pool.texts) > 0}
        rows = replace(pool, **{side: getattr(pool if there else pairs, side) for side, there in given.items()})
        u, v = mixture.embed_images(rows.images), mixture.embed_texts(rows.texts)
        return cls(rows, pseudo_pairs(u, v, scale, **given))

    def refitted(self, fit: Any) -> Any:
        """A voice's fit of the same pairs and of these; the fit itself where it has no covariance."""
        if fit.grid is None:
            return fit
        covariance = RunningCovariance(fit.covariance.dx, fit.covariance.dy, fit.covariance.device)
        self.found.add_to(covariance.merge(fit.covariance), *fit.lifted(self.rows))
        again = copy(fit)
        again.whitening = Whitening(covariance)
        return again


def _solved(fit: Any, trial: Trial | None) -> Sides:
    sides: Sides = fit.sides(None if trial is None else trial.solved(fit.whitening))
    return sides


def _queries(pairs: Pairs, bank: Bank | None, images: int, texts: int) -> Pairs:
    """At most so many images and texts of a bank, evenly spread; a side without any, and None, is that of `pairs`."""
    own = pairs.thinned(images)
    named = None if bank is None else bank.rows
    u = own.images if named is None or not len(named.images) else thinned_rows(named.images, images)
    v = own.texts if named is None or not len(named.texts) else named.texts
    return replace(own, images=u, texts=thinned_rows(v, texts))


@dataclass(frozen=True)
class _HeldOut:
    """What settings and weights are judged by.

    Attributes:
        pairs: held out, of each part. blocks: of them.
        banks: of each part, queries by which its losses are corrected; None: they are not.
        sharpness: τ / logit scale of the correction.
    """

    pairs: Sequence[Pairs]
    blocks: Sequence[list[Block]]
    banks: Sequence[Pairs | None]
    sharpness: float

    def embedded(self, embed: Callable[[int, Pairs], T]) -> tuple[list[T], list[T | None]]:
        """`embed(part, rows)` of the held-out rows of each part, and of its bank's."""
        held_out = [embed(place, rows) for place, rows in enumerate(self.pairs)]
        return held_out, [None if rows is None else embed(place, rows) for place, rows in enumerate(self.banks)]

    def scores(self, held_out: Sequence[Embedded], banks: Sequence[Embedded | None]) -> list[Scores]:
        """Of every block."""
        return [
            block.scores(*both, bank, self.sharpness)
            for both, bank, blocks in zip(held_out, banks, self.blocks, strict=True)
            for block in blocks
        ]


def _chosen(fits: Sequence[Any], material: _HeldOut, grid: Grid | None) -> tuple[Trial | None, int, list[Scores]]:
    """The setting with the least held-out loss, the number tried, and its scores of every block."""
    if fits[0].grid is None:
        sides = [fit.sides(None) for fit in fits]
        return None, 0, material.scores(*material.embedded(lambda part, rows: _both(sides[part], rows)))
    grid = grid or fits[0].grid
    scorer = _Scorer(fits, material, max(grid.dimensions))
    best, trials = search(grid, scorer.trial)
    return best, len(trials), scorer.scores(best)


class _Scorer:
    """Scores settings of one voice on the held-out pairs of all parts.

    The projections on the canonical directions are kept for the last pair of ridges: powers and dimensions only scale
    and cut them.
    """

    def __init__(self, fits: Sequence[Any], material: _HeldOut, dimensions: int) -> None:
        self._dimensions, self._material = dimensions, material
        self._whitenings = [fit.whitening for fit in fits]
        self._lifted = material.embedded(lambda part, rows: fits[part].lifted(rows))
        self._scale = 20.0
        self._kept: tuple[tuple[float, float | None], _Projected] | None = None

    def trial(self, setting: Setting) -> Trial:
        """The setting with minus its held-out loss."""
        scored = self.scores(setting)
        self._scale = best_scale(scored, self._scale)
        found = self._projected(setting.ridge, setting.text_ridge)
        dimensions = min(setting.dimensions, max(map(len, found.values)))
        loss = float(losses_at(scored, self._scale).mean())
        return Trial(setting.ridge, setting.power, dimensions, -loss, found.text_ridge)

    def scores(self, setting: Setting | Trial) -> list[Scores]:
        """Of every block."""
        found = self._projected(setting.ridge, setting.text_ridge)
        k = setting.dimensions

        def scaled(sides: Embedded | None, values: Tensor) -> Embedded | None:
            if sides is None:
                return None
            x, y = (nn.functional.normalize(side[:, :k] * values[:k] ** setting.power, dim=1) for side in sides)
            return x, y

        held_out, banks = ([scaled(*both) for both in zip(rows, found.values, strict=True)] for rows in found.rows)
        return self._material.scores(cast(list[Embedded], held_out), banks)

    def _projected(self, ridge: float, text_ridge: float | None) -> _Projected:
        """All rows on the canonical directions."""
        if self._kept is None or self._kept[0] != (ridge, text_ridge):
            solved = [
                whitening.solve(ridge=ridge, text_ridge=text_ridge, power=0.0, dimensions=self._dimensions)
                for whitening in self._whitenings
            ]
            if not all(found.dimensions for found in solved):
                raise Unrelated("image and text features have nothing in common")
            rows = [
                [
                    None if both is None else (found.projected_images(both[0]), found.projected_texts(both[1]))
                    for found, both in zip(solved, lifted, strict=True)
                ]
                for lifted in self._lifted
            ]
            values = [found.singular_values.float() for found in solved]
            self._kept = (ridge, text_ridge), _Projected(rows, values, solved[0].text_ridge)
        return self._kept[1]


class _Projected(NamedTuple):
    """Held-out rows and banks on the canonical directions (n, k), the correlations (k,) and the texts' ridge."""

    rows: list[list[Embedded | None]]
    values: list[Tensor]
    text_ridge: float


def _both(sides: Sides, pairs: Pairs) -> tuple[Tensor, Tensor]:
    return sides[0](pairs.images), sides[1](pairs.texts)


def candidates_of(pairs: Pairs, mixture: Mixture) -> HeldOut:
    """The pairs as retrieval's candidates: copies of an image, and equal texts, count once."""
    groups, same = pairs.groups(), pairs.same_texts()
    images, texts = _first(groups), _first(same)
    both = torch.unique(torch.stack([same, groups[pairs.owner]], dim=1), dim=0)
    return HeldOut(mixture.embed_images(pairs.images[images]), mixture.embed_texts(pairs.texts[texts]), both)


def _first(numbers: Tensor) -> Tensor:
    """The first place of each of the numbers 0, 1, … in (n,)."""
    order = torch.argsort(numbers, stable=True)
    return order[torch.searchsorted(numbers[order], torch.arange(int(numbers.max()) + 1, device=numbers.device))]
