"""The whole recipe on arrays, without a run: voices, their settings and weights, and the hub correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.canonical.hub_choice import Gain
from varalign.canonical.hub_correction import HubCorrection
from varalign.canonical.voices.fit import Fitted, fit_voices
from varalign.canonical.voices.voice_pairs import Pairs, with_words
from varalign.data.same_captions import numbered
from varalign.data.tokens.lexicon import Lexicon

# I images, T texts, dx and dy feature dimensions

USUAL = ("closed-form", "kernel", "lexical")


@dataclass(frozen=True)
class Rows:
    """Features of images and texts that belong together.

    Attributes:
        images: (I, dx) float32. texts: (T, dy) float32. owner: (T,) int64 rows of the images.
        captions: (T,) the texts' words; None: there is no lexical voice, and no two texts are equal.
        weights: (T,) how much each pair counts; None: all alike.
    """

    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    owner: NDArray[np.int64]
    captions: Sequence[str] | None = None
    weights: NDArray[np.float32] | None = None

    def pairs(self, lexicon: Lexicon | None) -> Pairs:
        """As the voices take them."""
        texts, captions = torch.from_numpy(self.texts), self.captions
        if lexicon is not None and captions is not None:
            texts = with_words(texts, lexicon, captions)
        return Pairs(
            torch.from_numpy(self.images),
            texts,
            torch.from_numpy(self.owner),
            0 if lexicon is None else lexicon.width,
            None if self.weights is None else torch.from_numpy(self.weights),
            text_ids=None if captions is None else torch.from_numpy(numbered(captions)),
        )


@dataclass(frozen=True)
class FewPairs:
    """A fitted recipe.

    Attributes:
        fitted: the voices. lexicon: of the captions that it was fitted on, if any.
        gain: what hub correction changes on held-out pairs.
        correction: the hub correction by the pairs of the fit, whether or not it is to be used: `gain.taken` says that.
    """

    fitted: Fitted
    lexicon: Lexicon | None
    gain: Gain
    correction: HubCorrection

    def embed_images(self, features: NDArray[np.float32]) -> Tensor:
        """(n, D) unit vectors."""
        return self.fitted.mixture.embed_images(torch.from_numpy(features))

    def embed_texts(self, features: NDArray[np.float32], captions: Sequence[str] | None = None) -> Tensor:
        """(n, D) unit vectors; with the captions where the recipe was fitted with captions."""
        rows = Rows(features[:0], features, np.zeros(len(features), np.int64), captions)
        return self.fitted.mixture.embed_texts(rows.pairs(self.lexicon).texts)


def fit_few_pairs(train: Rows, dev: Rows | None = None, *, voices: Sequence[str] = USUAL, seed: int = 0) -> FewPairs:
    """Fit the default recipe of runs with few pairs (no members).

    Args:
        train: pairs to fit on.
        dev: pairs to choose on; None: cross-validation over `train`.
        voices: names of `varalign.canonical.voices.VOICES`.
        seed: of folds and anchors.

    Raises:
        ValueError: too few different images.
    """
    lexicon = None if train.captions is None else Lexicon.fitted(train.captions)
    names = [name for name in voices if name != "lexical" or lexicon is not None]
    pairs = train.pairs(lexicon)
    fitted = fit_voices(pairs, None if dev is None else dev.pairs(lexicon), voices=names, seed=seed)
    return FewPairs(fitted, lexicon, fitted.hub_gain(), fitted.correction(fitted.mixture, pairs))
