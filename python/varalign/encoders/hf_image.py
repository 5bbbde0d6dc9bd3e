"""Image encoders of transformers (CLIP, SigLIP, DINO, ViT, ConvNeXt), preprocessed as their folders say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from varalign.data.images import Preprocess, prepare
from varalign.encoders.base import ImageEncoder, ImageOptions, known_blocks, plain, present, refuse_batch_norms
from varalign.encoders.specs import EncoderSpec, SpecError
from varalign.encoders.transformers_model import (
    WEIGHT_NAMES,
    checkpoint_layers,
    has_projection,
    lasting_config,
    model_folder,
    random_model,
    read_config,
    read_model,
)
from varalign.encoders.weights import first_line

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
NEEDED = (("config.json",), WEIGHT_NAMES, PROCESSORS)
BLOCKS = (
    "vision_model.encoder.layers",
    "encoder.layers",
    "encoder.layer",
    "model.layer",
    "layers",
    "layer",
    "stages",
    "encoder.stages",
    "model.stages",
)
TAIL = ("layernorm", "layer_norm", "norm", "post_layernorm", "head", "pooler", "visual_projection")
INTERPOLATIONS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
# Steps of a processor besides resizing, cropping, rescaling and normalising; those that change no RGB photograph.
HARMLESS_STEPS = ("do_convert_rgb",)
KNOWN_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", *HARMLESS_STEPS)


class HfImageEncoder(ImageEncoder):
    """An image model of transformers; features are those that the model defines.

    They are CLIP's `image_embeds`, else `pooler_output`, else, where the folder has no weights for a pooler, the last
    state of the class token, or the mean of the states of a model without one.

    Size, cropping, mean, deviation and interpolation are those of the folder's image processor. Where it crops less
    than the whole short side (DINOv2: 224 of 256), `preprocess` makes the larger square and the tower crops its centre.

    Args:
        spec: kind `hf`; its name is a hub name or a folder with config.json, weights and preprocessor_config.json.
        options: with `image_size`, pixels a side of what the tower sees, the position embeddings are interpolated as
            transformers does it; with `architecture` and without `load_weights` no source is looked up.

    Raises:
        SpecError: the processor does what varalign has not, or the model takes no images of that size.
    """

    def __init__(self, spec: EncoderSpec, options: ImageOptions) -> None:
        super().__init__()
        known = options.architecture
        if known is not None and not options.load_weights:
            self.model = random_model(known["config"], spec, "image", projected=known["projected"])
            if not known["pooler"] and hasattr(self.model, "pooler"):
                self.model.pooler = None
        else:
            folder = model_folder(spec, NEEDED, "--image-encoder")
            config = read_config(folder)
            if options.load_weights:
                self.model = read_model(folder, spec, "image")
            else:
                self.model = random_model(config, spec, "image")
            if known is None:
                known = {"processor": _processor(folder, spec)}
        self._processor = dict(known["processor"])
        self.preprocess, self.crop = _preprocess(self._processor, options.image_size, spec)
        own_size = getattr(self.model.config, "image_size", None)
        takes = inspect.signature(self.model.forward).parameters
        resized = own_size is not None and self.crop != own_size and "interpolate_pos_encoding" in takes
        self._options = {"interpolate_pos_encoding": True} if resized else {}
        self.feature_dim = self._width(spec)
        self.spec = str(spec.with_absolute_path())
        self.has_source = True

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, feature_dim) features of pixels (B, 3, S, S), whose centre is taken where the tower sees less than S."""
        edge = (pixels.shape[-1] - self.crop) // 2
        if edge > 0:
            pixels = pixels[..., edge : edge + self.crop, edge : edge + self.crop]
        found = self.model(pixel_values=pixels, **self._options)
        features: Tensor | None = found.get("image_embeds")
        if features is None:
            features = found.get("pooler_output")
        if features is None:
            states: Tensor = found.last_hidden_state
            if states.ndim == 4:
                return states.mean(dim=(2, 3))
            return states[:, 0] if self._has_class_token() else states.mean(dim=1)
        return features.flatten(1)

    def blocks(self) -> list[nn.Module]:
        """The transformer's layers or the network's stages."""
        return known_blocks(self.model, BLOCKS, self.spec)

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """Final norm, pooler and projection."""
        return present(self.model, TAIL) + present(getattr(self.model, "vision_model", nn.Module()), TAIL)

    def checkpoint_activations(self, beside_adapters: bool = False) -> None:
        """As `Encoder.checkpoint_activations`."""
        refuse_batch_norms(self)
        checkpoint_layers(self.model, self.spec, beside_adapters)

    def architecture(self) -> dict[str, Any]:
        """The model's config, which parts it has, and the image processor's settings."""
        return plain(
            {
                "kind": "hf-image",
                "config": lasting_config(self.model),
                "projected": has_projection(self.model),
                "pooler": getattr(self.model, "pooler", None) is not None,
                "processor": self._processor,
            }
        )

    def identity(self) -> dict[str, Any]:
        """As `Encoder.identity`: of the config only what differs from its class's defaults."""
        values = {**self.architecture(), "config": lasting_config(self.model, whole=False)}
        return {**values, "preprocess": plain(asdict(self.preprocess)), "crop": self.crop}

    def to_config(self) -> dict[str, Any]:
        """As `ImageEncoder.to_config`; the size is that of what the tower sees."""
        return {**super().to_config(), "image_size": self.crop}

    def _has_class_token(self) -> bool:
        embeddings = getattr(self.model, "embeddings", None)
        return any(getattr(embeddings, name, None) is not None for name in ("cls_token", "class_embedding"))

    def _width(self, spec: EncoderSpec) -> int:
        """Width of the features of one black image."""
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, 3, self.crop, self.crop))
        except Exception as error:  # each model of transformers raises errors of its own
            raise SpecError(
                f"'{spec}': its {type(self.model).__name__} takes no images of {self.crop} x {self.crop} pixels: "
                f"{first_line(error)}"
            ) from error
        if features.ndim != 2:
            raise SpecError(f"'{spec}': its {type(self.model).__name__} gives no vector for an image")
        return int(features.shape[1])


def _processor(folder: Path, spec: EncoderSpec) -> dict[str, Any]:
    """What the folder's image processor does to a picture, as JSON values for `_preprocess`.

    Raises:
        SpecError: it does what varalign has not; the setting is named.
    """
    from transformers import AutoImageProcessor

    try:
        found = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        values: dict[str, Any] = {key: value for key, value in found.to_dict().items() if value is not None}
    except Exception as error:  # each processor of transformers raises errors of its own
        raise SpecError(f"'{spec}': transformers cannot read its image processor: {first_line(error)}") from error
    kind = values.get("image_processor_type", type(found).__name__)

    def refuse(what: str) -> SpecError:
        return SpecError(f"'{spec}': its {kind} {what}, which varalign has not")

    steps = [key for key, value in values.items() if key.startswith("do_") and value and key not in KNOWN_STEPS]
    steps += [key for key in ("rescale_offset", "do_rescale_offset", "offset") if values.get(key)]
    if steps:
        raise refuse(f"sets {', '.join(steps)}")
    if not values.get("do_resize"):
        raise refuse("does not resize (do_resize is false)")
    interpolation = INTERPOLATIONS.get(int(values.get("resample", 2)))
    if interpolation is None:
        raise refuse(f"resizes by resample {int(values['resample'])} (2 and 3 are bilinear and bicubic)")
    size, crop = _side(values["size"]), _side(values.get("crop_size")) if values.get("do_center_crop") else None
    short = values["size"].get("shortest_edge") if isinstance(values["size"], Mapping) else None
    result: dict[str, Any] = {"interpolation": interpolation, "resize": "squash", "size": size, "crop": crop or size}
    if short is not None:
        share = values.get("crop_pct")
        if crop is not None:
            result |= {"resize": "crop-down", "size": short}
        elif share is not None:  # ConvNeXt: small pictures lose their edge, large ones are squashed
            squashed = short >= 384
            result |= {"size": short if squashed else int(short / share), "crop": short}
            result["resize"] = "squash" if squashed else "crop-down"
        else:
            raise refuse(f"makes no squares (size {values['size']} without do_center_crop)")
    if result["size"] is None or result["crop"] is None or result["crop"] > result["size"]:
        raise refuse(f"makes no squares (size {values['size']}, crop_size {values.get('crop_size')})")
    factor = float(values["rescale_factor"]) if values.get("do_rescale") else 1.0
    scale = 1.0 if math.isclose(factor * 255, 1.0, rel_tol=1e-9) else factor * 255
    mean = values["image_mean"] if values.get("do_normalize") else (0.0, 0.0, 0.0)
    std = values["image_std"] if values.get("do_normalize") else (1.0, 1.0, 1.0)
    if not all(isinstance(many, list | tuple) and len(many) == 3 for many in (mean, std)):
        raise refuse(f"normalises by image_mean {mean} and image_std {std}, not three numbers each")
    result["mean"], result["std"] = ([float(value) / scale for value in many] for many in (mean, std))
    return plain(result)


def _side(size: Any) -> int | None:
    """The side of a square that a processor's size means; None where it means none."""
    if isinstance(size, int):
        return size
    sides = {size.get("height"), size.get("width")} if isinstance(size, Mapping) else set()
    return next(iter(sides)) if len(sides) == 1 else None


def _preprocess(values: Mapping[str, Any], image_size: int | None, spec: EncoderSpec) -> tuple[Preprocess, int]:
    """The preprocessing, and the side of the centre that the tower sees of its squares."""
    crop = image_size or int(values["crop"])
    size, resize = round(crop * values["size"] / values["crop"]), values["resize"]
    if resize == "crop-down" and (size - crop) % 2:
        resize = "crop-up"  # the tower rounds the other half of the margin down
    try:
        found = Preprocess(
            size=size,
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
            interpolation=values["interpolation"],
            resize=resize,
        )
        prepare(found)  # checks sizes and numbers
    except (TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"'{spec}': its preprocessing cannot be used: {error}") from error
    return found, crop
