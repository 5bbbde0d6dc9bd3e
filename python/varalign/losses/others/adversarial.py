"""Adversarial contrastive training: the worst small change of the embeddings, or of the inputs, is trained on too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from varalign.losses.others.base import Batch, Objective, both, infonce


class AdversarialEmbeddings(Objective):
    """Half the plain loss, half the one of embeddings moved against it.

    Args:
        strength: ε, how far each embedding may be moved, in parts of its length.
        steps: 1 is FGSM's single step, more is PGD.

    Source: Goodfellow et al. 2015 (FGSM); Madry et al. 2018 (PGD); for contrastive learning Kim et al. 2020.
    """

    def __init__(self, strength: float = 0.1, steps: int = 1) -> None:
        super().__init__()
        self.epsilon, self.steps = strength, steps

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        plain = both(infonce, batch)
        moved = []
        for side in ("images", "texts"):
            vectors = getattr(batch, side)

            def damage(change: Tensor, side: str = side, vectors: Tensor = vectors) -> Tensor:
                fixed = {name: getattr(batch, name).detach() for name in ("images", "texts", "logit_scale")}
                return _mean(replace(batch, **fixed | {side: normalize(vectors.detach() + change, dim=1)}))

            change = worst_change(damage, vectors.detach(), self.epsilon, self.steps, each_length=True)
            moved.append(normalize(vectors + change, dim=1))
        return _halves(plain, both(infonce, replace(batch, images=moved[0], texts=moved[1])))


class AdversarialInputs(Objective):
    """Half the plain loss, half the one of images whose inputs were moved against it: pixels, or cached features.

    Args:
        strength: ε, the largest change of a pixel, in normalised units (of a feature, in its deviations in the batch).
        steps: 1 is FGSM's single step, more is PGD. Each costs a pass through the image side.

    Source: as in `AdversarialEmbeddings`.
    """

    def __init__(self, strength: float = 0.03, steps: int = 1) -> None:
        super().__init__()
        self.epsilon, self.steps = strength, steps

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        if batch.inputs is None or batch.embed is None:
            raise ValueError("adversarial-inputs needs what the image side was given: pass inputs and embed to `see`")
        plain = both(infonce, batch)
        inputs, embed = batch.inputs.detach(), batch.embed
        unit = inputs.std(0, keepdim=True) if inputs.ndim == 2 else torch.ones((), device=inputs.device)

        def damage(change: Tensor) -> Tensor:
            texts, scale = batch.texts.detach(), batch.logit_scale.detach()
            return _mean(replace(batch, images=embed(inputs + unit * change), texts=texts, logit_scale=scale))

        change = worst_change(damage, inputs, self.epsilon, self.steps)
        return _halves(plain, both(infonce, replace(batch, images=embed(inputs + unit * change))))


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


def _mean(batch: Batch) -> Tensor:
    i2t, t2i, _ = both(infonce, batch)
    return i2t.mean() + t2i.mean()


_Values = tuple[Tensor, Tensor, Tensor | None]


def _halves(one: _Values, other: _Values) -> _Values:
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2, None
