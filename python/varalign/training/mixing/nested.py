"""Figures without a test split: nested cross-validation of the whole recipe by image.

Each of five folds is scored by voices that were fitted, chosen (by a cross-validation within the other four) and
corrected for hubs without it. The model of the run is fitted on all pairs; these figures are what to expect of it, or a
little less, as four fifths of the pairs are in each fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from varalign.canonical.voices.pooled import pooled
from varalign.canonical.voices.voice_pairs import FOLDS, Pairs, folds
from varalign.inputs.parts import Parts, short
from varalign.options.declaration import ConfigError
from varalign.training.mixing.material import Material
from varalign.training.pair_weights import closed_form_weights

Say = Callable[[str], None]
FEWEST_IMAGES = 13
"""Different images with which the rest of a fold still has ten, two for each fold of the inner cross-validation."""


def check_images(pairs: Pairs) -> None:
    """Refuse pairs of too few images before time is spent.

    Raises:
        ConfigError: fewer than `FEWEST_IMAGES` different ones.
    """
    if (count := int(pairs.groups().max()) + 1) < FEWEST_IMAGES:
        raise ConfigError(
            f"there is no test split, and the figures of a nested cross-validation need {FEWEST_IMAGES} different "
            f"images, not {count}: give more pairs, or a test split"
        )


def nested_rows(parts: Parts, say: Say) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """The rows of the result table without a test split.

    Args:
        parts: model and data of the run; the model itself is not judged.
        say: called with a line a fold.

    Returns:
        The figures of `varalign.canonical.voices.pooled` with `hub_correction`, those of chance, and those of zero-shot
        CLIP where both towers are of one.
    """
    config = parts.config
    material = Material.of(parts, None, lambda line: None)
    outer = folds(material.every_pair(), seed=config.seed, every_text=True)
    judged = []
    for place, (rest, held_out) in enumerate(outer, 1):
        if config.pair_weighting == "closed-form":
            rest = replace(rest, weights=closed_form_weights(rest, seed=config.seed))
        judged.append(material.fit(rest).judged(held_out))
        say(f"nested cross-validation: fold {place} of {FOLDS} is scored")
    figures, random = pooled(judged)
    names = {part.correction.name for part in judged if part.correction is not None}
    figures["hub_correction"] = names.pop() if names else None
    zero_shot = None
    if parts.model.share_a_space():
        plain = replace(material, voices=["zero-shot"], captions=None, unpaired=None, bank=None)
        plain = replace(plain, config=replace(config, hub_correction="off"))
        zero_shot = {
            "model": f"zero-shot {short(config.text_spec)}",
            **pooled([plain.fit(rest).judged(held_out) for rest, held_out in outer])[0],
        }
    return figures, {"model": "chance", **random}, zero_shot
