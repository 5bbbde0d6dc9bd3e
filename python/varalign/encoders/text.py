"""Text encoders by their spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from varalign.data.tokenizers import Tokenizer, word_tokenizer
from varalign.encoders.base import TextEncoder
from varalign.encoders.specs import SpecError, parse_text_spec

__all__ = ["TextEncoder", "build_text_encoder", "text_encoder_from_config"]

WORDS_MAX_LENGTH = 40


def build_text_encoder(
    spec: str,
    *,
    captions: Sequence[str] | None = None,
    tokenizer: Tokenizer | None = None,
    pooling: str = "mean",
    bidirectional: bool = False,
    max_length: int | None = None,
    load_weights: bool = True,
    architecture: Mapping[str, Any] | None = None,
) -> TextEncoder:
    """The text encoder that a spec names, in float32 on the CPU.

    Args:
        spec: see `specs.TEXT_SPECS`.
        captions: the training captions; `lstm` builds its word vocabulary from them.
        tokenizer: a saved run's tokenizer; then no vocabulary is built or read.
        pooling: over the tokens: "mean" or "cls" for `bert`, "mean" or "last" for `lstm`; `clip` has its own.
        bidirectional: `lstm` reads both ways.
        max_length: longest text in tokens; longer ones are cut. `lstm` 40, `bert` 64, `clip` its context length.
        load_weights: False builds the architecture with random weights, for a checkpoint to fill; no hub, no file
            (`bert` and `clip` from a folder need `architecture` and `tokenizer` for that).
        architecture: what `TextEncoder.architecture()` once gave, so that nothing has to be looked up.

    Raises:
        SpecError: the spec names nothing known, pooling is unknown to the kind, or `lstm` gets neither captions nor
            tokenizer.
        WeightsUnavailable: its weights are not here and not to be downloaded now.
        WeightsError: its weights file is broken, holds more than tensors, or does not fit.
    """
    parsed = parse_text_spec(spec)
    if max_length is not None and max_length < 2:
        raise SpecError(f"max_length is a number of tokens, at least 2, not {max_length}")
    if parsed.kind == "clip":
        from varalign.encoders.clip import ClipTextEncoder

        return ClipTextEncoder(parsed, tokenizer=tokenizer, load_weights=load_weights, architecture=architecture)
    if parsed.kind == "bert":
        from varalign.encoders.bert import BertEncoder

        return BertEncoder(
            parsed,
            tokenizer=tokenizer,
            pooling=pooling,
            max_length=max_length,
            load_weights=load_weights,
            architecture=architecture,
        )
    from varalign.encoders.lstm import LSTMEncoder

    if tokenizer is None:
        if captions is None:
            raise SpecError(
                "'lstm' has no vocabulary of its own: pass the training captions, or a saved run's tokenizer"
            )
        tokenizer = word_tokenizer(captions, max_length=max_length or WORDS_MAX_LENGTH)
    sizes = {key: architecture[key] for key in LSTMEncoder.SIZES} if architecture is not None else {}
    return LSTMEncoder(tokenizer, **{"bidirectional": bidirectional, "pooling": pooling, **sizes})


def text_encoder_from_config(config: Mapping[str, Any], *, tokenizer: Tokenizer, load_weights: bool) -> TextEncoder:
    """The text encoder of a saved run, from `TextEncoder.to_config()` and the tokenizer saved beside it."""
    architecture = config["architecture"]
    return build_text_encoder(
        config["spec"],
        tokenizer=tokenizer,
        pooling=architecture.get("pooling", "mean"),
        load_weights=load_weights,
        architecture=architecture,
    )
