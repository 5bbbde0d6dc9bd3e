"""A projection head that starts at the closed form and learns what a linear map leaves over."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varalign.encoders.head_shape import HeadShape


class ResidualHead(nn.Module):
    """A(x − μ) + R((x − μ) / σ), not normalised: the caller scales to unit length.

    R is features → hidden → dimensions with its last layer at 0, so before any step the head is the closed form. A is
    scaled so that its outputs on the training features have mean norm 1, the scale on which R learns. Before `fill`
    everything but R's first layer is 0 (σ is 1).

    Args:
        feature_dim: F.
        shape: `embedding_dim`; `hidden_dim` and `dropout` of R (0 leaves R out); `input_noise`, the deviation of the
            noise added to standardised features while training, to A's input as well; `train_map`, whether A trains.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, feature_dim: int, shape: HeadShape) -> None:
        super().__init__()
        self.noise = shape.input_noise
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))
        self.linear = nn.Linear(feature_dim, shape.embedding_dim, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.linear.weight.requires_grad_(shape.train_map)
        self.residual: nn.Sequential | None = None
        if shape.hidden_dim:
            last = nn.Linear(shape.hidden_dim, shape.embedding_dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(feature_dim, shape.hidden_dim)
            self.residual = nn.Sequential(first, nn.GELU(), nn.Dropout(shape.dropout), last)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, D), not normalised."""
        centred = features.to(self.mean.dtype) - self.mean
        standardised = centred / self.deviation
        if self.training and self.noise > 0:
            standardised = standardised + self.noise * torch.randn_like(standardised)
            centred = standardised * self.deviation
        projected: Tensor = self.linear(centred)
        return projected if self.residual is None else projected + self.residual(standardised)

    @torch.no_grad()
    def fill(self, linear_map: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Take one side of a closed form: A (F, D), μ (F,), and the covariance (F, F) of the training features."""
        # √(mean squared norm) stands for the mean norm: no second pass over the features, a few per cent apart.
        norm = ((linear_map.T @ covariance) * linear_map.T).sum().clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(deviations(covariance))
        self.linear.weight.copy_((linear_map / norm if norm > 0 else linear_map).T)


def deviations(covariance: Tensor) -> Tensor:
    """(F,) deviation of each feature from their covariance (F, F), by which to standardise.

    A feature that never changes has 1: it is left as it is, not blown up by a division by its rounding.
    """
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    return torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))
