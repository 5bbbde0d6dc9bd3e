"""The voices that `--voices` takes, and what it says of a run. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from varalign.options.declaration import ConfigError, near

FITTED = ("closed-form", "kernel", "lexical", "zero-shot")
"""Voices fitted before training: the names of `varalign.canonical.voices.VOICES`, whose package imports torch. A test
holds the two equal."""
MEMBERS = "members"
AUTO, NONE = "auto", "none"
EVERY_PAIR = "every pair"
"""What voices are fitted on where no dev split is held out, as `config.json` names it."""
FEWEST_DEV = 300
"""Dev images from which on settings are chosen on dev alone; with fewer, by cross-validation over train and dev."""


def chooses_on_dev(settings: str, dev_images: int, test_images: int) -> bool:
    """Whether `--settings` leaves the choice to dev; if not, a cross-validation over all pairs makes it.

    Without a test split the figures come from a cross-validation anyway, and what is fitted on every pair is better.
    """
    return settings == "dev" or (settings == "auto" and dev_images >= FEWEST_DEV and test_images > 0)


def voices_of(value: str) -> tuple[str, ...]:
    """The voices of a list, in the order of simplicity, members last; none for `none`."""
    named = {name.strip() for name in value.split(",")}
    return tuple(name for name in (*FITTED, MEMBERS) if name in named)


def check_voices(value: str) -> None:
    """Refuse what is neither `auto`, `none` nor a list of voices.

    Raises:
        ConfigError: an unknown name, or members without a voice to stand beside.
    """
    if value in (AUTO, NONE):
        return
    known = (*FITTED, MEMBERS)
    for name in value.split(","):
        if name.strip() not in known:
            raise ConfigError(
                f"--voices {value!r}: {name.strip()!r} is no voice; it takes auto, none, or some of "
                f"{', '.join(known)}{near(name.strip(), known)}"
            )
    if voices_of(value) == (MEMBERS,):
        raise ConfigError("--voices members: they stand beside another voice, such as closed-form,members")


def voices_line(weights: Mapping[str, float]) -> str:
    """`voices: kernel 0.75, lexical 0.25; closed-form tried, not kept`."""
    kept = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items() if weight)
    left = ", ".join(name for name, weight in weights.items() if not weight)
    return f"voices: {kept}" + (f"; {left} tried, not kept" if left else "")
