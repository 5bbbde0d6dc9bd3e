"""What the voices of a run are fitted on, and fits of any part of it, each with a lexicon of its own captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varalign.canonical.choice import FEW, Grid
from varalign.canonical.hub_correction import HubCorrection
from varalign.canonical.voices.fit import Bank, Fitted, Unrelated, fit_voices
from varalign.canonical.voices.pooled import JudgedPart
from varalign.canonical.voices.voice_pairs import Pairs, joined, with_words
from varalign.data.tokens.lexicon import Lexicon
from varalign.encoders.towers import Towers
from varalign.inputs.pair_features import PairFeatures, all_pairs, thinned
from varalign.inputs.parts import Inputs
from varalign.inputs.unpaired import Unpaired, fills_a_bank, open_bank, open_unpaired
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.hub_sources import HUB_SOURCES, UNPAIRED
from varalign.options.voice_list import FITTED, chooses_on_dev, voices_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """Pairs of a run without lexical vectors, and what is fitted on them.

    Attributes:
        config: the options.
        captions: of the data; None where there is no lexical voice.
        voices: names of those that the run can have.
        by_dev: whether dev decides; if not, the folds of a cross-validation do.
        train: the training pairs. dev: those of dev, at most 1,000 images where it decides; None without any.
        unpaired: images and texts without partners, if any.
        bank: queries of hub correction that are not of the pairs: of `--hub-correction FILE`, or unpaired.
    """

    config: TrainConfig
    captions: Sequence[str] | None
    voices: Sequence[str]
    by_dev: bool
    train: Pairs
    dev: Pairs | None
    unpaired: Unpaired | None
    bank: Unpaired | None

    @staticmethod
    def of(inputs: Inputs, pair_weights: Tensor | None, say: Say) -> Material:
        """Everything read through the towers.

        Args:
            inputs: towers and sources.
            pair_weights: (T,) weight of each caption's pair in the fits; None: all 1.
            say: called with remarks.

        Raises:
            ConfigError: the settings are to be chosen on a dev split that is not there.
        """
        config, data = inputs.config, inputs.data
        unpaired, bank = open_unpaired(inputs, say), None
        if config.hub_correction not in HUB_SOURCES:
            bank = open_bank(inputs, Path(config.hub_correction), lambda _: None)
        elif unpaired is not None and (
            config.hub_correction == UNPAIRED or (config.hub_correction == "auto" and fills_a_bank(unpaired, data))
        ):
            bank = unpaired
        wanted = [name for name in voices_of(config.voices) if name in FITTED]
        captions = _captions(inputs, unpaired, say) if "lexical" in wanted else None
        voices = [name for name in wanted if _possible(name, inputs.towers, captions)]
        _check_possible(config.voices, wanted, voices)
        dev_rows, test_rows = data.rows("dev"), data.rows("test")
        by_dev = chooses_on_dev(config.settings, len(dev_rows), len(test_rows))
        if by_dev and not len(dev_rows):
            raise ConfigError("--settings dev: these data have no dev split; pass cv, or leave it out")
        if config.hub_correction == "dev" and not len(dev_rows):
            raise ConfigError("--hub-correction dev: these data have no dev split; name another bank")
        dev_rows = thinned(dev_rows) if by_dev else dev_rows
        train = _pairs(inputs, all_pairs(inputs, inputs.train_rows, training=True), pair_weights)
        dev = _pairs(inputs, all_pairs(inputs, dev_rows, training=False), None) if len(dev_rows) else None
        return Material(config, captions, voices, by_dev, train, dev, unpaired, bank)

    def every_pair(self) -> Pairs:
        """Train and dev together."""
        return self.train if self.dev is None else joined(self.train, self.dev)

    def fit(self, pairs: Pairs, held_out: Pairs | None = None, *, fit_on: Pairs | None = None) -> Recipe:
        """The voices of some pairs; the arguments as of `fit_voices`.

        Raises:
            ConfigError: features without anything in common, or too few images to choose on.
        """
        config, lexicon = self.config, None
        if self.captions is not None:
            assert pairs.captions is not None
            lexicon = Lexicon.fitted([self.captions[row] for row in pairs.captions.tolist()])
        given: dict[str, Any] = {
            "voices": [name for name in self.voices if name != "lexical" or lexicon is not None],
            "grids": {"closed-form": narrowed(FEW, config)},
            "seed": config.seed,
            "pool": None if self.unpaired is None else _rows(self.unpaired, lexicon),
            "bank": self._bank(lexicon),
            "hub": config.hub_correction if config.hub_correction in ("auto", "off") else "on",
        }
        worded, held_out, fit_on = (
            None if part is None else part.worded(lexicon, self.captions) for part in (pairs, held_out, fit_on)
        )
        assert worded is not None
        try:
            fitted = fit_voices(worded, held_out, fit_on=fit_on, **given)
        except Unrelated:
            raise ConfigError(
                "--start closed-form: image and text features of the training pairs have nothing in common (are they "
                "constant, or is there one pair only?): see what the encoders gave, or pass --start random"
            ) from None
        except ValueError as error:
            raise ConfigError(f"--settings {config.settings}: {error}") from None
        return Recipe(self, fitted, lexicon, worded if fit_on is None else fit_on)

    def _bank(self, lexicon: Lexicon | None) -> Bank | None:
        """The queries of hub correction that the options name; None: the pairs of the fit."""
        if self.bank is None:
            return None
        named = self.config.hub_correction
        return Bank(UNPAIRED if named in HUB_SOURCES else Path(named).name, _rows(self.bank, lexicon))


@dataclass(frozen=True)
class Recipe:
    """Fitted voices.

    Attributes:
        material: that they were fitted on. pairs: the part of it, with lexical vectors.
        fitted: the voices. lexicon: of the captions of the fit, if there is a lexical voice.
    """

    material: Material
    fitted: Fitted
    lexicon: Lexicon | None
    pairs: Pairs

    def correction(self) -> HubCorrection | None:
        """The hub correction that the options ask for, by a bank of the pairs of the fit where they name no other."""
        config, fitted = self.material.config, self.fitted
        if config.hub_correction == "off" or (config.hub_correction == "auto" and not fitted.hub_gain.taken):
            return None
        return fitted.correction(fitted.mixture, self.pairs, config.hub_form)

    def judged(self, held_out: Pairs) -> JudgedPart:
        """Pairs that are not among those of the fit, to be judged by it."""
        worded = held_out.worded(self.lexicon, self.material.captions)
        return JudgedPart(worded, self.fitted.mixture, self.fitted.scale, self.correction())


def narrowed(grid: Grid, config: TrainConfig) -> Grid:
    """The settings of the grid that the options allow."""
    return grid.narrowed(
        ridge=config.ridge, text_ridge=config.text_ridge, power=config.power, dimensions=config.embedding_dim
    )


def _possible(name: str, towers: Towers, captions: Sequence[str] | None) -> bool:
    """Whether a run can have the voice: zero-shot needs two frozen towers of one CLIP, lexical the captions."""
    if name == "lexical":
        return captions is not None
    return name != "zero-shot" or towers.share_a_space()


def _check_possible(told: str, wanted: Sequence[str], voices: Sequence[str]) -> None:
    """Refuse a list of voices of which none is possible, or that asks for zero-shot where it is not."""
    missing = [name for name in wanted if name not in voices]
    if missing and (not voices or ("zero-shot" in missing and set(wanted) < set(FITTED))):
        raise ConfigError(
            f"--voices {told}: this run cannot have {', '.join(missing)}: zero-shot needs both encoders of one CLIP, "
            "lexical the captions' texts"
        )


def _captions(inputs: Inputs, unpaired: Unpaired | None, say: Say) -> Sequence[str] | None:
    captions = inputs.data.caption_texts
    if captions is None:
        say("no lexical voice: the features file has no captions beside it (STEM.texts.jsonl)")
    elif unpaired is not None and unpaired.texts is None and len(unpaired.text_features):
        say("no lexical voice: the unpaired texts are not known (STEM.texts.jsonl beside their features)")
        return None
    return captions


def _pairs(inputs: Inputs, found: PairFeatures, pair_weights: Tensor | None) -> Pairs:
    data, device = inputs.data, found.text_features.device
    captions = torch.from_numpy(found.captions)
    return Pairs(
        found.image_features,
        found.text_features,
        found.owner,
        weights=None if pair_weights is None else pair_weights[captions].to(device),
        image_ids=torch.from_numpy(data.image_ids[found.rows]).to(device),
        text_ids=torch.from_numpy(data.text_ids[found.captions]).to(device),
        captions=captions.to(device),
    )


def _rows(found: Unpaired, lexicon: Lexicon | None) -> Pairs:
    """Images and texts without partners, as the voices take them.

    Raises:
        ConfigError: the texts are not known, and a voice reads their words.
    """
    texts, width = found.text_features, 0
    if lexicon is not None:
        if found.texts is None and len(texts):
            raise ConfigError(
                "--hub-correction: the texts of its features file are not known, and the lexical voice reads them: put "
                "STEM.texts.jsonl beside it, or leave lexical out of --voices"
            )
        texts, width = with_words(texts, lexicon, found.texts or []), lexicon.width
    return Pairs(found.image_features, texts, torch.zeros(0, dtype=torch.int64, device=texts.device), width)
