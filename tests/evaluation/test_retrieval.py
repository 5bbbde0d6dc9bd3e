"""Recall@K against a matrix checked by eye and a slow ranking; chance against drawn rankings; top-k against a sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.evaluation.retrieval import (
    chance,
    matrix_ranks,
    mean_recall,
    ranks,
    reachable,
    recalls,
    retrieval,
    top_k,
)

# The docstring's example: with texts as unit axes, an image's embedding is its row of similarities.
EXAMPLE = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.8, 0.7, 0.1, 0.2], [0.5, 0.6, 0.4, 0.5]])
EXAMPLE_IDS = torch.tensor([0, 1, 1, 2])


def slow_recall(similarity: np.ndarray, ids: np.ndarray, k: int) -> tuple[float, float]:
    """Sort each query's candidates, wrong ones first among equals, and look at the first k."""
    images, texts = similarity.shape
    i2t = []
    for i in range(images):
        if (ids == i).any():
            ordered = sorted(range(texts), key=lambda j: (-similarity[i, j], ids[j] == i))
            i2t.append(any(ids[j] == i for j in ordered[:k]))
    t2i = []
    for j in range(texts):
        ordered = sorted(range(images), key=lambda i: (-similarity[i, j], ids[j] == i))
        t2i.append(ids[j] in ordered[:k])
    return float(np.mean(i2t)), float(np.mean(t2i))


def test_the_example_by_eye():
    i2t, t2i = ranks(EXAMPLE, torch.eye(4), EXAMPLE_IDS)
    assert i2t.tolist() == [0, 1, 2]
    assert t2i.tolist() == [0, 0, 2, 0]
    figures = retrieval(EXAMPLE, torch.eye(4), EXAMPLE_IDS, ks=(1, 2))
    assert figures == {
        "i2t_recall@1": 1 / 3,
        "i2t_recall@2": 2 / 3,
        "t2i_recall@1": 3 / 4,
        "t2i_recall@2": 3 / 4,
        "images": 3,
        "texts": 4,
    }
    assert figures == recalls(i2t, t2i, (1, 2))
    assert mean_recall(figures) == pytest.approx((1 / 3 + 2 / 3 + 3 / 4 + 3 / 4) / 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_ranks_of_a_whole_matrix_are_the_same(images, texts, seed):
    generator = np.random.default_rng(seed)
    similarity = torch.tensor(generator.integers(0, 4, (images, texts)) / 4.0, dtype=torch.float32)
    ids = torch.tensor(generator.integers(0, images, texts))
    expected = ranks(similarity, torch.eye(texts), ids)
    for found, wanted in zip(
        matrix_ranks(similarity.clone(), torch.stack([torch.arange(texts), ids], 1)), expected, strict=True
    ):
        assert found.tolist() == wanted.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_equals_a_slow_sort_with_many_ties_at_any_chunk(images, texts, seed, chunk):
    generator = np.random.default_rng(seed)
    similarity = generator.integers(0, 4, (images, texts)) / 4.0
    ids = generator.integers(0, images, texts)
    fast = retrieval(
        torch.tensor(similarity), torch.eye(texts, dtype=torch.float64), ids, ks=(1, 2, 5, 20), chunk=chunk
    )
    for k in (1, 2, 5, 20):
        assert (fast[f"i2t_recall@{k}"], fast[f"t2i_recall@{k}"]) == pytest.approx(slow_recall(similarity, ids, k))


def test_equal_embeddings_tie_wherever_they_stand_in_the_product():
    """All texts are one vector: the wrong ones tie with the right one, whatever a matrix product's last digits say."""
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(1, 333, generator=generator), dim=1).expand(97, -1)
    images = torch.nn.functional.normalize(torch.randn(97, 333, generator=generator), dim=1)
    i2t, _ = ranks(images, text, torch.arange(97))
    assert (i2t == 96).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_and_numpy(dtype):
    vectors = torch.nn.functional.normalize(torch.randn(20, 16, generator=torch.Generator().manual_seed(1)), dim=1).to(
        dtype
    )
    assert retrieval(vectors, vectors, torch.arange(20))["i2t_recall@1"] == 1.0
    if dtype != torch.bfloat16:
        assert retrieval(vectors.numpy(), vectors.numpy(), np.arange(20, dtype=np.int32))["t2i_recall@1"] == 1.0


def test_an_image_without_a_caption_is_a_candidate_but_no_query():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    figures = retrieval(images, torch.tensor([[1.0, 0.0]]), torch.tensor([0]), ks=(1, 2))
    assert figures["i2t_recall@1"] == 1.0 and figures["images"] == 2
    assert figures["t2i_recall@1"] == 0.0 and figures["t2i_recall@2"] == 1.0  # the other image ties


def test_nan_is_a_miss_at_every_k():
    images = torch.eye(3)
    images[1] = math.nan
    figures = retrieval(images, torch.eye(3), torch.arange(3), ks=(1, 2, 10))
    # the row of NaN misses itself and stands before every other image in the ranking of a text
    assert [figures[f"i2t_recall@{k}"] for k in (1, 2, 10)] == pytest.approx([2 / 3] * 3)
    assert [figures[f"t2i_recall@{k}"] for k in (1, 2, 10)] == pytest.approx([0, 2 / 3, 2 / 3])
    broken = torch.full((3, 3), math.nan)
    assert retrieval(broken, broken, torch.arange(3), ks=(10,))["i2t_recall@10"] == 0.0


def test_one_caption_of_nan_leaves_the_others_their_hit():
    texts = torch.tensor([[math.nan, 0.0], [1.0, 0.0], [0.0, 1.0]])
    i2t, t2i = ranks(torch.eye(2), texts, torch.tensor([0, 0, 1]))
    assert i2t.tolist() == [0, 1] and t2i.tolist() == [2, 0, 0]


@pytest.mark.gpu
def test_cuda_equals_cpu():
    vectors = torch.nn.functional.normalize(torch.randn(300, 64, generator=torch.Generator().manual_seed(2)), dim=1)
    ids = torch.arange(300) // 5
    assert retrieval(vectors[:60].cuda(), vectors.cuda(), ids) == retrieval(vectors[:60], vectors, ids)
    scores, indices = top_k(vectors.cuda(), vectors.cuda(), 7)
    assert scores.is_cuda and torch.equal(indices.cpu(), top_k(vectors, vectors, 7)[1])


@pytest.mark.parametrize(
    ("images", "texts", "ids", "message"),
    [
        (torch.eye(3), torch.eye(4), torch.arange(4), "differ in width: 3 and 4"),
        (torch.eye(3), torch.eye(3), torch.tensor([0, 1, 3]), r"rows of the 3 images \(0 to 2\), got 3"),
        (torch.eye(3), torch.eye(3), torch.tensor([0, -1, 1]), "got -1"),
        (torch.eye(3), torch.eye(3), torch.arange(2), "wanted 3 whole numbers"),
        (torch.eye(3), torch.eye(3), torch.zeros(3), "whole numbers, one a text, got torch.float32"),
        (torch.ones(3), torch.eye(3), torch.arange(3), "image_embeddings: wanted a floating-point matrix"),
        (torch.ones(0, 3), torch.eye(3), torch.arange(3), "at least one image"),
    ],
)
def test_what_does_not_fit_is_named(images, texts, ids, message):
    with pytest.raises(ValueError, match=message):
        retrieval(images, texts, ids)


def test_chance_is_the_mean_over_drawn_rankings():
    counts = np.array([1, 2, 0, 5, 3])
    expected = chance(5, counts, ks=(1, 3, 10, 11))
    ids = np.repeat(np.arange(5), counts)
    generator = np.random.default_rng(0)
    draws = 4000
    for k in (1, 3):
        hits = np.zeros(5)
        for _ in range(draws):
            hits[np.unique(generator.permutation(ids)[:k])] += 1
        # the mean of 16,000 draws of a share has a deviation below 0.004; five of them
        assert expected[f"i2t_recall@{k}"] == pytest.approx(hits[counts > 0].mean() / draws, abs=0.02)
    assert expected["i2t_recall@11"] == 1.0 and expected["t2i_recall@3"] == 3 / 5 and expected["t2i_recall@10"] == 1.0


def test_chance_has_the_closed_form_and_the_keys_of_retrieval():
    figures = chance(1000, 5)
    assert figures["i2t_recall@10"] == pytest.approx(1 - math.comb(4995, 10) / math.comb(5000, 10), rel=1e-12)
    assert figures["i2t_recall@1"] == pytest.approx(0.001) and figures["t2i_recall@10"] == pytest.approx(0.01)
    assert list(figures) == list(retrieval(torch.eye(3), torch.eye(3), torch.arange(3)))
    assert figures["texts"] == 5000
    with pytest.raises(ValueError, match="texts_per_image"):
        chance(3, [1, 2])
    with pytest.raises(ValueError, match="at least one caption"):
        chance(3, 0)
    with pytest.raises(ValueError, match="ks"):
        chance(3, 1, ks=(0,))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 35), st.integers(0, 2**32 - 1))
def test_top_k_equals_a_stable_sort(queries, candidates, k, seed):
    scores = np.random.default_rng(seed).integers(0, 4, (queries, candidates)).astype(np.float32)
    found, indices = top_k(scores, np.eye(candidates, dtype=np.float32), k, chunk=2)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert np.array_equal(indices.numpy(), order)
    assert np.array_equal(found.numpy(), np.take_along_axis(scores, order, axis=1))


def test_top_k_takes_one_query_puts_nan_last_and_names_faults():
    scores, indices = top_k(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0], [0.0, math.nan], [0.0, 1.0]]), 3)
    assert indices.tolist() == [[2, 0, 1]] and scores[0, 2] == -math.inf
    with pytest.raises(ValueError, match="k: wanted at least 1, got 0"):
        top_k(torch.eye(2), torch.eye(2), 0)
    with pytest.raises(ValueError, match="width"):
        top_k(torch.eye(2), torch.eye(3), 1)
    with pytest.raises(ValueError, match="at least one, got none"):
        top_k(torch.eye(2), torch.ones(0, 2), 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_texts_of_several_images_equal_a_slow_sort(images, texts, seed, chunk):
    generator = np.random.default_rng(seed)
    similarity = generator.integers(0, 4, (images, texts)) / 4.0
    right = generator.random((images, texts)) < 0.3
    right[0, 0] = True
    pairs = np.argwhere(right.T)
    found = [ranks(similarity, np.eye(texts), pairs, chunk=chunk)]
    found.append(matrix_ranks(torch.tensor(similarity, dtype=torch.float32), torch.from_numpy(pairs)))
    for i2t, t2i in found:
        for got, table, mask in ((i2t, similarity, right), (t2i, similarity.T, right.T)):
            for query in range(len(table)):
                order = sorted(range(len(table[query])), key=lambda j, q=query: (-table[q, j], mask[q, j]))
                place = [mask[query, j] for j in order].index(True) if mask[query].any() else -1
                assert got[query] == place
    figures = retrieval(similarity, np.eye(texts), pairs, ks=(2,))
    assert figures["t2i_recall@2"] == np.mean([rank < min(2, images) for rank in t2i[t2i >= 0]])


def test_a_perfect_model_of_class_labels_reaches_100_and_told_apart_it_reaches_what_is_reachable():
    classes = np.arange(600) % 10
    images, labels = np.eye(10)[classes], np.eye(10)
    pairs = np.argwhere(classes[None] == np.arange(10)[:, None])
    assert [retrieval(images, labels, pairs)[f"{way}_recall@1"] for way in ("i2t", "t2i")] == [1.0, 1.0]
    bound = reachable(classes, np.arange(600), 600)
    for k in (1, 5, 10):
        assert bound[f"i2t_recall@{k}"] == pytest.approx(k / 60) and bound[f"t2i_recall@{k}"] == k / 60
    # Captions of a class in any order, and images that differ a little, so that a class ranks its images.
    apart = images + 1e-3 * np.arange(600)[:, None] * images
    noise = 1e-6 * np.random.default_rng(0).standard_normal((600, 10))
    found = retrieval(apart, labels[classes] + noise, np.arange(600))
    assert found["t2i_recall@10"] == pytest.approx(1 / 6) and 0.1 < found["i2t_recall@10"] < 0.25
    # Image 0 has a caption twice and one of its own; image 1 has the first one too.
    bound = reachable(np.array([4, 4, 5, 4]), np.array([0, 0, 0, 1]), 2, ks=(1, 2, 3))
    assert [bound[f"i2t_recall@{k}"] for k in (1, 2, 3)] == pytest.approx([(1 + 1 / 3) / 2, (1 + 2 / 3) / 2, 1.0])
    assert [bound[f"t2i_recall@{k}"] for k in (1, 2)] == [3 / 4, 1.0]


def test_chance_of_texts_with_several_images_is_the_mean_over_drawn_rankings():
    right = np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    expected = chance(4, right.sum(1), ks=(1, 2), images_per_text=right.sum(0))
    generator, draws = np.random.default_rng(1), 4000
    for k in (1, 2):
        texts = np.array([right[:, generator.permutation(3)[:k]].any(1) for _ in range(draws)])
        images = np.array([right[generator.permutation(4)[:k]].any(0) for _ in range(draws)])
        assert expected[f"i2t_recall@{k}"] == pytest.approx(texts[:, :3].mean(), abs=0.02)
        assert expected[f"t2i_recall@{k}"] == pytest.approx(images.mean(), abs=0.02)
    assert expected["texts"] == 3
    with pytest.raises(ValueError, match="images_per_text: wanted the 5 pairs of texts_per_image, got 3"):
        chance(4, right.sum(1), images_per_text=[1, 1, 1])
    with pytest.raises(ValueError, match=r"wanted \(pairs, 2\)"):
        retrieval(torch.eye(3), torch.eye(3), torch.zeros(3, 3, dtype=torch.int64))
