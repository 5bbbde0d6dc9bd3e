"""The lexical voice: the kernel voice with the texts' lexical vectors beside their features (see `kernel`)."""

from __future__ import annotations

from varalign.canonical.voices import kernel
from varalign.canonical.voices.kernel import side_of

NAME = "lexical"
__all__ = ["NAME", "Fit", "side_of"]


class Fit(kernel.Fit):
    """The lexical voice of some pairs, to be solved for any setting."""

    reads_lexical = True
