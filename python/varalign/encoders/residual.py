"""A projection head that starts at the closed form and learns what a linear map leaves over."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.start import ClosedForm


class ResidualHeadConfig(TypedDict):
    """What rebuilds a head without its weights; JSON values."""

    feature_dim: int
    embedding_dim: int
    hidden_dim: int
    dropout: float
    noise: float
    train_linear: bool


class ResidualHead(nn.Module):
    """A(x − μ) + R((x − μ) / σ), not normalised: the caller scales to unit length.

    R is features → hidden → dimensions with its last layer at 0, so before any step the head is the closed form. A is
    scaled so that its outputs on the training features have mean norm 1, the scale on which R learns. Built from sizes
    alone everything is 0 (σ is 1): ready for `load_state_dict`.

    Args:
        feature_dim: width of the features.
        embedding_dim: width of the shared space.
        hidden_dim: width inside R; 0 leaves R out.
        dropout: after R's activation, in [0, 1).
        noise: deviation of the normal noise added to standardised features while training, to A's input as well.
        train_linear: whether A has a gradient.

    Raises:
        ValueError: for sizes below 1 (hidden_dim below 0), or rates out of range.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        feature_dim: int,
        embedding_dim: int,
        hidden_dim: int = 1024,
        *,
        dropout: float = 0.0,
        noise: float = 0.0,
        train_linear: bool = True,
    ) -> None:
        super().__init__()
        if feature_dim < 1 or embedding_dim < 1 or hidden_dim < 0:
            raise ValueError(
                "feature_dim and embedding_dim are at least 1 and hidden_dim at least 0, "
                f"got {feature_dim}, {embedding_dim} and {hidden_dim}"
            )
        if not 0.0 <= dropout < 1.0 or noise < 0.0:
            raise ValueError(f"dropout is within [0, 1) and noise at least 0, got {dropout} and {noise}")
        self.feature_dim, self.embedding_dim, self.hidden_dim = feature_dim, embedding_dim, hidden_dim
        self.dropout, self.noise = dropout, noise
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("deviation", torch.ones(feature_dim))
        self.linear = nn.Linear(feature_dim, embedding_dim, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.linear.weight.requires_grad_(train_linear)
        self.residual: nn.Sequential | None = None
        if hidden_dim:
            last = nn.Linear(hidden_dim, embedding_dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.residual = nn.Sequential(nn.Linear(feature_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout), last)

    def forward(self, features: Tensor) -> Tensor:
        """(B, feature_dim) to (B, embedding_dim), not normalised."""
        centred = features.to(self.mean.dtype) - self.mean
        standardised = centred / self.deviation
        if self.training and self.noise > 0:
            standardised = standardised + self.noise * torch.randn_like(standardised)
            centred = standardised * self.deviation
        projected: Tensor = self.linear(centred)
        return projected if self.residual is None else projected + self.residual(standardised)

    def to_config(self) -> ResidualHeadConfig:
        """The sizes and rates: `ResidualHead(**config)` takes the state dict of this one."""
        return {
            "feature_dim": self.feature_dim,
            "embedding_dim": self.embedding_dim,
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout,
            "noise": self.noise,
            "train_linear": self.linear.weight.requires_grad,
        }

    @classmethod
    def from_closed_form(
        cls, found: ClosedForm, covariance: RunningCovariance, side: Literal["image", "text"], **options: Any
    ) -> ResidualHead:
        """The head of one side of a closed form and the covariance it was fitted on; options as for `from_linear`."""
        if side == "image":
            return cls.from_linear(found.image_map, found.image_mean, covariance.cov_x, **options)
        if side == "text":
            return cls.from_linear(found.text_map, found.text_mean, covariance.cov_y, **options)
        raise ValueError(f'side is "image" or "text", got {side!r}')

    @staticmethod
    def from_linear(
        linear_map: Tensor,
        mean: Tensor,
        covariance: Tensor,
        hidden_dim: int = 1024,
        *,
        dropout: float = 0.0,
        noise: float = 0.0,
        train_linear: bool = True,
        seed: int = 0,
    ) -> ResidualHead:
        """A head at one side of a closed form.

        Args:
            linear_map: (dx, k), A or B.
            mean: (dx,).
            covariance: (dx, dx) of the training features; gives σ and the scale of A.
            hidden_dim, dropout, noise, train_linear: as for the class.
            seed: draws R's first layer; the process's random state stays as it is.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            feature_dim, embedding_dim = linear_map.shape
            head = ResidualHead(
                feature_dim, embedding_dim, hidden_dim, dropout=dropout, noise=noise, train_linear=train_linear
            )
        # √(mean squared norm) stands for the mean norm: no second pass over the features, a few per cent apart.
        norm = ((linear_map.T @ covariance) * linear_map.T).sum().clamp_min(0).sqrt()
        with torch.no_grad():
            head.mean.copy_(mean)
            head.deviation.copy_(deviations(covariance))
            head.linear.weight.copy_((linear_map / norm if norm > 0 else linear_map).T)
        return head.to(linear_map.device)


def deviations(covariance: Tensor) -> Tensor:
    """(F,) deviation of each feature from their covariance (F, F), by which to standardise.

    A feature that never changes has 1: it is left as it is, not blown up by a division by its rounding.
    """
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    return torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))


def residual_heads(
    found: ClosedForm,
    covariance: RunningCovariance,
    hidden_dim: int = 1024,
    *,
    dropout: float = 0.0,
    noise: float = 0.0,
    train_linear: bool = True,
    seed: int = 0,
) -> tuple[ResidualHead, ResidualHead]:
    """The image head and the text head that start at a closed form.

    Args:
        found: the closed form.
        covariance: the one it was fitted on.
        hidden_dim, dropout, noise, train_linear, seed: as for `ResidualHead.from_linear`.
    """
    options: dict[str, Any] = {
        "hidden_dim": hidden_dim,
        "dropout": dropout,
        "noise": noise,
        "train_linear": train_linear,
    }
    image = ResidualHead.from_closed_form(found, covariance, "image", seed=2 * seed, **options)
    text = ResidualHead.from_closed_form(found, covariance, "text", seed=2 * seed + 1, **options)
    return image, text
