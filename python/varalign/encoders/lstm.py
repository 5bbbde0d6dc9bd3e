"""Word embedding and LSTM as a text encoder, trained from random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from varalign.data.readers.word_vectors import WordVectors, read_word_vectors
from varalign.data.tokens.tokenizers import word_tokenizer
from varalign.encoders.base import TextEncoder, TextOptions, cut_padding, masked_mean, plain, token_mask
from varalign.encoders.batch_rows import RowDropout
from varalign.encoders.specs import EncoderSpec, SpecError

POOLINGS = ("mean", "last")
MAX_LENGTH = 40
GROUP = 56
"""Texts of similar length that a CPU runs through the LSTM together: with fewer the products are small, with more there
is more padding. Forward and backward of 320 captions of Flickr8k take 0.70 of a packed sequence's time in float32 and
0.82 in bfloat16; in two directions 0.47 and 0.75."""


class LSTMEncoder(TextEncoder):
    """Word embeddings (dropout) → LSTM → pooled states.

    A text's features do not depend on the padding or on the other texts of its batch, up to the rounding of sums. A CPU
    runs texts of similar length through the LSTM together; elsewhere a batch is one packed sequence.

    Args:
        spec: kind `lstm`.
        options: `tokenizer`, or `captions` to build a word vocabulary from. `word_vectors` names a file of vectors that
            the word embedding starts from, as wide as they are. `bidirectional` doubles the feature
            dimension. `pooling` is the "mean" of the states over the text's tokens, or the "last" state (the ends of
            both directions). `architecture` may give other sizes than `SIZES`.
    """

    SIZES: Mapping[str, Any] = {"embedding_dim": 300, "hidden_dim": 512, "layers": 1, "dropout": 0.2}
    """Width of the word embeddings, width of the state per direction, number of layers, dropout on the embeddings and
    between layers."""

    def __init__(self, spec: EncoderSpec, options: TextOptions) -> None:
        super().__init__()
        chosen = {
            "bidirectional": options.bidirectional,
            "pooling": "mean" if options.pooling == "auto" else options.pooling,
        }
        sizes = {**self.SIZES, **chosen, **(options.architecture or {})}
        if sizes["pooling"] not in POOLINGS:
            raise SpecError(f"'lstm' pools by {' or '.join(POOLINGS)}, not by '{sizes['pooling']}'")
        tokenizer = options.tokenizer
        if tokenizer is None:
            if options.captions is None:
                raise SpecError(
                    "'lstm' has no vocabulary of its own: pass the training captions, or a saved run's tokenizer"
                )
            tokenizer = word_tokenizer(options.captions, max_length=options.max_length or MAX_LENGTH)
        self.tokenizer = tokenizer
        self.spec = str(spec)
        self.has_source = False
        self.pooling = sizes["pooling"]
        hidden_dim, layers, bidirectional = sizes["hidden_dim"], sizes["layers"], sizes["bidirectional"]
        self.feature_dim = hidden_dim * (2 if bidirectional else 1)
        known = None
        if options.word_vectors is not None and options.architecture is None:
            known = read_word_vectors(Path(options.word_vectors), tokenizer.words)
            sizes["embedding_dim"] = known.vectors.shape[1]
        self.embedding = nn.Embedding(tokenizer.vocabulary_size, sizes["embedding_dim"], padding_idx=tokenizer.pad_id)
        self.words_found = None if known is None else (int(known.found.sum()), len(known.found))
        if known is not None:
            self._start_from(known)
        self.dropout = RowDropout(sizes["dropout"])
        self.lstm = nn.LSTM(
            sizes["embedding_dim"],
            hidden_dim,
            num_layers=layers,
            batch_first=True,
            dropout=sizes["dropout"] if layers > 1 else 0.0,
            bidirectional=bidirectional,
        )

    @torch.no_grad()
    def _start_from(self, known: WordVectors) -> None:
        """Put the vectors where the words' random ones are, scaled to the same size: a deviation of 1 in all."""
        first = self.embedding.num_embeddings - len(known.found)
        found = torch.from_numpy(known.vectors[known.found])
        found = found / found.square().mean().sqrt().clamp_min(1e-12)
        self.embedding.weight[first + torch.from_numpy(known.found.nonzero()[0])] = found

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of ids (B, L); lengths (B,) should be on the CPU, where they are sorted."""
        lengths = lengths.cpu().clamp(min=1)  # waits for the device if they are not on the CPU
        ids = cut_padding(ids, lengths)
        words = self.dropout(self.embedding(ids))
        if torch.compiler.is_exporting():
            return self._recorded(words, lengths)
        if words.device.type == "cpu":
            return self._by_length(words, lengths)
        if not self.lstm.bidirectional:  # a GPU takes the padding in less time than a packed sequence
            return self._dense(words, lengths)
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        outputs, (hidden, _) = self.lstm(packed)
        if self.pooling == "last":
            return self._ends(hidden)
        states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=ids.shape[1])
        return masked_mean(states, token_mask(ids, lengths))

    def _recorded(self, words: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of words (B, L, E) by shapes that follow from no value, for torch.export.

        Raises:
            SpecError: two directions.
        """
        if self.lstm.bidirectional:
            raise SpecError("an LSTM in two directions starts in the padding of a text, so it cannot be exported")
        states, _ = self.lstm(words)
        if self.pooling == "mean":
            return masked_mean(states, token_mask(states[:, :, 0], lengths))
        return states.take_along_dim((lengths - 1)[:, None, None], dim=1)[:, 0]

    def _by_length(self, words: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of words (B, L, E), by groups of similar length.

        Padding follows a text's words, so it does not change their states in one direction. In two directions a group's
        texts have one length, because the backward direction would start in the padding.
        """
        lengths, order = lengths.sort(stable=True)
        sizes: int | list[int] = GROUP
        if self.lstm.bidirectional:
            sizes = torch.unique_consecutive(lengths, return_counts=True)[1].tolist()
        groups = zip(words.index_select(0, order).split(sizes), lengths.split(sizes), strict=True)
        return torch.cat([self._dense(*group) for group in groups]).index_select(0, order.argsort())

    def _dense(self, words: Tensor, lengths: Tensor) -> Tensor:
        """(G, feature_dim) features of words (G, L, E) and lengths (G,); in two directions all of one length."""
        states, (hidden, _) = self.lstm(words[:, : int(lengths.max())])
        if self.pooling == "mean":
            return masked_mean(states, token_mask(states[:, :, 0], lengths))
        if self.lstm.bidirectional:
            return self._ends(hidden)
        last = (lengths - 1).to(states.device)
        return states[torch.arange(len(states), device=states.device), last]

    def _ends(self, hidden: Tensor) -> Tensor:
        """(B, feature_dim) last states of the top layer; hidden (layers · directions, B, H) has its rows last."""
        return torch.cat([hidden[-2], hidden[-1]], dim=1) if self.lstm.bidirectional else hidden[-1]

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
