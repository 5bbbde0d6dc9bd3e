"""open_clip's model of two towers: built from a config, one tower filled from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from varalign.encoders.specs import EncoderSpec, SpecError
from varalign.encoders.weights import WeightsError, first_line, load_exactly, read_state_dict

# open_clip builds both towers: the unused one gets the smallest allowed size and is discarded.
SMALL_VISION = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
SMALL_TEXT = {"layers": 1, "width": 64, "heads": 1, "context_length": 2, "vocab_size": 2}


def build_clip(
    spec: EncoderSpec, embed_dim: int, quick_gelu: bool, vision_cfg: Mapping[str, Any], text_cfg: Mapping[str, Any]
) -> Any:
    """open_clip's CustomTextCLIP, which has the text tower as a module of its own (`text`)."""
    import open_clip

    try:
        return open_clip.CustomTextCLIP(embed_dim, dict(vision_cfg), dict(text_cfg), quick_gelu=quick_gelu).eval()
    except Exception as error:  # on a bad config open_clip and torch raise errors of many types
        raise SpecError(f"'{spec}': open_clip cannot build a model of its config: {first_line(error)}") from error


def load_tower(tower: nn.Module, part: Literal["visual", "text"], checkpoint: Path, spec: str) -> None:
    """Copy one tower's tensors from a whole CLIP state dict; half precision becomes float32."""
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed

    state = read_state_dict(checkpoint)
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    if part == "visual" and "visual.positional_embedding" in state:
        try:
            resize_pos_embed(state, SimpleNamespace(visual=tower))
        except (RuntimeError, ValueError) as error:  # fewer pixels than a patch
            raise SpecError(
                f"'{spec}': its position embeddings cannot be resampled to this image size: {first_line(error)}"
            ) from error
    prefix = f"{part}."
    tensors = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    tensors.pop("transformer.embeddings.position_ids", None)  # a buffer of transformers before 4.31
    if not tensors:
        raise WeightsError(
            f"'{spec}': {checkpoint} holds no tensors '{prefix}…', so it is no CLIP in open_clip's format"
        )
    with torch.no_grad():
        load_exactly(tower, tensors, checkpoint, spec)
