"""Builds an encoder from its spec; the file of a kind, named in its row of `specs.KINDS`, is imported on demand."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from varalign.data.tokens.tokenizers import Tokenizer
from varalign.encoders.base import ImageEncoder, ImageOptions, TextEncoder, TextOptions
from varalign.encoders.hub import LOGGER
from varalign.encoders.specs import EncoderSpec, Side, SpecError, kind_of, parse_spec
from varalign.encoders.weights import first_line


def _class_of(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _parsed(text: str, side: Side) -> EncoderSpec:
    """The spec, or the one that its kind hands it over to, with a line on the logger `varalign`."""
    spec = parse_spec(text, side)
    hands_over = kind_of(spec, side).hands_over
    other = hands_over(spec) if hands_over else None
    if other is not None:
        LOGGER.warning("'%s' is read as %s: its folder has the format of that kind", spec, other)
    return other or spec


def build_image_encoder(spec: str, **options: Any) -> ImageEncoder:
    """The image encoder that a spec names, in float32 on the CPU.

    Args:
        spec: see `specs.IMAGE_SPECS`.
        options: the fields of `ImageOptions`.

    Raises:
        SpecError: the spec names nothing known, or a size is out of range.
        WeightsUnavailable: its weights are not on this machine and cannot be downloaded.
        WeightsError: its weights file is broken, holds more than tensors, or does not fit.
    """
    parsed, given = _parsed(spec, "image"), ImageOptions(**options)
    if given.image_size is not None and given.image_size < 1:
        raise SpecError(f"image_size is a number of pixels, at least 1, not {given.image_size}")
    encoder: ImageEncoder = _class_of(kind_of(parsed, "image").place)(parsed, given)
    if given.image_size is not None and given.architecture is None:
        _try_size(encoder, parsed)
    return encoder


def _try_size(encoder: ImageEncoder, spec: EncoderSpec) -> None:
    """Encode one black image: an architecture tells only in its forward pass that it cannot take a size."""
    size, training = encoder.preprocess.size, encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # each library's models raise errors of their own
        raise SpecError(
            f"'{spec}': this model takes no images of {size} x {size} pixels: {first_line(error)}; leave out the image "
            "size, or pass another one"
        ) from error
    encoder.train(training)


def build_text_encoder(spec: str, **options: Any) -> TextEncoder:
    """The text encoder that a spec names, in float32 on the CPU.

    Args:
        spec: see `specs.TEXT_SPECS`.
        options: the fields of `TextOptions`.

    Raises:
        SpecError: the spec names nothing known, pooling is unknown to the kind, or `lstm` gets neither captions nor
            tokenizer.
        WeightsUnavailable: its weights are not on this machine and cannot be downloaded.
        WeightsError: its weights file is broken, holds more than tensors, or does not fit.
    """
    parsed, given = _parsed(spec, "text"), TextOptions(**options)
    if given.max_length is not None and given.max_length < 2:
        raise SpecError(f"max_length is a number of tokens, at least 2, not {given.max_length}")
    encoder: TextEncoder = _class_of(kind_of(parsed, "text").place)(parsed, given)
    return encoder


def image_encoder_from_config(config: Mapping[str, Any], *, load_weights: bool) -> ImageEncoder:
    """The image encoder of a saved run, from `ImageEncoder.to_config()`."""
    options = {"image_size": config["image_size"], "architecture": config["architecture"]}
    return build_image_encoder(config["spec"], load_weights=load_weights, **options)


def text_encoder_from_config(config: Mapping[str, Any], *, tokenizer: Tokenizer, load_weights: bool) -> TextEncoder:
    """The text encoder of a saved run, from `TextEncoder.to_config()` and the tokenizer saved beside it."""
    options = {"tokenizer": tokenizer, "architecture": config["architecture"]}
    return build_text_encoder(config["spec"], load_weights=load_weights, **options)
