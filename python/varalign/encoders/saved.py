"""A dual encoder from what a run saved: its config, its tokenizer, and the sources of the towers that it left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varalign.data.tokenizers import Tokenizer
from varalign.encoders.base import Encoder
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.ensemble import MEMBER_DIM
from varalign.encoders.image import image_encoder_from_config
from varalign.encoders.specs import WeightsChanged
from varalign.encoders.text import text_encoder_from_config


def dual_encoder_from_config(config: Mapping[str, Any], *, tokenizer: Tokenizer | None = None) -> DualEncoder:
    """Build the model again from `DualEncoder.to_config()`; `load_checkpoint_state` then fills it.

    Towers that the checkpoint holds are built without hub, file or captions. A frozen tower that it leaves out is read
    from its source by its spec, and must have the fingerprint that was recorded.

    Args:
        config: what `to_config` gave, through JSON or not.
        tokenizer: the run's saved tokenizer; None where there is no text tower.

    Raises:
        WeightsUnavailable, SpecError: a left-out tower's source is gone.
        WeightsChanged: it is there with other weights.
        ValueError: a text tower, but no tokenizer.
    """
    image, text = config["image_encoder"], config["text_encoder"]
    if text is not None and tokenizer is None:
        raise ValueError("this run has a text tower: pass the tokenizer saved with it")
    image_encoder = text_encoder = None
    if image is not None:
        image_encoder = image_encoder_from_config(image, load_weights=image["weights_fingerprint"] is not None)
        _check(image_encoder, image)
    if text is not None and tokenizer is not None:
        text_encoder = text_encoder_from_config(
            text, tokenizer=tokenizer, load_weights=text["weights_fingerprint"] is not None
        )
        _check(text_encoder, text)
    model = DualEncoder(
        image_encoder,
        text_encoder,
        embedding_dim=config["embedding_dim"],
        image_feature_dim=config["image_feature_dim"],
        text_feature_dim=config["text_feature_dim"],
        head=config["head"],
        hidden_dim=config["hidden_dim"],
        dropout=config["dropout"],
        input_noise=config.get("input_noise", 0.0),
        train_map=config.get("train_map", True),
        members=config.get("members", 0),
        member_dim=config.get("member_dim", MEMBER_DIM),
    )
    for side, unfreeze in config["frozen"].items():
        model.freeze(side, unfreeze)
    for side, rank in config.get("adapters", {}).items():
        model.adapt(side, rank)
    return model


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
