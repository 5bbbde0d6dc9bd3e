"""Intervals of recall against samples laid out query by query, and against the binomial."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from varalign.evaluation import intervals
from varalign.evaluation.intervals import SAMPLES, bootstrap, recall_intervals
from varalign.evaluation.retrieval import RECALL_KEYS, ranks, recalls


def slow(i2t: np.ndarray, t2i: np.ndarray, pairs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """[low, high] of both directions at K, each sample's queries counted one by one."""
    shares = []
    for weights in intervals._draw(len(i2t)):
        image_queries = [(weights[i], 0 <= i2t[i] < min(k, len(t2i))) for i in range(len(i2t)) if i2t[i] >= 0]
        text_queries = [
            (np.mean([weights[image] for text, image in pairs if text == t]), t2i[t] < min(k, len(i2t)))
            for t in range(len(t2i))
        ]
        shares.append([sum(w * h for w, h in both) / sum(w for w, _ in both) for both in (image_queries, text_queries)])
    return tuple(np.quantile(shares, (0.025, 0.975), axis=0).T)


@pytest.mark.parametrize("shared_texts", [False, True])
def test_equal_to_samples_laid_out_query_by_query(shared_texts: bool) -> None:
    random = np.random.default_rng(2)
    i2t, t2i = random.integers(0, 8, 9), random.integers(0, 8, 14)
    pairs = np.stack([np.arange(14), np.r_[np.arange(9), random.integers(0, 9, 5)]], axis=1)
    if shared_texts:  # the first two texts stand at a second image too
        pairs = np.r_[pairs, [[0, 3], [1, 8]]]
    found = recall_intervals(i2t, t2i, pairs, ks=(1, 5))
    for k in (1, 5):
        for direction, wanted in zip(("i2t", "t2i"), slow(i2t, t2i, pairs, k), strict=True):
            assert found[f"{direction}_recall@{k}"] == pytest.approx(wanted.tolist(), abs=1e-12)


def test_as_wide_as_the_binomial_and_around_the_recall() -> None:
    generator = torch.Generator().manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(800, 16, generator=generator), dim=1)
    v = torch.nn.functional.normalize(u + 0.25 * torch.randn(800, 16, generator=generator), dim=1)
    i2t, t2i = ranks(u, v, torch.arange(800))
    figures = recalls(i2t, t2i)
    found = recall_intervals(i2t, t2i, np.stack([np.arange(800)] * 2, axis=1))
    assert tuple(found) == RECALL_KEYS
    for key, (low, high) in found.items():
        share = figures[key]
        assert 0.1 < share < 0.95 and low < share < high
        assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 800), rel=0.12)


def test_captions_of_an_image_are_drawn_together() -> None:
    """Five captions that are hit together say no more than one."""
    hit = np.repeat([0, 100], 50)
    alone = recall_intervals(hit, hit, np.stack([np.arange(100)] * 2, axis=1))
    texts = np.stack([np.arange(500), np.repeat(np.arange(100), 5)], axis=1)
    assert recall_intervals(hit, np.repeat(hit, 5), texts)["t2i_recall@1"] == pytest.approx(alone["t2i_recall@1"])


def test_images_without_captions_are_no_queries() -> None:
    found = recall_intervals(np.array([0, -1, -1, -1]), np.array([0]), np.array([[0, 0]]))
    assert found["i2t_recall@1"][1] == 1.0


def test_many_images_are_drawn_sample_by_sample_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    hits, queries = random.integers(0, 2, (70, 3)).astype(float), np.ones((70, 3))
    kept = bootstrap(hits, queries)
    monkeypatch.setattr(intervals, "_WEIGHTS_AT_ONCE", 69 * SAMPLES)
    np.testing.assert_allclose(bootstrap(hits, queries), kept, rtol=0, atol=1e-12)
