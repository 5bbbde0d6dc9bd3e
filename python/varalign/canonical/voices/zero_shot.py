"""The voice of two towers that share a space already, such as CLIP's own: the cosine of their features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from varalign.canonical.maps import ClosedForm
from varalign.canonical.voices.voice_pairs import Pairs

NAME = "zero-shot"


class PlainSide(nn.Module):
    """One side: the first F columns of its input, of unit length."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that build another one of these."""
        return {"features": self.features}

    def forward(self, features: Tensor) -> Tensor:
        """(B, at least F) to (B, F) unit vectors."""
        return nn.functional.normalize(features[:, : self.features].float(), dim=-1)


def side_of(sizes: Mapping[str, int]) -> PlainSide:
    """A side of this size."""
    return PlainSide(**sizes)


class Fit:
    """Nothing is fitted: the towers share a space."""

    grid = None

    def __init__(self, pairs: Pairs, *, seed: int = 0, pool: Pairs | None = None) -> None:
        self._sizes = pairs.images.shape[1], pairs.texts.shape[1] - pairs.lexical

    def sides(self, found: ClosedForm | None) -> tuple[nn.Module, nn.Module]:
        """The image side and the text side."""
        return PlainSide(self._sizes[0]), PlainSide(self._sizes[1])
