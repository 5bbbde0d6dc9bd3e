"""A head that mixes voices: √w_v times the unit vector of voice v, one after the other.

The similarity of two embeddings is then Σ w_v cos_v, with weights w_v at least 0 that sum to 1 and are equal on both
sides. Voices that are fitted in closed form (`varalign.canonical.voices`) stay as fitted; the members are trained.

B batch, F features, L lexical dimensions, D dimensions of all voices together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from varalign.canonical.voices import side_of
from varalign.encoders.ensemble import Members
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.specs import Side


class VoicesHead(nn.Module):
    """One side of a mixture of voices.

    In training mode the embedding is the members' part alone, of unit length: the members learn the whole alignment
    rather than what the other voices leave of it. `varalign.training.fusion` chooses the members' share before each
    evaluation; it starts at 0.

    Args:
        feature_dim: F, without the lexical vectors.
        shape: `voices`, the sizes of each; `members` and what they need, see `Members`.
        side: "image" or "text".

    Attributes:
        member_dim: leading columns of the features that the members read.
        share: () of the members in the similarity.
        weights: (V,) of the other voices among themselves, 1 in all.
        logit_scale: () β of the mixture.
    """

    weights: Tensor
    share: Tensor
    logit_scale: Tensor

    def __init__(self, feature_dim: int, shape: HeadShape, side: Side) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.fixed = nn.ModuleDict({name: side_of(name, sizes[side]) for name, sizes in shape.voices.items()})
        self.member_dim = feature_dim + (shape.lexical_dim if side == "text" and shape.lexical_members else 0)
        self.members = Members(self.member_dim, shape) if shape.members else None
        self.register_buffer("weights", torch.full((len(shape.voices),), 1 / max(1, len(shape.voices))))
        self.register_buffer("share", torch.zeros(()))
        self.register_buffer("logit_scale", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F + L) to (B, D) unit vectors; in training mode to the members' part alone."""
        if self.members is None:
            return self.mixed(features)
        if self.training:
            return self._trained(features)
        mixed, trained = self.parts(features)
        return torch.cat([(1 - self.share).sqrt() * mixed, self.share.sqrt() * trained], dim=1)

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The other voices' mixture and the members' part, each of unit length, whatever the share."""
        return self.mixed(features), self._trained(features)

    def mixed(self, features: Tensor) -> Tensor:
        """(B, F + L) to the mixture of all voices but the members, of unit length."""
        parts = [
            weight.sqrt() * voice(features) for weight, voice in zip(self.weights, self.fixed.values(), strict=True)
        ]
        return torch.cat(parts, dim=1)

    def shares(self) -> dict[str, float]:
        """The weight of each voice in the similarity, the members' last."""
        share = float(self.share)
        found = {name: (1 - share) * float(weight) for name, weight in zip(self.fixed, self.weights, strict=True)}
        return found if self.members is None else {**found, "members": share}

    def _trained(self, features: Tensor) -> Tensor:
        assert self.members is not None
        trained: Tensor = self.members(features[:, : self.member_dim])
        return trained

    @torch.no_grad()
    def fill(self, sides: Mapping[str, nn.Module], weights: Mapping[str, float], logit_scale: float) -> None:
        """Take the fitted sides of the voices, their weights and β."""
        for place, name in enumerate(self.fixed):
            self.fixed[name] = sides[name]
            self.weights[place] = weights[name]
        self.logit_scale.fill_(logit_scale)
