"""A head that keeps the closed form whole and puts perceptrons trained from random weights beside it.

B batch, F features, k dimensions of the closed form, K members, H hidden, D dimensions of a member.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.start import ClosedForm
from varalign.encoders.residual import deviations

MEMBER_DIM = 64


class EnsembleHeadConfig(TypedDict):
    """What rebuilds a head without its weights; JSON values."""

    feature_dim: int
    embedding_dim: int
    hidden_dim: int
    members: int
    member_dim: int
    dropout: float
    noise: float


class EnsembleHead(nn.Module):
    """[√(1 − share) · closed form, √(share / K) · member 1, …, √(share / K) · member K], each part of unit length.

    The similarity of two embeddings is then (1 − share) · the closed form's cosine + share · the mean of the members'.
    The closed form is right where the pairs say little, the members where it is too stiff, and what the members get
    wrong by chance cancels. While training, the embedding is the members' part alone, at full length: they learn all of
    the alignment, not what the closed form left over of pairs that it has seen. `share` is for whoever evaluates to
    choose (`varalign.training.fusion`); it starts at 0, where the head is the closed form.

    Built from sizes alone the closed form is 0: ready for `load_state_dict`.

    Args:
        feature_dim: F.
        embedding_dim: k + K · D, the width outside training.
        hidden_dim: H.
        members: K, at least 1.
        member_dim: D.
        dropout: after the members' activation, in [0, 1).
        noise: deviation of the normal noise on standardised features while training, drawn for each member.

    Raises:
        ValueError: for sizes below 1, an embedding no wider than the members, or rates out of range.
    """

    mean: Tensor
    deviation: Tensor
    closed_map: Tensor
    share: Tensor
    logit_scale: Tensor

    def __init__(
        self,
        feature_dim: int,
        embedding_dim: int,
        hidden_dim: int = 512,
        *,
        members: int = 8,
        member_dim: int = MEMBER_DIM,
        dropout: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        if min(feature_dim, hidden_dim, members, member_dim) < 1:
            raise ValueError(
                "feature_dim, hidden_dim, members and member_dim are at least 1, "
                f"got {feature_dim}, {hidden_dim}, {members} and {member_dim}"
            )
        closed_dim = embedding_dim - members * member_dim
        if closed_dim < 1:
            raise ValueError(
                f"{members} members of {member_dim} dimensions leave the closed form none of {embedding_dim}"
            )
        if not 0.0 <= dropout < 1.0 or noise < 0.0:
            raise ValueError(f"dropout is within [0, 1) and noise at least 0, got {dropout} and {noise}")
        self.feature_dim, self.embedding_dim, self.hidden_dim = feature_dim, embedding_dim, hidden_dim
        self.members, self.member_dim, self.dropout, self.noise = members, member_dim, dropout, noise
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))
        self.register_buffer("closed_map", torch.zeros(feature_dim, closed_dim))
        self.register_buffer("share", torch.zeros(()))
        self.register_buffer("logit_scale", torch.ones(()))
        self.hidden = nn.Parameter(torch.empty(members, feature_dim, hidden_dim))
        self.bias = nn.Parameter(torch.zeros(members * hidden_dim))  # one axis: no weight decay
        self.output = nn.Parameter(torch.empty(members, hidden_dim, member_dim))
        for weight in (self.hidden, self.output):
            nn.init.uniform_(weight, -1 / math.sqrt(weight.shape[1]), 1 / math.sqrt(weight.shape[1]))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B, k + K·D) unit vectors; in training mode to (B, K·D), the members alone."""
        centred = self._centred(features)
        if self.training:
            return self._trained(centred)
        closed, trained = self._closed(centred), self._trained(centred)
        return torch.cat([(1 - self.share).sqrt() * closed, self.share.sqrt() * trained], dim=1)

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, k) and (B, K·D): the closed form and the members, each of unit length whatever the share."""
        centred = self._centred(features)
        return self._closed(centred), self._trained(centred)

    def _centred(self, features: Tensor) -> Tensor:
        return features.to(self.mean.dtype) - self.mean

    def _closed(self, centred: Tensor) -> Tensor:
        return nn.functional.normalize((centred @ self.closed_map).float(), dim=-1)

    def _trained(self, centred: Tensor) -> Tensor:
        """(B, K·D), of unit length together."""
        standardised = (centred / self.deviation).expand(self.members, *centred.shape)
        if self.training and self.noise > 0:
            standardised = standardised + self.noise * torch.randn_like(standardised)
        hidden = nn.functional.gelu(standardised @ self.hidden + self.bias.view(self.members, 1, -1))
        hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        members = nn.functional.normalize((hidden @ self.output).float(), dim=-1) / math.sqrt(self.members)
        return members.transpose(0, 1).flatten(1)

    def to_config(self) -> EnsembleHeadConfig:
        """The sizes and rates: `EnsembleHead(**config)` takes the state dict of this one."""
        return {
            "feature_dim": self.feature_dim,
            "embedding_dim": self.embedding_dim,
            "hidden_dim": self.hidden_dim,
            "members": self.members,
            "member_dim": self.member_dim,
            "dropout": self.dropout,
            "noise": self.noise,
        }

    @staticmethod
    def from_closed_form(
        found: ClosedForm,
        covariance: RunningCovariance,
        side: Literal["image", "text"],
        *,
        seed: int = 0,
        members: int = 8,
        member_dim: int = MEMBER_DIM,
        **options: Any,
    ) -> EnsembleHead:
        """The head of one side of a closed form.

        Args:
            found: the closed form.
            covariance: the one it was fitted on; gives the deviations.
            side: "image" or "text".
            seed: draws the members; the process's random state stays as it is.
            members, member_dim: K and D.
            options: hidden_dim, dropout, noise, as for the class.
        """
        if side not in ("image", "text"):
            raise ValueError(f'side is "image" or "text", got {side!r}')
        linear_map, mean, matrix = (
            (found.image_map, found.image_mean, covariance.cov_x)
            if side == "image"
            else (found.text_map, found.text_mean, covariance.cov_y)
        )
        feature_dim, closed_dim = linear_map.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = closed_dim + members * member_dim
            head = EnsembleHead(feature_dim, width, members=members, member_dim=member_dim, **options)
        head.mean.copy_(mean)
        head.deviation.copy_(deviations(matrix))
        head.closed_map.copy_(linear_map)
        return head.to(linear_map.device)


def ensemble_heads(
    found: ClosedForm, covariance: RunningCovariance, *, seed: int = 0, logit_scale: float = 1.0, **options: Any
) -> tuple[EnsembleHead, EnsembleHead]:
    """The image head and the text head that hold a closed form and untrained members beside it.

    Args:
        found: the closed form.
        covariance: the one it was fitted on.
        seed: draws the members of both sides, each its own.
        logit_scale: at which the closed form's similarities are read.
        options: hidden_dim, members, member_dim, dropout, noise, as for `EnsembleHead`.
    """
    image = EnsembleHead.from_closed_form(found, covariance, "image", seed=2 * seed, **options)
    text = EnsembleHead.from_closed_form(found, covariance, "text", seed=2 * seed + 1, **options)
    for head in (image, text):
        head.logit_scale.fill_(logit_scale)
    return image, text
