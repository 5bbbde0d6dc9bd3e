"""Adversarial training on inputs: half of the loss is computed on image inputs that are perturbed to raise it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from varalign.losses.objective import Batch, Objective, Values, both, infonce
from varalign.losses.others.adversarial import halves, mean_loss, worst_change


class AdversarialInputs(Objective):
    """The mean of the plain loss and the loss of images with perturbed inputs: pixels, or cached features.

    Args:
        strength: ε, the largest change of a pixel, in normalised units (of a feature, in its deviations in the batch).
        steps: 1 is FGSM's single step, more is PGD. Each costs a pass through the image side.

    Source: as in `adversarial`.
    """

    strength_range = (0.0, 10.0)
    reads_inputs = True

    def __init__(self, strength: float = 0.03, steps: int = 1) -> None:
        super().__init__()
        self.epsilon, self.steps = strength, steps

    def forward(self, batch: Batch) -> Values:
        if batch.inputs is None or batch.embed is None:
            raise ValueError("adversarial-inputs needs what the image side was given: pass inputs and embed to `see`")
        plain = both(infonce, batch)
        inputs, embed = batch.inputs.detach(), batch.embed
        unit = inputs.std(0, keepdim=True) if inputs.ndim == 2 else torch.ones((), device=inputs.device)

        def damage(change: Tensor) -> Tensor:
            texts, scale = batch.texts.detach(), batch.logit_scale.detach()
            return mean_loss(replace(batch, images=embed(inputs + unit * change), texts=texts, logit_scale=scale))

        change = worst_change(damage, inputs, self.epsilon, self.steps)
        return halves(plain, both(infonce, replace(batch, images=embed(inputs + unit * change))))


LOSS = AdversarialInputs
