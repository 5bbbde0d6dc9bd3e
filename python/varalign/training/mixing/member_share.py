"""The members' share in the similarity, by the loss of held-out pairs as they will be scored: hubs corrected.

Members gain less by hub correction than closed forms do, so that the uncorrected loss would give them too much: on
Flickr8k's dev split it is least at a half, the corrected one at a quarter, and so is corrected Recall@1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from varalign.canonical.chance import clearly_lower
from varalign.canonical.voices.held_out import Scores, best_scale, losses_at, mixture

SHARES = tuple(step / 8 for step in range(7))


class Share(NamedTuple):
    """The members' share, the logit scale of the similarity with it, and its mean held-out loss."""

    share: float
    scale: float
    loss: float


def choose_share(closed: Sequence[Scores], members: Sequence[Scores], shares: Sequence[float] = SHARES) -> Share:
    """The members' share, by the loss of held-out pairs pooled over blocks.

    The share of the least loss is taken if that loss is lower than the first share's (0) by more than two standard
    errors of the pairs' differences, else the first, so that with few pairs chance does not decide. Hubs are corrected
    in these losses, where the scores come with a bank, if that lowers the loss of the first share.

    Args:
        closed: of the fitted voices, of every block. members: of the members.
    """
    tried: list[tuple[float, float, Tensor]] = []
    scale = 20.0
    for share in shares:
        mixed = mixture({"closed": closed, "members": members}, {"closed": 1 - share, "members": share})
        scale = best_scale(mixed, scale)
        losses = losses_at(mixed, scale)
        if not tried and losses.mean() >= (bare := losses_at([one.bare() for one in mixed], scale)).mean():
            closed, members = ([one.bare() for one in scores] for scores in (closed, members))
            losses = bare
        tried.append((share, scale, losses))
    first, least = tried[0], min(tried, key=lambda one: float(one[2].mean()))
    share, scale, losses = least if clearly_lower(least[2], first[2]) else first
    return Share(share, scale, float(losses.mean()))
