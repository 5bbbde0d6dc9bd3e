"""A projection head that starts as the closed form and learns a residual on top of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varalign.encoders.batch_rows import RowDropout, normal_like
from varalign.encoders.head_shape import HeadShape


class ResidualHead(nn.Module):
    """A(x − μ) + R((x − μ) / σ), not normalised: the caller scales to unit length.

    R is a perceptron F → hidden → D whose last layer starts at 0, so that before the first step the head equals the
    closed form. A is scaled so that its outputs on the training features have mean norm 1, the scale on which R learns.
    Before `fill`, σ is 1 and everything except R's first layer is 0.

    Args:
        feature_dim: F.
        shape: `embedding_dim` D; `hidden_dim` and `dropout` of R (`hidden_dim` 0: no R); `input_noise`, standard
            deviation of the noise that is added to the standardised features in training, for A and R; `train_map`,
            whether A trains.
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
            self.residual = nn.Sequential(first, nn.GELU(), RowDropout(shape.dropout), last)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, D), not normalised."""
        centred = features.to(self.mean.dtype) - self.mean
        standardised = centred / self.deviation
        if self.training and self.noise > 0:
            standardised = standardised + self.noise * normal_like(standardised)
            centred = standardised * self.deviation
        projected: Tensor = self.linear(centred)
        return projected if self.residual is None else projected + self.residual(standardised)

    @torch.no_grad()
    def fill(self, linear_map: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Copy one side of a closed form: A (F, D), μ (F,), and the covariance (F, F) of the training features."""
        # √(mean squared norm) instead of the mean norm: a few per cent apart, but without a second pass over the data.
        norm = ((linear_map.T @ covariance) * linear_map.T).sum().clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(deviations(covariance.diagonal()))
        self.linear.weight.copy_((linear_map / norm if norm > 0 else linear_map).T)


def deviations(variance: Tensor) -> Tensor:
    """(F,) standard deviation of each feature from the variances (F,), for standardisation.

    A constant feature gets 1, because a division by its rounding error would blow it up.
    """
    deviation = variance.clamp_min(0).sqrt()
    return torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))
