"""The streamed sums against full matrices, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from varalign.evaluation import embedding_statistics
from varalign.evaluation.embedding_statistics import estimated_uniformity, summary, uniformity


def random_unit(rows: int, seed: int, dim: int = 13) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1)


def slow_uniformity(points: torch.Tensor) -> float:
    return math.log(float(torch.pdist(points).square().mul(-2.0).exp().mean()))


def test_equals_full_matrices():
    images, texts = random_unit(11, 0), random_unit(37, 1)
    ids = torch.randint(0, 11, (37,), generator=torch.Generator().manual_seed(2))
    figures = summary(images, texts, ids)
    similarity = images @ texts.T
    pair = torch.zeros_like(similarity, dtype=torch.bool)
    pair[ids, torch.arange(37)] = True
    assert figures["cosine_similarity"] == pytest.approx(float(similarity[pair].mean()), abs=1e-12)
    assert figures["cosine_similarity_non_pairs"] == pytest.approx(float(similarity[~pair].mean()), abs=1e-12)
    assert figures["modality_gap"] == pytest.approx(float((images.mean(0) - texts.mean(0)).norm()), abs=1e-12)
    assert figures["alignment"] == pytest.approx(float((images[ids] - texts).square().sum(1).mean()), abs=1e-12)
    # float32 inside: 1e-6 of the exponent
    assert figures["image_uniformity"] == pytest.approx(slow_uniformity(images), abs=2e-6)
    assert figures["text_uniformity"] == pytest.approx(slow_uniformity(texts), abs=2e-6)


@pytest.mark.parametrize("chunk", [1, 7, 36, 37, 100])
def test_uniformity_does_not_depend_on_the_chunk(chunk):
    points = random_unit(37, 3)
    assert uniformity(points, chunk=chunk) == pytest.approx(slow_uniformity(points), abs=2e-6)


def test_closed_forms():
    same = torch.tensor([[0.6, 0.8]]).repeat(5, 1)
    figures = summary(same, same, torch.arange(5))
    assert figures["cosine_similarity"] == pytest.approx(1.0) and figures["modality_gap"] == 0.0
    assert figures["alignment"] == pytest.approx(0.0, abs=1e-6)
    assert figures["image_uniformity"] == pytest.approx(0.0, abs=1e-5)
    opposite = uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert opposite == pytest.approx(-8.0, abs=1e-5)  # distance² is 4, t is 2


def test_length_does_not_matter_and_types_are_accepted():
    images, texts, ids = random_unit(6, 4), random_unit(6, 5), torch.arange(6)
    assert summary(3 * images, texts, ids) == pytest.approx(summary(images, texts, ids))
    assert summary(images.half().numpy(), texts.bfloat16(), ids) == pytest.approx(summary(images, texts, ids), abs=2e-2)


def test_one_pair_and_nan():
    one = summary(torch.eye(1), torch.eye(1), torch.zeros(1, dtype=torch.int64))
    assert one["cosine_similarity"] == 1.0
    assert math.isnan(one["cosine_similarity_non_pairs"]) and math.isnan(one["image_uniformity"])
    broken = torch.eye(3)
    broken[0, 0] = math.nan
    assert all(
        math.isnan(value)
        for key, value in summary(broken, torch.eye(3), torch.arange(3)).items()
        if key != "text_uniformity"
    )
    with pytest.raises(ValueError, match="wanted rows of the 3 images"):
        summary(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 5]))


def test_uniformity_of_a_sample_is_within_its_error_which_is_that_of_many_samples(monkeypatch):
    """400 point sets of one distribution: their sampled figures spread as the errors say."""
    assert estimated_uniformity(random_unit(300, 0)) == (uniformity(random_unit(300, 0)), 0.0)
    monkeypatch.setattr(embedding_statistics, "SAMPLE", 200)
    sets = [random_unit(400, seed, 4) + 0.3 for seed in range(400)]
    found = [(estimated_uniformity(points), uniformity(points)) for points in sets]
    away = torch.tensor([(figure - whole) / error for (figure, error), whole in found])
    assert 0.85 < float(away.std()) < 1.15 and abs(float(away.mean())) < 0.15  # 400 draws: deviations of 0.035 and 0.05
    figures = summary(sets[0], sets[0], torch.arange(400))
    assert (figures["text_uniformity"], figures["text_uniformity_error"]) == found[0][0]
    assert "image_uniformity_error" not in summary(sets[0][:200], sets[0], torch.arange(400) // 2)
    sets[0][399] = math.nan  # NaN in gives NaN out, whether drawn or not
    assert all(math.isnan(value) for value in estimated_uniformity(sets[0]))


def test_blocks_of_rows_do_not_show(monkeypatch):
    images, texts, ids = random_unit(50, 6), random_unit(90, 7), torch.arange(90) % 50
    whole = summary(images, texts, ids)
    monkeypatch.setattr(embedding_statistics, "_BLOCK", 7)
    assert summary(images, texts, ids) == pytest.approx(whole, rel=1e-12)
