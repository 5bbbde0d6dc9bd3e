"""Adversarial contrastive training: half of the loss is computed on embeddings that are perturbed to raise it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from varalign.losses.objective import Batch, Objective, Values, both, infonce


class AdversarialEmbeddings(Objective):
    """The mean of the plain loss and the loss of perturbed embeddings.

    Args:
        strength: ε, largest length of the perturbation of an embedding, as a share of its length.
        steps: 1 is FGSM's single step, more is PGD.

    Source: Goodfellow et al. 2015 (FGSM); Madry et al. 2018 (PGD); for contrastive learning Kim et al. 2020.
    """

    strength_range = (0.0, 1.0)

    def __init__(self, strength: float = 0.1, steps: int = 1) -> None:
        super().__init__()
        self.epsilon, self.steps = strength, steps

    def forward(self, batch: Batch) -> Values:
        plain = both(infonce, batch)
        moved = []
        for side in ("images", "texts"):
            vectors = getattr(batch, side)

            def damage(change: Tensor, side: str = side, vectors: Tensor = vectors) -> Tensor:
                fixed = {name: getattr(batch, name).detach() for name in ("images", "texts", "logit_scale")}
                return mean_loss(replace(batch, **fixed | {side: normalize(vectors.detach() + change, dim=1)}))

            change = worst_change(damage, vectors.detach(), self.epsilon, self.steps, each_length=True)
            moved.append(normalize(vectors + change, dim=1))
        return halves(plain, both(infonce, replace(batch, images=moved[0], texts=moved[1])))


def worst_change(
    damage: Callable[[Tensor], Tensor], like: Tensor, epsilon: float, steps: int, *, each_length: bool = False
) -> Tensor:
    """The change within ε that raises `damage` most, found by gradient steps from none; without gradient.

    Args:
        damage: from a change to a () loss.
        like: of the change's shape.
        epsilon: largest entry of the change, or with `each_length` largest length of each row.
        steps: 1 goes to the edge at once; s > 1 goes 2.5 ε / s a step and is cut back to the edge.
    """
    change = torch.zeros_like(like)
    length = epsilon if steps == 1 else 2.5 * epsilon / steps
    for _ in range(steps):
        with torch.enable_grad():
            change.requires_grad_(True)
            (slope,) = torch.autograd.grad(damage(change), change)
        with torch.no_grad():
            if each_length:
                change = change + length * normalize(slope, dim=1)
                change = change * (epsilon / change.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
            else:
                change = (change + length * slope.sign()).clamp(-epsilon, epsilon)
        change = change.detach()
    return change


def mean_loss(batch: Batch) -> Tensor:
    """() sum of both directions' mean plain losses."""
    i2t, t2i, _ = both(infonce, batch)
    return i2t.mean() + t2i.mean()


def halves(one: Values, other: Values) -> Values:
    """Mean of two results of `both`."""
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2, None


LOSS = AdversarialEmbeddings
