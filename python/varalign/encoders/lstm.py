"""Word embedding and LSTM as a text encoder, trained from nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from varalign.data.tokenizers import Tokenizer
from varalign.encoders.base import TextEncoder, cut_padding, masked_mean, plain, token_mask
from varalign.encoders.specs import SpecError

POOLINGS = ("mean", "last")


class LSTMEncoder(TextEncoder):
    """Word embeddings (dropout) → LSTM over the packed sequence → pooled states.

    Packing by length means that the LSTM never sees padding, so a text's features do not depend on its batch.

    Args:
        tokenizer: a word tokenizer; its vocabulary size and padding id shape the embedding.
        bidirectional: read both ways; doubles the feature dimension.
        pooling: "mean" of the states over the text's tokens, or the "last" state (both directions' ends).
        embedding_dim: width of the word embeddings.
        hidden_dim: width of the state, per direction.
        layers: stacked LSTM layers.
        dropout: on the embeddings and between layers.
    """

    SIZES = ("bidirectional", "pooling", "embedding_dim", "hidden_dim", "layers", "dropout")
    """The arguments that `architecture` records."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        spec: str = "lstm",
        bidirectional: bool = False,
        pooling: str = "mean",
        embedding_dim: int = 300,
        hidden_dim: int = 512,
        layers: int = 1,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise SpecError(f"'lstm' pools by {' or '.join(POOLINGS)}, not by '{pooling}'")
        self.tokenizer = tokenizer
        self.spec = spec
        self.has_source = False
        self.pooling = pooling
        self.feature_dim = hidden_dim * (2 if bidirectional else 1)
        self.embedding = nn.Embedding(tokenizer.vocabulary_size, embedding_dim, padding_idx=tokenizer.pad_id)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            embedding_dim,
            hidden_dim,
            num_layers=layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
            bidirectional=bidirectional,
        )

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of ids (B, L); lengths (B,) belong on the CPU (packing needs them there)."""
        lengths = lengths.cpu().clamp(min=1)  # waits for the device when they are not on the CPU
        ids = cut_padding(ids, lengths)
        words = self.dropout(self.embedding(ids))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        outputs, (hidden, _) = self.lstm(packed)
        if self.pooling == "last":
            # hidden is (layers · directions, B, H): the top layer's rows are the last ones.
            return torch.cat([hidden[-2], hidden[-1]], dim=1) if self.lstm.bidirectional else hidden[-1]
        states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=ids.shape[1])
        return masked_mean(states, token_mask(ids, lengths))

    def blocks(self) -> list[nn.Module]:
        """The word embedding, then the LSTM."""
        return [self.embedding, self.lstm]

    def architecture(self) -> dict[str, Any]:
        """Sizes and pooling."""
        return plain(
            {
                "kind": "lstm",
                "bidirectional": self.lstm.bidirectional,
                "pooling": self.pooling,
                "embedding_dim": self.embedding.embedding_dim,
                "hidden_dim": self.lstm.hidden_size,
                "layers": self.lstm.num_layers,
                "dropout": self.dropout.p,
                "tokenizer": self.tokenizer.fingerprint,
            }
        )
