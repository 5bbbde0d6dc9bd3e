"""Kind and sizes of the projection heads of a dual encoder. D dimensions of the shared space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MEMBER_DIM = 64


@dataclass(frozen=True)
class HeadShape:
    """Kind, sizes and rates of the heads; the fields have the names of a run's `config.json`.

    Attributes:
        embedding_dim: D, width of the shared space.
        head: a name of `heads.HEADS`.
        hidden_dim: hidden width of the heads' perceptrons; 0: a residual head without perceptron.
        dropout: in the perceptrons, in [0, 1).
        input_noise: standard deviation of the normal noise on the heads' inputs in training, in standard deviations of
            each feature.
        train_map: whether the linear map of a residual head has a gradient.
        members, member_dim: number of perceptrons in an ensemble head or among voices, and the output width of each.
        voices: of a head of voices, each voice that is no member, with the sizes of its image and its text side.
        lexical_dim: width of the lexical vectors after the text features.
        lexical_members: whether members among voices read them too.

    Raises:
        ValueError: for sizes or rates out of range.
    """

    embedding_dim: int = 256
    head: str = "linear"
    hidden_dim: int = 512
    dropout: float = 0.0
    input_noise: float = 0.0
    train_map: bool = True
    members: int = 0
    member_dim: int = MEMBER_DIM
    voices: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    lexical_dim: int = 0
    lexical_members: bool = False

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or self.hidden_dim < (0 if self.head == "residual" else 1):
            raise ValueError(
                "embedding_dim and hidden_dim are at least 1 (hidden_dim 0 in a residual head), got "
                f"{self.embedding_dim} and {self.hidden_dim}"
            )
        if not 0.0 <= self.dropout < 1.0 or self.input_noise < 0.0:
            raise ValueError(
                f"dropout is within [0, 1) and input_noise at least 0, got {self.dropout} and {self.input_noise}"
            )
