"""Rebuilds a dual encoder from a run: its config, its tokenizer, and the sources of towers not in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from varalign.data.tokens.tokenizers import Tokenizer
from varalign.encoders.base import Encoder, ImageEncoder, TextEncoder
from varalign.encoders.build import image_encoder_from_config, text_encoder_from_config
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.specs import SIDES, Side, WeightsChanged
from varalign.encoders.towers import Towers


def dual_encoder_from_config(
    config: Mapping[str, Any], *, tokenizer: Tokenizer | None = None, sides: Sequence[Side] = SIDES
) -> DualEncoder:
    """Rebuild the model from `DualEncoder.to_config()`; `load_checkpoint_state` then loads its weights.

    Towers whose weights are in the checkpoint are built without hub, file or captions. A frozen tower that is not in
    it is read from its source by its spec, and must have the recorded fingerprint.

    Args:
        config: the values of `to_config`, before or after JSON.
        tokenizer: the run's saved tokenizer; None if there is no text tower.
        sides: the towers to build; the model embeds only the inputs of these sides.

    Raises:
        WeightsUnavailable, SpecError: the source of a tower that is not in the checkpoint is gone.
        WeightsChanged: that source has other weights now.
        ValueError: there is a text tower, but no tokenizer.
    """
    image, text = (config[f"{side}_encoder"] if side in sides else None for side in SIDES)
    image_encoder: ImageEncoder | None = None
    text_encoder: TextEncoder | None = None
    if image is not None:
        image_encoder = image_encoder_from_config(image, load_weights=image["weights_fingerprint"] is not None)
        _check(image_encoder, image)
    if text is not None:
        if tokenizer is None:
            raise ValueError("this run has a text tower: pass the tokenizer saved with it")
        load = text["weights_fingerprint"] is not None
        text_encoder = text_encoder_from_config(text, tokenizer=tokenizer, load_weights=load)
        _check(text_encoder, text)
    dims = {name: config[name] for name in ("image_feature_dim", "text_feature_dim")}
    towers = Towers(image_encoder, text_encoder, **dims)
    for side, unfreeze in config["frozen"].items():
        towers.freeze(side, unfreeze)
    described = dict(zip(SIDES, (image, text), strict=True))
    towers.inside = frozenset(side for side, of in described.items() if of and of["weights_fingerprint"] is None)
    for side, rank in config.get("adapters", {}).items():
        if side in sides:
            towers.adapt(side, rank)
    # Runs of earlier versions lack fields that were added later; they were trained with the defaults of these fields.
    return DualEncoder(towers, HeadShape(**{f.name: config[f.name] for f in fields(HeadShape) if f.name in config}))


def _check(encoder: Encoder, saved: Mapping[str, Any]) -> None:
    wanted = saved["weights_fingerprint"]
    if wanted is None:
        return
    found = encoder.weights_fingerprint()
    if found != wanted:
        raise WeightsChanged(
            f"'{encoder.spec}' has other weights now than when the run was trained (fingerprint {found[:12]}, then "
            f"{wanted[:12]}): put the old ones back; the run's checkpoint holds only what was trained on top of them"
        )
