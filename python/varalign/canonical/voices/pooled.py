"""The figures of `eval --json` over the parts of a cross-validation: every image is judged once, among its own part.

Embeddings of different parts come from different fits and cannot be compared, so a query's candidates are those of its
part; their number stands beside the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.canonical.hub_choice import HeldOut
from varalign.canonical.hub_correction import HubCorrection, corrected_ranks
from varalign.canonical.voices.fit import Mixture, candidates_of
from varalign.canonical.voices.held_out import blocks_of, losses_at
from varalign.canonical.voices.voice_pairs import Pairs
from varalign.evaluation.embedding_statistics import cosine_similarity
from varalign.evaluation.intervals import recall_intervals
from varalign.evaluation.retrieval import chance, ranks, recalls

_Ranks = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class JudgedPart:
    """Held-out pairs, and what was fitted and chosen without them.

    Attributes:
        held_out: the pairs. mixture: of the voices. scale: its logit scale. correction: of hubs, if one is used.
    """

    held_out: Pairs
    mixture: Mixture
    scale: float
    correction: HubCorrection | None = None


def pooled(parts: Sequence[JudgedPart]) -> tuple[dict[str, Any], dict[str, float]]:
    """The figures of all parts together, and those of a ranking drawn at random.

    Args:
        parts: at least one, each of at least two pairs.

    Returns:
        Recalls over all queries with their `intervals`, and `uncorrected` where a part has a correction;
        `cosine_similarity`, `loss` and `logit_scale`; `images` and `texts`, the mean numbers of candidates of a part;
        `folds`, the number of parts; `judged`, the numbers of all `images` and `texts` that were queries. Then the same
        recalls of chance.
    """
    found = [candidates_of(part.held_out, part.mixture) for part in parts]
    plain = [ranks(one.images, one.texts, one.pairs) for one in found]
    corrected = [
        at if part.correction is None else corrected_ranks(one.images, one.texts, one.pairs, part.correction)
        for part, one, at in zip(parts, found, plain, strict=True)
    ]
    pairs = _stacked(found)
    result = _recalls(corrected, pairs)
    if any(part.correction is not None for part in parts):
        result["uncorrected"] = _recalls(plain, pairs)
    losses = [_losses(part) for part in parts]
    weights = np.array([len(part) for part in losses], dtype=np.float64) / sum(map(len, losses))
    cosines = [cosine_similarity(one.images, one.texts, one.pairs) for one in found]
    judged = {name: sum(len(getattr(one, name)) for one in found) for name in ("images", "texts")}
    candidates = {name: round(count / len(found)) for name, count in judged.items()}
    for recalled in filter(None, (result, result.get("uncorrected"))):
        recalled |= candidates
    result |= {
        "cosine_similarity": float(np.average(cosines, weights=[len(one.pairs) for one in found])),
        "loss": float(torch.cat(losses).mean()),
        "logit_scale": float(weights @ np.array([part.scale for part in parts])),
        "folds": len(parts),
        "judged": judged,
    }
    return result, {**_chance(found), **candidates, "folds": len(parts)}


def _recalls(found: Sequence[_Ranks], pairs: NDArray[np.int64]) -> dict[str, Any]:
    i2t, t2i = (np.concatenate(side) for side in zip(*found, strict=True))
    return {**recalls(i2t, t2i), "intervals": recall_intervals(i2t, t2i, pairs)}


def _stacked(found: Sequence[HeldOut]) -> NDArray[np.int64]:
    """(E, 2) the pairs of all parts, whose texts and images are counted on from part to part."""
    shifts = np.cumsum([[0, 0], *([len(one.texts), len(one.images)] for one in found)], axis=0)
    return np.concatenate([one.pairs.cpu().numpy() + shift for one, shift in zip(found, shifts, strict=False)])


def _losses(part: JudgedPart) -> torch.Tensor:
    u, v = part.mixture.embed_images(part.held_out.images), part.mixture.embed_texts(part.held_out.texts)
    return losses_at([b.scores(u, v) for b in blocks_of(part.held_out)], part.scale)


def _chance(found: Sequence[HeldOut]) -> dict[str, float]:
    """The recalls of a random ranking, means over the queries of all parts."""
    each, queries = [], []
    for one in found:
        text, image = one.pairs.cpu().numpy().T
        of_images = np.bincount(image, minlength=len(one.images))
        each.append(chance(len(one.images), of_images, images_per_text=np.bincount(text)))
        queries.append({"i2t": int((of_images > 0).sum()), "t2i": len(one.texts)})
    return {
        key: float(np.average([row[key] for row in each], weights=[count[key[:3]] for count in queries]))
        for key in each[0]
        if "_recall@" in key
    }
