"""Voices: scorers of an image and a text that a model mixes. A voice is one file here and one row of `VOICES`.

A voice's file has `side_of(sizes)`, one side's module with its tensors 0, and `Fit`, which is made of pairs, is solved
for a setting and gives both sides; `varalign.canonical.voices.fit` chooses the settings and the weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType

from torch import nn

VOICES = {
    "closed-form": "varalign.canonical.voices.closed_form",
    "kernel": "varalign.canonical.voices.kernel",
    "lexical": "varalign.canonical.voices.lexical",
    "zero-shot": "varalign.canonical.voices.zero_shot",
}
"""The file of each voice, simple voices first."""


def voice(name: str) -> ModuleType:
    """The module of a voice.

    Raises:
        ValueError: for another name than those of `VOICES`.
    """
    if name not in VOICES:
        raise ValueError(f"unknown voice '{name}'; known: {', '.join(VOICES)}")
    return importlib.import_module(VOICES[name])


def side_of(name: str, sizes: Mapping[str, int]) -> nn.Module:
    """One side of a voice, of these sizes, its tensors 0."""
    side: nn.Module = voice(name).side_of(sizes)
    return side
