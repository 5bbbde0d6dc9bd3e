"""CLIP's image tower through open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from varalign.data.images import Preprocess
from varalign.encoders.base import ImageEncoder, ImageOptions, known_blocks, plain, present, refuse_batch_norms
from varalign.encoders.clip_model import SMALL_TEXT, build_clip, load_tower
from varalign.encoders.clip_source import find_clip
from varalign.encoders.specs import EncoderSpec


class ClipImageEncoder(ImageEncoder):
    """CLIP's image tower; features are open_clip's `visual(pixels)`: pooled and projected, not normalised.

    For ViT-B/32 they have 512 dimensions: CLIP's own projection is part of the tower, before the projection head.

    Args:
        spec: kind `clip`; see `clip_source` for the forms of its weights.
        options: with `image_size`, open_clip interpolates the position embeddings; with `architecture` and without
            `load_weights`, no source is looked up.
    """

    def __init__(self, spec: EncoderSpec, options: ImageOptions) -> None:
        super().__init__()
        checkpoint, architecture = None, options.architecture
        self.spec = str(spec)
        if architecture is None or options.load_weights:
            source = find_clip(spec, option="--image-encoder", load_weights=options.load_weights)
            self.spec = source.spec
            embed_dim, quick_gelu, config = source.embed_dim, source.quick_gelu, dict(source.vision_cfg)
            preprocess, checkpoint = source.preprocess, source.checkpoint
        else:
            embed_dim, quick_gelu = architecture["embed_dim"], architecture["quick_gelu"]
            config, preprocess = dict(architecture["vision_cfg"]), _preprocess_from(architecture["preprocess"])
        if options.image_size is not None and options.image_size != preprocess.size:
            config["image_size"] = options.image_size
            preprocess = replace(preprocess, size=options.image_size)
        model = build_clip(spec, embed_dim, quick_gelu, config, SMALL_TEXT)
        if checkpoint is not None:
            load_tower(model.visual, "visual", checkpoint, str(spec))
        self.visual = model.visual
        self.visual.output_tokens = False
        self.feature_dim = embed_dim
        self.preprocess = preprocess
        self.has_source = True
        self._quick_gelu = quick_gelu
        self._config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, feature_dim) features of pixels (B, 3, S, S)."""
        features: Tensor = self.visual(pixels)
        return features

    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks (ViT) or the four stages (ResNet)."""
        return known_blocks(self.visual, ("transformer.resblocks", "trunk.blocks", "trunk.stages"), self.spec)

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """Final norm, pooling and projection."""
        trunk = present(self.visual.trunk, ("norm", "fc_norm", "attn_pool")) if hasattr(self.visual, "trunk") else []
        return trunk + present(
            self.visual, ("attn_pool", "attn_pool_contrastive", "attnpool", "ln_post", "proj", "head")
        )

    def checkpoint_activations(self, beside_adapters: bool = False) -> None:
        """As `Encoder.checkpoint_activations`."""
        refuse_batch_norms(self)
        # open_clip passes over what a trunk of timm's says that has none.
        getattr(self.visual, "trunk", self.visual).set_grad_checkpointing()

    def architecture(self) -> dict[str, Any]:
        """Sizes, activation and preprocessing."""
        return plain(
            {
                "kind": "clip-image",
                "embed_dim": self.feature_dim,
                "quick_gelu": self._quick_gelu,
                "vision_cfg": self._config,
                "preprocess": asdict(self.preprocess),
            }
        )


def _preprocess_from(values: Mapping[str, Any]) -> Preprocess:
    return Preprocess(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
