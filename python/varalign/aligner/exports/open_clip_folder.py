"""open_clip: the CLIP that both encoders are, its projections followed by the linear heads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from varalign.aligner.exports.hub_file import write_hub_file
from varalign.aligner.exports.linear_heads import linear_maps
from varalign.aligner.exports.model_card import write_card
from varalign.aligner.exports.subject import TEXTS, Subject
from varalign.data.errors import DataError
from varalign.data.files import write_atomically
from varalign.encoders.clip import ClipImageEncoder
from varalign.encoders.clip_source import WEIGHT_NAMES
from varalign.encoders.clip_text import ClipTextEncoder
from varalign.encoders.specs import CLIP_CONFIG
from varalign.runs.json_text import json_text

FOLDED = 1e-6
"""Largest error of a folded offset, relative to it."""
USE = """
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{place}")
tokenizer = open_clip.get_tokenizer("local-dir:{place}")
images = model.encode_image(preprocess(image)[None], normalize=True)
texts = model.encode_text(tokenizer(["two dogs in the snow"]), normalize=True)
"""


def write(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write config and weights, build the model by the library, and compare.

    Raises:
        DataError: the encoders are no CLIP of open_clip, the heads are not linear, or its architecture has no place for
            one.
    """
    image, text = subject.towers("open_clip")
    if not isinstance(image, ClipImageEncoder) or not isinstance(text, ClipTextEncoder) or image.spec != text.spec:
        raise DataError(
            f"--to open_clip takes a run whose encoders are both of one CLIP, and these are {image.spec} and "
            f"{text.spec}: train with --image-encoder clip:… and the same --text-encoder"
        )
    if text.tokenizer.kind != "clip" or getattr(text.text, "token_embedding", None) is None:
        raise DataError(f"--to open_clip: {text.spec} reads texts by a model of transformers; export --to varalign")
    (image_map, image_offset), (text_map, text_offset) = linear_maps(subject, "open_clip")
    state = {f"visual.{name}": tensor for name, tensor in image.visual.state_dict().items()}
    state |= {f"text.{name}": tensor for name, tensor in text.text.state_dict().items()}
    state |= _folded_image(image.visual, image_map, image_offset, image.spec)
    for name in [name for name in state if name.startswith("text.text_projection")]:
        del state[name]
    state |= _folded_text(text.text, text_map, text_offset)
    length = text.tokenizer.max_length
    state["text.positional_embedding"] = state["text.positional_embedding"][:length]
    state["logit_scale"] = subject.model.evaluation_scale.detach().log()
    described, preprocess = image.architecture(), image.preprocess
    text_cfg = {**text.architecture()["text_cfg"], "proj_bias": True, "proj_type": "linear", "context_length": length}
    model_cfg = {
        "embed_dim": len(image_map),
        "quick_gelu": described["quick_gelu"],
        "custom_text": True,
        "vision_cfg": described["vision_cfg"],
        "text_cfg": text_cfg,
    }
    preprocess_cfg = {
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "resize_mode": "squash" if preprocess.resize == "squash" else "shortest",
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    write_atomically(folder / CLIP_CONFIG, (json_text(config, indent=1) + "\n").encode())
    tensors = {name: tensor.detach().float().contiguous().clone() for name, tensor in state.items()}
    write_atomically(folder / WEIGHT_NAMES[0], save(tensors))
    notes = write_hub_file(subject, folder)
    write_card(subject, folder, "open_clip", USE, notes)
    return {"differences": _differences(subject, folder), "notes": notes}


def _folded_image(visual: Any, weight: Tensor, offset: Tensor, spec: str) -> dict[str, Tensor]:
    """The image tower's projection, followed by the map, and what adds the offset: a bias, or one before it."""
    pool = getattr(visual, "attnpool", None)
    if isinstance(getattr(pool, "c_proj", None), nn.Linear):
        found = pool.c_proj  # type: ignore[union-attr]
        bias = weight @ found.bias.detach().double() + offset
        return {
            "visual.attnpool.c_proj.weight": weight @ found.weight.detach().double(),
            "visual.attnpool.c_proj.bias": bias,
        }
    plain = isinstance(getattr(visual, "proj", None), nn.Parameter) and getattr(visual, "attn_pool", None) is None
    if plain and isinstance(getattr(visual, "ln_post", None), nn.LayerNorm):
        projection = visual.proj.detach().double() @ weight.T  # (width, D)
        # No bias follows the projection: the norm before it gets what the projection turns into the offset.
        shift = torch.linalg.lstsq(projection.T, offset[:, None], driver="gelsd").solution[:, 0]
        if (shift @ projection - offset).norm() <= FOLDED * offset.norm().clamp_min(1e-12):
            return {"visual.proj": projection, "visual.ln_post.bias": visual.ln_post.bias.detach().double() + shift}
    raise DataError(f"--to open_clip: the image tower of {spec} has no place for a linear head; export --to varalign")


def _folded_text(text: Any, weight: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """The text tower's projection, followed by the map and the offset, as a linear layer with bias."""
    found = text.text_projection
    if isinstance(found, nn.Linear):
        if found.bias is not None:
            offset = weight @ found.bias.detach().double() + offset
        weight = weight @ found.weight.detach().double()
    elif found is not None:
        weight = weight @ found.detach().double().T
    return {"text.text_projection.weight": weight, "text.text_projection.bias": offset}


@torch.no_grad()
def _differences(subject: Subject, folder: Path) -> dict[str, float]:
    """Between the library's vectors and varalign's, of the same pixels and of the same texts."""
    import open_clip

    name = f"local-dir:{folder}"
    library = open_clip.create_model_and_transforms(name)[0].eval()
    ours = [torch.from_numpy(part) for part in subject.embedded()]
    theirs = [
        library.encode_image(subject.pixels(), normalize=True),
        library.encode_text(open_clip.get_tokenizer(name)(list(TEXTS)), normalize=True),
    ]
    scale = abs(math.log(float(library.logit_scale.exp() / subject.model.evaluation_scale)))
    far = {side: float((a - b).abs().max()) for side, a, b in zip(("images", "texts"), ours, theirs, strict=True)}
    return {**far, "logit_scale": scale}
