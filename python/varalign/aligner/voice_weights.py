"""The weights of the voices that a run's similarity is made of."""

from __future__ import annotations

from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.voices_head import VoicesHead
from varalign.runs.folder import RunFolder


def weights_of(model: DualEncoder, run: RunFolder) -> dict[str, float] | None:
    """The weight of each voice in the similarity, 0 for one that was tried and not kept; None without voices."""
    head = model.image_head
    if not isinstance(head, VoicesHead):
        return None
    tried = ((run.config().get("start") or {}).get("voices") or {}).get("weights") or {}
    return {**dict.fromkeys(tried, 0.0), **head.shares()}
