"""What the report page shows of a split: retrieved examples, hubs, distributions, and the points of the map.

Everything is JSON, kept as `showcase.json` in the run folder, so that later commands can write the page again.

I images, T texts, D embedding, Q queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.aligner.evaluate import SplitEmbeddings
from varalign.canonical.hub_correction import HubCorrection, as_items, as_queries
from varalign.evaluation.retrieval import ranks, top_k
from varalign.inputs.parts import Parts
from varalign.pictures.tsne import choose_pairs, collapsed

SHOWN = 5
"""Candidates shown of each query."""
EACH = 4
"""Queries shown of each kind: best, typical, worst."""
HUBS = 5
RANK_BOUNDS = (1, 5, 10, 50, 100, 500)
_NON_PAIRS = 200_000
_BINS = 60


def showcase(
    parts: Parts, split: str, found: SplitEmbeddings, correction: HubCorrection | None, *, seed: int = 0
) -> dict[str, Any]:
    """Gather what the page shows of a split.

    Args:
        parts: model and data.
        split: `train`, `dev` or `test`.
        found: its embeddings.
        correction: of the scores that rank.
        seed: of the pairs on the map and of the non-pairs in the histogram.

    Returns:
        `split`; `images`, a list of [name, file or null], and `texts`, to which all numbers below refer; `examples` and
        `hubs` by direction; `ranks`, shares of the queries by direction between the bounds of `rank_bounds`;
        `similarities`: `edges` and shares of `pairs` and `non_pairs`; `map`; `collapsed`: sides whose embeddings are
        one point.
    """
    images, texts = found.images, found.texts
    pairs = torch.from_numpy(found.pairs).to(images.device)
    queries = {"i2t": images, "t2i": texts}
    items = {"i2t": texts, "t2i": images}
    if correction is not None:
        items = {
            "i2t": as_items(texts, correction.text_prior(texts)),
            "t2i": as_items(images, correction.image_prior(images)),
        }
        queries = {direction: as_queries(side) for direction, side in queries.items()}
    ranked = {
        "i2t": ranks(queries["i2t"], items["i2t"], pairs)[0],
        "t2i": ranks(items["t2i"], queries["t2i"], pairs)[1],
    }
    right = {"i2t": _right(found.pairs[:, ::-1]), "t2i": _right(found.pairs)}
    table = _Table(parts, found)
    examples, hubs = {}, {}
    for direction in ("i2t", "t2i"):
        text, image = found.pairs.T
        query, item = (image, text) if direction == "i2t" else (text, image)
        own = (queries[direction][query] * items[direction][item]).sum(1).cpu().numpy()
        likeness = np.full(len(queries[direction]), -np.inf)
        np.maximum.at(likeness, query, own)
        chosen = _chosen(ranked[direction], likeness)
        rows = [row for rows in chosen.values() for row in rows]
        scores, places = top_k(queries[direction][rows], items[direction], SHOWN)
        examples[direction] = [
            {
                "kind": kind,
                "query": table.item(direction, row),
                "rank": int(ranked[direction][row]) + 1,
                "found": [
                    [table.item(_other(direction), place), round(score, 4), place in right[direction].get(row, ())]
                    for score, place in zip(some_scores, some_places, strict=True)
                ],
            }
            for (kind, row), some_scores, some_places in zip(
                [(kind, row) for kind, rows in chosen.items() for row in rows],
                scores.tolist(),
                places.tolist(),
                strict=True,
            )
        ]
        first = top_k(queries[direction], items[direction], 1)[1][:, 0].cpu().numpy()
        counts = np.bincount(first, minlength=len(items[direction]))
        often = np.argsort(-counts, kind="stable")[:HUBS].tolist()
        hubs[direction] = [[table.item(_other(direction), row), int(counts[row])] for row in often if counts[row] > 1]
    return {
        "split": split,
        "examples": examples,
        "hubs": hubs,
        "queries": {direction: int((found >= 0).sum()) for direction, found in ranked.items()},
        "rank_bounds": list(RANK_BOUNDS),
        "ranks": {direction: _shares(found) for direction, found in ranked.items()},
        "similarities": _similarities(images, texts, found.pairs, seed),
        "collapsed": [side for side, rows in (("image", images), ("text", texts)) if collapsed(rows.cpu().numpy())],
        "map": _map(found, ranked, table, seed),
        "images": table.images,
        "texts": table.texts,
    }


class _Table:
    """The images and texts that are shown, each once."""

    def __init__(self, parts: Parts, found: SplitEmbeddings) -> None:
        self._data, self._found = parts.data, found
        self._captions = parts.data.caption_texts
        self._place: dict[tuple[str, int], int] = {}
        self.images: list[list[str | None]] = []
        self.texts: list[str] = []

    def item(self, direction: str, row: int) -> int:
        """The place in `images` (queries of i2t) or in `texts` (of t2i) of a row of the embeddings."""
        key = direction, row
        if key in self._place:
            return self._place[key]
        if direction == "i2t":
            at, names = int(self._found.rows[row]), self._data.image_names
            files = self._data.image_paths
            self.images.append(
                [
                    f"image {at}" if names is None else names[at],
                    None if files is None else str(files[at].absolute()),
                ]
            )
        else:
            at = int(self._found.captions[row])
            self.texts.append(f"text {at}" if self._captions is None else self._captions[at])
        return self._place.setdefault(key, len(self.images if direction == "i2t" else self.texts) - 1)


def _other(direction: str) -> str:
    return "t2i" if direction == "i2t" else "i2t"


def _right(pairs: NDArray[np.int64]) -> dict[int, set[int]]:
    """Each query's right candidates, of (E, 2) queries and candidates."""
    found: dict[int, set[int]] = {}
    for query, candidate in pairs.tolist():
        found.setdefault(query, set()).add(candidate)
    return found


def _chosen(found: NDArray[np.int64], likeness: NDArray[Any]) -> dict[str, list[int]]:
    """The queries with the best ranks, around the median one, and with the worst; a query is shown once.

    found: (Q,) ranks. likeness: (Q,) scores of the best right candidates, which order queries of one rank.
    """
    order = np.lexsort((-likeness, found))
    order = order[found[order] >= 0]
    middle = max(0, (len(order) - EACH) // 2)
    kinds = {"best": order[:EACH], "typical": order[middle : middle + EACH], "worst": order[::-1][:EACH]}
    shown: set[int] = set()
    chosen: dict[str, list[int]] = {}
    for kind in ("best", "worst", "typical"):
        chosen[kind] = [row for row in kinds[kind].tolist() if row not in shown]
        shown.update(chosen[kind])
    return {kind: chosen[kind] for kind in kinds}


def _shares(found: NDArray[np.int64]) -> list[float]:
    """Shares of the queries with ranks, counted from 1, up to each bound and above the one before; then the rest."""
    queries = found[found >= 0]
    counts = np.bincount(np.searchsorted(RANK_BOUNDS, queries + 1), minlength=len(RANK_BOUNDS) + 1)
    return [round(float(count), 6) for count in counts / max(1, len(queries))]


def _similarities(images: Tensor, texts: Tensor, pairs: NDArray[np.int64], seed: int) -> dict[str, list[float]]:
    """Histograms of the cosine similarity of all pairs, and of as many as 200,000 drawn non-pairs."""
    device = images.device
    text, image = torch.from_numpy(pairs).to(device).unbind(1)
    of_pairs = (images[image] * texts[text]).sum(1).cpu().numpy()
    random = np.random.default_rng(seed)
    drawn = np.stack([random.integers(0, size, _NON_PAIRS) for size in (len(texts), len(images))], axis=1)
    known = np.unique(pairs[:, 0] * len(images) + pairs[:, 1])
    drawn = drawn[~np.isin(drawn[:, 0] * len(images) + drawn[:, 1], known)]
    parts = [
        torch.from_numpy(part).to(device).unbind(1) for part in np.array_split(drawn, max(1, len(drawn) // 20_000))
    ]
    others = [(images[image] * texts[text]).sum(1).cpu().numpy() for text, image in parts]
    of_others = np.concatenate(others)
    every = np.concatenate([of_pairs, of_others])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (-1.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    shares = [np.histogram(values, edges)[0] / max(1, len(values)) for values in (of_pairs, of_others)]
    return {"edges": edges.tolist(), "pairs": shares[0].tolist(), "non_pairs": shares[1].tolist()}


def _map(found: SplitEmbeddings, ranked: dict[str, NDArray[np.int64]], table: _Table, seed: int) -> dict[str, Any]:
    """Points of at most 1,000 images, each with its first caption: places by PCA, items and ranks."""
    shown = found.first[choose_pairs(len(found.first), seed=seed)] if len(found.first) else found.first
    image, text = shown.T
    return {
        "images": [table.item("i2t", row) for row in image.tolist()],
        "texts": [table.item("t2i", row) for row in text.tolist()],
        "rank": {"i2t": (ranked["i2t"][image] + 1).tolist(), "t2i": (ranked["t2i"][text] + 1).tolist()},
        "layouts": {"PCA": principal(torch.cat([found.images[image], found.texts[text]]))} if len(shown) else {},
        "rows": found.rows[image].tolist(),
        "captions": found.captions[text].tolist(),
    }


def principal(points: Tensor) -> list[list[float]]:
    """(n, 2) places on the first two principal components, the larger half-axis of which is 1; NaN counts as 0."""
    values = torch.nan_to_num(points.double().cpu())
    values = values - values.mean(0)
    axes = torch.linalg.svd(values, full_matrices=False)[2][:2]
    places = torch.zeros(len(values), 2, dtype=torch.float64)
    places[:, : len(axes)] = values @ axes.T
    places /= places.abs().max().clamp_min(1e-12)
    return [[round(x, 4), round(y, 4)] for x, y in places.tolist()]
