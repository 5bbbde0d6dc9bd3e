"""Projection heads: from a tower's features to the shared space, before the vectors are scaled to unit length."""

from __future__ import annotations

from torch import Tensor, nn

HEADS = ("linear", "mlp")


class MLPHead(nn.Module):
    """Linear skip plus a two-layer perceptron: skip(x) + W₂ dropout(gelu(W₁ x)).

    The skip alone is the linear head, so the perceptron only has to learn what a linear map leaves over. On frozen
    features of Flickr8k (6,000 training images, 30 epochs, best epoch) mean dev recall was 42.0 %, with the linear head
    41.2 % and with the perceptron alone 39.6 %; layer or batch norm before it moved that by 0.2 at most.

    Args:
        feature_dim: width of the features.
        embedding_dim: width of the shared space.
        hidden_dim: width between the two layers.
        dropout: after the activation.
    """

    def __init__(self, feature_dim: int, embedding_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.skip = nn.Linear(feature_dim, embedding_dim)
        self.hidden = nn.Linear(feature_dim, hidden_dim)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, feature_dim) to (B, embedding_dim), not normalised."""
        projected: Tensor = self.skip(features) + self.output(self.dropout(self.activation(self.hidden(features))))
        return projected


def build_head(kind: str, feature_dim: int, embedding_dim: int, *, hidden_dim: int, dropout: float) -> nn.Module:
    """A projection head, "linear" or "mlp".

    Raises:
        ValueError: another kind.
    """
    if kind == "linear":
        return nn.Linear(feature_dim, embedding_dim)
    if kind == "mlp":
        return MLPHead(feature_dim, embedding_dim, hidden_dim, dropout)
    raise ValueError(f"unknown projection head '{kind}'; known: {', '.join(HEADS)}")
