"""The members' share in the similarity, by the loss of held-out pairs as they will be scored: hubs corrected.

Members gain less by hub correction than closed forms do, so that the uncorrected loss would give them too much: on
Flickr8k's dev split it is least at a half, the corrected one at a quarter, and so is corrected Recall@1.

b blocks of n held-out pairs, R pairs of the bank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varalign.canonical.hub_correction import TRAINED_SHARPNESS
from varalign.canonical.voices.held_out import best_scale
from varalign.losses.pair_loss import pair_losses

SHARES = tuple(step / 8 for step in range(7))


@dataclass(frozen=True)
class Scores:
    """Similarities of held-out pairs, and of a bank of training pairs with them.

    Attributes:
        pairs: (b, n, n), row i and column i of a block being a pair.
        of_texts: (b, R, n) the bank's images with the texts; of_images: (b, R, n) its texts with the images. None
            without a bank.
    """

    pairs: Tensor
    of_texts: Tensor | None = None
    of_images: Tensor | None = None

    @classmethod
    def of(cls, images: Tensor, texts: Tensor, bank: tuple[Tensor, Tensor] | None = None) -> Scores:
        """The scores of (b, n, D) images and texts and of the (R, D) images and texts of a bank."""
        pairs = images @ texts.mT
        return cls(pairs) if bank is None else cls(pairs, bank[0] @ texts.mT, bank[1] @ images.mT)

    def mixed(self, other: Scores, share: float) -> Scores:
        """(1 − share) of these and `share` of the other's."""
        if self.of_texts is None or self.of_images is None:
            return Scores(torch.lerp(self.pairs, other.pairs, share))
        assert other.of_texts is not None and other.of_images is not None
        both = (self.of_texts, other.of_texts), (self.of_images, other.of_images)
        return Scores(torch.lerp(self.pairs, other.pairs, share), *(torch.lerp(*one, share) for one in both))

    def losses(self, scale: float, positive: Tensor | None, *, corrected: bool) -> Tensor:
        """(b · n) losses of the pairs, each the mean of both directions."""
        if not corrected:
            return pair_losses(self.pairs, scale, positive).flatten()
        assert self.of_texts is not None and self.of_images is not None
        tau = TRAINED_SHARPNESS * scale
        texts, images = ((tau * bank).logsumexp(1) / tau for bank in (self.of_texts, self.of_images))
        return pair_losses(self.pairs, scale, positive, priors=(images, texts)).flatten()


def choose_share(
    closed: Sequence[Scores],
    members: Sequence[Scores],
    positives: Sequence[Tensor | None],
    shares: Sequence[float] = SHARES,
) -> tuple[float, float]:
    """The members' share and the logit scale, by the loss of held-out pairs pooled over parts.

    The share of the least loss is taken if that loss is lower than the first share's (0) by more than two standard
    errors of the pairs' differences, else the first, so that with few pairs chance does not decide. Hubs are corrected
    in these losses where that lowers the loss of the first share.

    Args:
        closed: of the fitted voices, each part of a split or of a cross-validation. members: of the members.
        positives: (b, n, n) which texts belong to which images; None: those on the diagonals.
    """
    tried: list[tuple[float, float, Tensor]] = []
    corrected, scale = False, 20.0
    for share in shares:
        mixed = [one.mixed(other, share) for one, other in zip(closed, members, strict=True)]
        blocks = [
            (block, None if positive is None else positive[place])
            for one, positive in zip(mixed, positives, strict=True)
            for place, block in enumerate(one.pairs)
        ]
        scale = best_scale(blocks, scale)

        def losses(corrected: bool, scored: Sequence[Scores] = mixed, at: float = scale) -> Tensor:
            both = zip(scored, positives, strict=True)
            return torch.cat([one.losses(at, positive, corrected=corrected) for one, positive in both])

        if not tried and all(one.of_texts is not None for one in mixed):
            corrected = bool(losses(True).mean() < losses(False).mean())
        tried.append((share, scale, losses(corrected)))
    first, least = tried[0], min(tried, key=lambda one: float(one[2].mean()))
    share, scale, _ = least if _clearly_lower(least[2], first[2]) else first
    return share, scale


def _clearly_lower(ours: Tensor, theirs: Tensor) -> bool:
    """Whether losses `ours` (n,) have a lower mean than `theirs`, by more than two standard errors."""
    gain = (theirs - ours).double()
    return len(gain) > 1 and float(gain.mean()) > float(2 * gain.std() / math.sqrt(len(gain)))
