"""`TrainConfig`: the options of a training run, and what follows from several of them together. No torch here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from varalign.encoders.specs import SIDES, EncoderSpec, Side, parse_image_spec, parse_text_spec
from varalign.options.declaration import reporters
from varalign.options.fields import (
    CUSTOM_IMAGE,
    CUSTOM_TEXT,
    OPTIONS,
    PRETRAINED_IMAGE,
    PRETRAINED_TEXT,
    Options,
)
from varalign.options.rules import check_rules
from varalign.options.voice_list import MEMBERS, NONE, voices_of


@dataclass(frozen=True)
class TrainConfig(Options):
    """The options of a training run; each attribute is an option of `varalign train`, with dashes for underscores.

    The options of the recipe (`RECIPE`) are None where nothing was said; `varalign.options.recipe.fill` replaces these
    None as soon as the data are known: an option that was given keeps its value, and later code reads plain numbers.
    """

    def __post_init__(self) -> None:
        # Options with a `bare` value were switches in older versions: true and false still work in files and programs.
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if option.bare is not None and isinstance(value, bool):
                object.__setattr__(self, name, option.bare if value else option.default)

    def validate(self) -> TrainConfig:
        """Check every range and every combination; returns self.

        Raises:
            ConfigError: for the first fault found, naming the option.
            SpecError: an encoder spec names nothing known.
        """
        for name, option in OPTIONS.items():
            option.validate(getattr(self, name))
        check_rules(self)
        return self

    @property
    def image_spec(self) -> str:
        """The image encoder's spec, defaults resolved."""
        return self.image_encoder or (PRETRAINED_IMAGE if self.use_pretrained else CUSTOM_IMAGE)

    @property
    def text_spec(self) -> str:
        """The text encoder's spec, defaults resolved."""
        return self.text_encoder or (PRETRAINED_TEXT if self.use_pretrained else CUSTOM_TEXT)

    def spec(self, side: Side) -> EncoderSpec:
        """One side's encoder spec, parsed."""
        return parse_image_spec(self.image_spec) if side == "image" else parse_text_spec(self.text_spec)

    def freezes(self, side: Side) -> bool:
        """Whether a side's tower is frozen, except for the blocks that `unfreeze` trains."""
        return self.freeze in (side, "both") or (self.freeze == "auto" and self.spec(side).has_source)

    def trains(self, side: Side) -> bool:
        """Whether a side's tower changes in training: all of it, its last blocks, or adapters beside it."""
        return not self.freezes(side) or self.unfreeze > 0 or self.lora > 0

    @property
    def sees_crops(self) -> bool:
        """Whether training sees random crops of the images."""
        return self.augment if self.augment is not None else self.trains("image")

    @property
    def tunes_towers(self) -> bool:
        """Whether weights of a pretrained tower train, other than adapters beside them."""
        return any(self.spec(side).has_source and (self.unfreeze > 0 or not self.freezes(side)) for side in SIDES)

    @property
    def from_scratch(self) -> bool:
        """Whether a tower starts from random weights, without a features file."""
        return self.features is None and not all(self.spec(side).has_source for side in SIDES)

    @property
    def frozen_towers(self) -> bool:
        """Whether no tower trains, so that features are computed once."""
        return self.features is not None or not any(self.trains(side) for side in SIDES)

    @property
    def scratch_text(self) -> bool:
        """Whether the text encoder trains from random weights."""
        return self.features is None and not self.spec("text").has_source

    @property
    def resolved_start(self) -> Literal["closed-form", "random"]:
        """The start, `auto` resolved."""
        if self.start == "auto":
            return "closed-form" if self.frozen_towers else "random"
        return self.start

    @property
    def evaluated_epochs(self) -> frozenset[int]:
        """The epochs, counted from 1, after which dev is evaluated: the last is one of them (after `recipe.fill`)."""
        times = self.evaluations or self.epochs
        return frozenset(round(self.epochs * time / times) for time in range(1, times + 1)) - {0}

    @property
    def reporters(self) -> tuple[str, ...]:
        """What `report_to` and its short form name."""
        said = () if self.report_to is None else reporters(self.report_to)
        return said if "tensorboard" in said or not self.tensorboard else ("tensorboard", *said)

    @property
    def takes_members(self) -> bool:
        """Whether perceptrons can stand beside the closed form: no option asks for a residual or a map that trains."""
        closed = self.resolved_start == "closed-form" and self.frozen_towers
        return closed and self.head != "linear" and self.map_lr is None

    @property
    def mixes_voices(self) -> bool:
        """Whether voices are fitted and mixed, instead of one head that is trained."""
        return self.voices != NONE and self.takes_members and self.continue_from is None

    @property
    def needs_held_out(self) -> bool:
        """Whether a run needs dev and test splits: voices without members do with a cross-validation."""
        trained = bool(self.members) or bool(self.epochs) or MEMBERS in voices_of(self.voices)
        return trained or not self.mixes_voices

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON takes them."""
        return dataclasses.asdict(self)
