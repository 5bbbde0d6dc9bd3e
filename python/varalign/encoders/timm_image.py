"""timm's models as image encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.images import Preprocess
from varalign.encoders.base import ImageEncoder, ImageOptions, known_blocks, plain, present, refuse_batch_norms
from varalign.encoders.hub import hub_file
from varalign.encoders.specs import EncoderSpec, SpecError
from varalign.encoders.weights import WeightsError, named_file, read_state_dict

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BLOCKS = ("blocks", "stages", "layers", "features")


class TimmImageEncoder(ImageEncoder):
    """A timm model without its classifier; the features are the pooled ones before the classifier.

    Without `@` its weights are random; `@hub` loads those of the model's tag (or its default tag), `@FILE` a state dict
    in timm's format that includes the model's default classifier. Size, mean, deviation and interpolation come from
    timm's data config; its `crop_pct` is ignored, and crops span the whole short side.

    Args:
        spec: kind `timm`.
        options: size and whether to load the weights.
    """

    def __init__(self, spec: EncoderSpec, options: ImageOptions) -> None:
        super().__init__()
        import timm

        base, _, tag = spec.name.partition(".")
        if not timm.is_model(base):
            near = timm.list_models(f"*{base}*")[:5]
            raise SpecError(
                f"'{spec}': timm has no model '{base}'{'; near it: ' + ', '.join(near) if near else ''}; "
                'all: python -c "import timm; print(timm.list_models())"'
            )
        if tag and spec.weights is None:
            raise SpecError(
                f"'{spec}': '.{tag}' names weights, but nothing says to load them: add @hub or @FILE, or leave it out "
                "for random weights"
            )
        if tag and not timm.models.is_model_pretrained(spec.name):
            tags = [name for name in timm.list_models(pretrained=True) if name.startswith(f"{base}.")]
            raise SpecError(f"'{spec}': timm has no weights '{tag}' for {base}; it has: {', '.join(tags) or 'none'}")
        config = timm.get_pretrained_cfg(spec.name)
        given: dict[str, Any] = {}
        if options.image_size is not None and config is not None and config.fixed_input_size:
            given["img_size"] = options.image_size
        if options.load_weights and spec.weights is not None:
            given |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": _state(spec, config)}}
        try:
            self.net = timm.create_model(spec.name, **given)
        except Exception as error:  # each model of timm raises errors of its own
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise WeightsError(f"'{spec}': timm cannot build it with these weights or this size: {reason}") from error
        self.net.pretrained_cfg.pop("state_dict", None)
        self.net.reset_classifier(0)
        self.feature_dim = int(getattr(self.net, "head_hidden_size", None) or self.net.num_features)
        self.preprocess = _preprocess(spec, timm.data.resolve_model_data_config(self.net), options.image_size)
        self.spec = str(spec if spec.weights == "hub" else spec.with_absolute_path())
        self.has_source = spec.weights is not None
        self.name = spec.name

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, feature_dim) features of pixels (B, 3, S, S)."""
        features: Tensor = self.net(pixels)
        return features

    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks or the network's stages."""
        return known_blocks(self.net, BLOCKS, self.spec)

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """Final norm, pooling and the rest of the head."""
        return present(self.net, ("norm", "fc_norm", "norm_pre", "attn_pool", "conv_head", "bn2", "final_conv", "head"))

    def checkpoint_activations(self, beside_adapters: bool = False) -> None:
        """As `Encoder.checkpoint_activations`."""
        try:
            refuse_batch_norms(self)
            self.net.set_grad_checkpointing()
        except (AttributeError, AssertionError):  # a model of timm's that has it not asserts so
            super().checkpoint_activations()

    def architecture(self) -> dict[str, Any]:
        """The model's name in timm, and preprocessing."""
        return plain({"kind": "timm", "name": self.name, "preprocess": asdict(self.preprocess)})


def _state(spec: EncoderSpec, config: Any) -> dict[str, torch.Tensor]:
    assert spec.weights is not None
    if spec.weights != "hub":
        return read_state_dict(named_file(spec.weights, str(spec)))
    if config is None or not config.hf_hub_id:
        raise SpecError(f"'{spec}': timm knows no weights for this model on the hub; pass timm:{spec.name}@FILE")
    names = [config.hf_hub_filename] if config.hf_hub_filename else HUB_WEIGHTS
    return read_state_dict(
        hub_file(config.hf_hub_id, names, spec=str(spec), instead=f"--image-encoder timm:{spec.name}@FILE")
    )


def _preprocess(spec: EncoderSpec, values: Mapping[str, Any], image_size: int | None) -> Preprocess:
    _, height, width = values["input_size"]
    if (height != width and image_size is None) or values["interpolation"] not in ("bicubic", "bilinear"):
        raise SpecError(f"'{spec}': its images are not square, or resized in a way varalign has not: {dict(values)}")
    return Preprocess(
        size=image_size or int(height),
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation=values["interpolation"],
        resize="squash" if values.get("crop_mode") == "squash" else "crop",
    )
