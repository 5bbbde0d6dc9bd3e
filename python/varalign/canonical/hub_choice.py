"""Whether hub correction helps, judged on held-out pairs that its bank has not seen.

It is taken where Recall@1, the mean of both directions, rises by more than `STANDARD_ERRORS` of the images' differences
(five chances in a hundred that it rises so by luck), and the symmetric loss of the pairs does not. A data set whose
queries are unlike the bank's is hurt by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.canonical.hub_correction import HubCorrection, corrected_ranks
from varalign.evaluation.retrieval import is_hit, ranks

# I images, T texts, E pairs of a text and an image, D embedding

STANDARD_ERRORS = 1.645


@dataclass(frozen=True)
class HeldOut:
    """Embeddings of held-out images and their texts.

    Attributes:
        images: (I, D) unit vectors. texts: (T, D) unit vectors.
        pairs: (E, 2) int64, a text and an image that belong together each.
    """

    images: Tensor
    texts: Tensor
    pairs: Tensor

    def part(self, images: Tensor) -> HeldOut:
        """The pairs of some images alone, given as (n,) rows."""
        place = torch.full((len(self.images),), -1, dtype=torch.int64, device=images.device)
        place[images] = torch.arange(len(images), device=images.device)
        kept = self.pairs[place[self.pairs[:, 1]] >= 0]
        texts, text = torch.unique(kept[:, 0], return_inverse=True)
        return HeldOut(self.images[images], self.texts[texts], torch.stack([text, place[kept[:, 1]]], dim=1))

    def halves(self) -> tuple[HeldOut, HeldOut]:
        """Every other image, and the rest."""
        rows = torch.arange(len(self.images), device=self.pairs.device)
        return self.part(rows[::2]), self.part(rows[1::2])


@dataclass(frozen=True)
class Gain:
    """What hub correction changes on held-out pairs.

    Attributes:
        images: how many it was judged on.
        recall, corrected_recall: mean of i2t and t2i Recall@1 without and with it, fractions.
        error: standard error of the difference.
        loss, corrected_loss: symmetric loss of each image with its first text.
    """

    images: int
    recall: float
    corrected_recall: float
    error: float
    loss: float
    corrected_loss: float

    @property
    def taken(self) -> bool:
        """Whether the correction is to be used."""
        risen = self.corrected_recall - self.recall > STANDARD_ERRORS * self.error
        return risen and self.corrected_loss < self.loss

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "taken": self.taken}


def judge(held_out: HeldOut, correction: HubCorrection, logit_scale: float) -> Gain:
    """What a correction changes on pairs that are not in its bank.

    Args:
        held_out: at least two images.
        correction: of banks without these pairs.
        logit_scale: of the similarities.
    """
    return judge_parts([(held_out, correction)], logit_scale)


def judge_parts(parts: Sequence[tuple[HeldOut, HubCorrection]], logit_scale: float) -> Gain:
    """`judge` over several parts, such as the folds of a cross-validation, each with a correction of its own."""
    return _gain([_differences(held_out, correction, logit_scale) for held_out, correction in parts])


def judge_by_halves(held_out: HeldOut, make: Callable[[HeldOut], HubCorrection], logit_scale: float) -> Gain:
    """`judge` where the held-out pairs are the bank too: each half is corrected by a bank of the other.

    Args:
        held_out: at least four images.
        make: the correction whose bank is the given pairs.
        logit_scale: of the similarities.
    """
    first, second = held_out.halves()
    return judge_parts([(a, make(b)) for a, b in ((first, second), (second, first))], logit_scale)


def _gain(parts: list[Tensor]) -> Gain:
    table = torch.cat(parts, dim=1).double()
    recall, corrected_recall, loss, corrected_loss = table.mean(1).tolist()
    difference = table[1] - table[0]
    error = float(difference.std() / math.sqrt(len(difference))) if len(difference) > 1 else math.inf
    return Gain(len(difference), recall, corrected_recall, error, loss, corrected_loss)


def _differences(held_out: HeldOut, correction: HubCorrection, logit_scale: float) -> Tensor:
    """(4, P) of each image with a text: its share of hits at 1 without and with the correction, then the losses."""
    images, texts, pairs = held_out.images, held_out.texts, held_out.pairs
    shown, first = torch.from_numpy(np.stack(np.unique(pairs[:, 1].cpu().numpy(), return_index=True)))
    plain = ranks(images, texts, pairs)
    corrected = corrected_ranks(images, texts, pairs, correction)
    hits = [_hits(i2t, t2i, pairs.cpu())[shown] for i2t, t2i in (plain, corrected)]
    u, v = images[shown.to(images.device)], texts[pairs[first.to(pairs.device), 0]]
    s = logit_scale * (u @ v.T)
    of_texts, of_images = logit_scale * correction.text_prior(v), logit_scale * correction.image_prior(u)
    return torch.stack([*hits, _losses(s, s).cpu(), _losses(s - of_texts, s - of_images[:, None]).cpu()])


def _hits(i2t: NDArray[np.int64], t2i: NDArray[np.int64], pairs: Tensor) -> Tensor:
    """(I,) float32: the mean of an image's hit at 1 (0 or 1) and of the share of its texts that are hits at 1."""
    text, image = pairs.unbind(1)
    image_hit, text_hit = (
        torch.from_numpy(is_hit(found, 1, candidates).astype(np.float32))
        for found, candidates in ((i2t, len(t2i)), (t2i, len(i2t)))
    )
    texts = torch.bincount(image, minlength=len(i2t)).clamp_min(1)
    return (image_hit + torch.zeros(len(i2t)).index_add_(0, image, text_hit[text]) / texts) / 2


def _losses(i2t_logits: Tensor, t2i_logits: Tensor) -> Tensor:
    """(P,) losses of the pairs on the diagonals of (P, P) logits, each the mean of both directions."""
    i2t = i2t_logits.logsumexp(1) - i2t_logits.diagonal()
    t2i = t2i_logits.logsumexp(0) - t2i_logits.diagonal()
    return (i2t + t2i) / 2
