"""CLIP's two towers through open_clip, each as an encoder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.images import Preprocess
from varalign.data.tokens.tokenizers import clip_tokenizer
from varalign.encoders.base import (
    ImageEncoder,
    ImageOptions,
    TextEncoder,
    TextOptions,
    cut_padding,
    known_blocks,
    plain,
    present,
)
from varalign.encoders.clip_source import find_clip
from varalign.encoders.specs import EncoderSpec, SpecError
from varalign.encoders.weights import WeightsError, first_line, load_exactly, read_state_dict

# open_clip builds both towers: the unused one gets the smallest allowed size and is discarded.
SMALL_VISION = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
SMALL_TEXT = {"layers": 1, "width": 64, "heads": 1, "context_length": 2, "vocab_size": 2}


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
        model = _build(spec, embed_dim, quick_gelu, config, SMALL_TEXT)
        if checkpoint is not None:
            _load(model, "visual", checkpoint, str(spec))
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


class ClipTextEncoder(TextEncoder):
    """CLIP's text tower; features are open_clip's `encode_text(ids)`: pooled and projected, not normalised.

    Args:
        spec: kind `clip`; see `clip_source` for the forms of its weights.
        options: `tokenizer` (by default CLIP's own with the model's context length); with `architecture` and without
            `load_weights`, no source is looked up.
    """

    def __init__(self, spec: EncoderSpec, options: TextOptions) -> None:
        super().__init__()
        checkpoint, architecture = None, options.architecture
        self.spec = str(spec)
        if architecture is None or options.load_weights:
            source = find_clip(spec, option="--text-encoder", load_weights=options.load_weights)
            self.spec = source.spec
            embed_dim, quick_gelu, config = source.embed_dim, source.quick_gelu, dict(source.text_cfg)
            checkpoint = source.checkpoint
        else:
            embed_dim, quick_gelu = architecture["embed_dim"], architecture["quick_gelu"]
            config = dict(architecture["text_cfg"])
        other = [
            key for key in ("hf_model_name", "hf_tokenizer_name", "tokenizer_mode", "embed_cls") if config.get(key)
        ]
        if other:
            raise SpecError(
                f"'{spec}': its text tower is not CLIP's own ({', '.join(other)}); use another text encoder"
            )
        model = _build(spec, embed_dim, quick_gelu, SMALL_VISION, config)
        if checkpoint is not None:
            _load(model, "text", checkpoint, str(spec))
        self.text = model.text
        self.text.output_tokens = False
        self.tokenizer = options.tokenizer or clip_tokenizer(context_length=self.text.context_length)
        if self.tokenizer.vocabulary_size > self.text.vocab_size:
            raise SpecError(
                f"'{spec}': its text tower knows {self.text.vocab_size} tokens, the tokenizer makes "
                f"{self.tokenizer.vocabulary_size}"
            )
        self.feature_dim = embed_dim
        self.has_source = True
        self._quick_gelu = quick_gelu
        self._config = config
        # A causal tower pools the state of the end token, which does not depend on later tokens: padding can be cut.
        self._cuts = self.text.attn_mask is not None and self.text.pool_type == "argmax"

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of ids (B, context length)."""
        short = cut_padding(ids, lengths) if self._cuts else ids
        features: Tensor = self.text(ids) if short.shape == ids.shape else self._short_forward(short)
        return features

    def _short_forward(self, ids: Tensor) -> Tensor:
        """The tower on fewer tokens than its context length, which open_clip's forward refuses (its mask is fixed)."""
        text, length = self.text, ids.shape[1]
        states = text.token_embedding(ids) + text.positional_embedding[:length]
        states = text.ln_final(text.transformer(states, attn_mask=text.attn_mask[:length, :length]))
        # The end token has the highest id of the vocabulary and occurs once in every text.
        pooled: Tensor = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        if text.text_projection is None:
            return pooled
        if isinstance(text.text_projection, nn.Linear):
            pooled = text.text_projection(pooled)
        else:
            pooled = torch.matmul(pooled, text.text_projection)
        return pooled

    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return known_blocks(self.text, ("transformer.resblocks",), self.spec)

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """Final norm and projection."""
        return present(self.text, ("ln_final", "text_projection"))

    def architecture(self) -> dict[str, Any]:
        """Sizes, activation and the tokenizer's fingerprint."""
        return plain(
            {
                "kind": "clip-text",
                "embed_dim": self.feature_dim,
                "quick_gelu": self._quick_gelu,
                "text_cfg": self._config,
                "tokenizer": self.tokenizer.fingerprint,
            }
        )


def _build(
    spec: EncoderSpec, embed_dim: int, quick_gelu: bool, vision_cfg: Mapping[str, Any], text_cfg: Mapping[str, Any]
) -> Any:
    """open_clip's CustomTextCLIP, which has the text tower as a module of its own (`text`)."""
    import open_clip

    try:
        return open_clip.CustomTextCLIP(embed_dim, dict(vision_cfg), dict(text_cfg), quick_gelu=quick_gelu).eval()
    except Exception as error:  # on a bad config open_clip and torch raise errors of many types
        raise SpecError(f"'{spec}': open_clip cannot build a model of its config: {first_line(error)}") from error


def _load(model: Any, part: str, checkpoint: Any, spec: str) -> None:
    """Copy one tower's tensors from a whole CLIP state dict; half precision becomes float32."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    state = read_state_dict(checkpoint)
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    if part == "visual" and "visual.positional_embedding" in state:
        try:
            resize_pos_embed(state, model)
        except (RuntimeError, ValueError) as error:  # fewer pixels than a patch
            raise SpecError(
                f"'{spec}': its position embeddings cannot be resampled to this image size: {first_line(error)}"
            ) from error
    prefix = f"{part}."
    tower = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not tower:
        raise WeightsError(
            f"'{spec}': {checkpoint} holds no tensors '{prefix}…', so it is no CLIP in open_clip's format"
        )
    with torch.no_grad():
        load_exactly(getattr(model, part), tower, checkpoint, spec)


def _preprocess_from(values: Mapping[str, Any]) -> Preprocess:
    return Preprocess(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
