"""Image encoders by their spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varalign.encoders.base import ImageEncoder
from varalign.encoders.specs import SpecError, parse_image_spec

__all__ = ["ImageEncoder", "build_image_encoder", "image_encoder_from_config"]


def build_image_encoder(
    spec: str,
    *,
    image_size: int | None = None,
    load_weights: bool = True,
    architecture: Mapping[str, Any] | None = None,
) -> ImageEncoder:
    """The image encoder that a spec names, in float32 on the CPU.

    Args:
        spec: see `specs.IMAGE_SPECS`.
        image_size: S, pixels a side, instead of the architecture's own (224 for resnet18).
        load_weights: False builds the architecture with random weights, for a checkpoint to fill; no hub, no file.
        architecture: what `ImageEncoder.architecture()` once gave, so that nothing has to be looked up.

    Raises:
        SpecError: the spec names nothing known, or a size is out of range.
        WeightsUnavailable: its weights are not here and not to be downloaded now.
        WeightsError: its weights file is broken, holds more than tensors, or does not fit.
    """
    parsed = parse_image_spec(spec)
    if image_size is not None and image_size < 1:
        raise SpecError(f"image_size is a number of pixels, at least 1, not {image_size}")
    if parsed.kind == "clip":
        from varalign.encoders.clip import ClipImageEncoder

        return ClipImageEncoder(parsed, image_size=image_size, load_weights=load_weights, architecture=architecture)
    if parsed.kind == "timm":
        from varalign.encoders.timm_image import TimmImageEncoder

        return TimmImageEncoder(parsed, image_size=image_size, load_weights=load_weights)
    from varalign.encoders.resnet import ResNet18

    return ResNet18(parsed, image_size=image_size, load_weights=load_weights)


def image_encoder_from_config(config: Mapping[str, Any], *, load_weights: bool) -> ImageEncoder:
    """The image encoder of a saved run, from `ImageEncoder.to_config()`."""
    return build_image_encoder(
        config["spec"],
        image_size=config["image_size"],
        load_weights=load_weights,
        architecture=config["architecture"],
    )
