"""A head with the closed form, unchanged, and an ensemble of perceptrons trained from random weights.

B batch, F features, k dimensions of the closed form, K members, H hidden, D dimensions of a member.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from varalign.encoders.batch_rows import dropout, normal_like
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.residual import deviations


class Members(nn.Module):
    """K perceptrons side by side on standardised features, trained from random weights: their errors average out.

    Args:
        feature_dim: F.
        shape: `members` K; `member_dim` D; `hidden_dim` H; `dropout` after the activation; `input_noise`, standard
            deviation of the noise that is added to the standardised features in training, drawn separately for each
            member.

    Raises:
        ValueError: no members.
    """

    mean: Tensor
    deviation: Tensor
    products: torch.dtype | None = None
    """Type of the matrix products in training; None: that of the weights. `trained_in` sets it."""

    def __init__(self, feature_dim: int, shape: HeadShape) -> None:
        super().__init__()
        members, member_dim, hidden_dim = shape.members, shape.member_dim, shape.hidden_dim
        if min(members, member_dim) < 1:
            raise ValueError(f"members and member_dim are at least 1, got {members} and {member_dim}")
        self.members, self.dropout, self.noise = members, shape.dropout, shape.input_noise
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))
        self.hidden = nn.Parameter(torch.empty(members, feature_dim, hidden_dim))
        self.bias = nn.Parameter(torch.zeros(members * hidden_dim))  # one axis: no weight decay
        self.output = nn.Parameter(torch.empty(members, hidden_dim, member_dim))
        for weight in (self.hidden, self.output):
            nn.init.uniform_(weight, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, K·D), of unit length as a whole, each member's part of the same length."""
        return self._trained(self._centred(features))

    def _centred(self, features: Tensor) -> Tensor:
        return features.to(self.mean.dtype) - self.mean

    def _trained(self, centred: Tensor) -> Tensor:
        """(B, K·D) members' outputs, together of unit length."""
        standardised = (centred / self.deviation).expand(self.members, *centred.shape)
        if self.training and self.noise > 0:
            standardised = standardised + self.noise * normal_like(standardised, dim=1)
        dtype = self.products if self.training and self.products is not None else self.hidden.dtype
        bias = self.bias.view(self.members, 1, -1).to(dtype)
        hidden = nn.functional.gelu(standardised.to(dtype) @ self.hidden.to(dtype) + bias)
        hidden = dropout(hidden, self.dropout, self.training, dim=1)
        members = nn.functional.normalize((hidden @ self.output.to(dtype)).float(), dim=-1) / math.sqrt(self.members)
        return members.transpose(0, 1).flatten(1)

    @torch.no_grad()
    def standardise(self, mean: Tensor, variance: Tensor) -> None:
        """Copy μ (F,) and the deviations from the variances (F,) of the training features."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviations(variance))


def trained_in(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Let the members of a model multiply in `dtype` in training; weights, and all else, stay as they are."""
    for module in model.modules():
        if isinstance(module, Members):
            module.products = dtype


class EnsembleHead(Members):
    """[√(1 − share) · closed form, √(share / K) · member 1, …, √(share / K) · member K], each part of unit length.

    The similarity of two embeddings is then (1 − share) · cosine of the closed form + share · mean cosine of the
    members. The closed form is more accurate with few pairs, the members can fit what a linear map cannot, and their
    random errors average out. In training mode the embedding is the members' part alone, of unit length: the members
    learn the whole alignment rather than the residuals of the closed form on pairs that it was fitted to.
    `varalign.training.fusion` chooses `share` before each evaluation; it starts at 0, where the head equals the closed
    form. Before `fill` the closed form is 0.

    Args:
        feature_dim: F.
        shape: `embedding_dim` is k + K · D, the width outside training; `members` K; `member_dim` D; `hidden_dim` H;
            `dropout` after the members' activation; `input_noise`, standard deviation of the noise that is added to the
            standardised features in training, drawn separately for each member.

    Raises:
        ValueError: no members, or an embedding no wider than they are.
    """

    closed_map: Tensor
    share: Tensor
    logit_scale: Tensor

    def __init__(self, feature_dim: int, shape: HeadShape) -> None:
        super().__init__(feature_dim, shape)
        closed_dim = shape.embedding_dim - shape.members * shape.member_dim
        if closed_dim < 1:
            raise ValueError(
                f"{shape.members} members of {shape.member_dim} dimensions leave the closed form none of "
                f"{shape.embedding_dim}"
            )
        self.register_buffer("closed_map", torch.zeros(feature_dim, closed_dim))
        self.register_buffer("share", torch.zeros(()))
        self.register_buffer("logit_scale", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, k + K·D) unit vectors; in training mode to (B, K·D), the members alone."""
        if self.training:
            return self._trained(self._centred(features))
        closed, trained = self.parts(features)
        return torch.cat([(1 - self.share).sqrt() * closed, self.share.sqrt() * trained], dim=1)

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, k) closed form and (B, K·D) members, each part of unit length, whatever the share."""
        centred = self._centred(features)
        closed = nn.functional.normalize((centred @ self.closed_map).float(), dim=-1)
        return closed, self._trained(centred)

    @torch.no_grad()
    def fill(self, linear_map: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Copy one side of a closed form: map (F, k), μ (F,), and the covariance (F, F) of the training features."""
        self.standardise(mean, covariance.diagonal())
        self.closed_map.copy_(linear_map)
