"""Hub correction against its definition, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from varalign.canonical.hub_correction import (
    HELD_OUT_SHARPNESS,
    TRAINED_SHARPNESS,
    HubCorrection,
    QueryBank,
    as_items,
    as_queries,
    corrected_ranks,
)
from varalign.evaluation.retrieval import ranks


def unit(rows: int, seed: int, dimensions: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator), dim=1)


def test_the_bank_form_is_the_log_of_the_mean_exponential() -> None:
    queries, items, tau = unit(50, 0), unit(7, 1), 9.0
    wanted = [math.log(sum(math.exp(tau * float(r.double() @ g.double())) for r in queries) / 50) / tau for g in items]
    found = QueryBank.of(queries, "bank").prior(items, tau)
    torch.testing.assert_close(found.double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_variance_form_is_the_mean_and_half_the_variance_of_the_similarities() -> None:
    queries, items, tau = unit(50, 0), unit(7, 1), 9.0
    s = queries.double() @ items.double().T
    found = QueryBank.of(queries, "variance").prior(items, tau)
    torch.testing.assert_close(found.double(), s.mean(0) + tau / 2 * s.var(0, correction=0), atol=1e-6, rtol=0)


def test_as_many_centroids_as_queries_are_the_bank() -> None:
    queries, items = unit(50, 0).repeat(2, 1), unit(7, 1)
    few, bank = (QueryBank.of(queries, form) for form in ("centroids", "bank"))
    assert few.tensors["queries"].shape == (50, 8)
    torch.testing.assert_close(few.prior(items, 9.0), bank.prior(items, 9.0), atol=1e-6, rtol=0)


def test_centroids_count_by_their_shares() -> None:
    """Three tight clusters of 100, 200 and 700 queries, three centroids: the prior of one distribution on them."""
    centres, items, tau = unit(3, 0), unit(7, 1), 9.0
    which = torch.arange(3).repeat_interleave(torch.tensor([100, 200, 700]))
    queries = centres[which] + 1e-3 * unit(1000, 2)
    bank = QueryBank.of(queries, "centroids")
    assert bank.tensors["queries"].shape == (128, 8)
    assert float(bank.tensors["log_shares"].exp().sum()) == pytest.approx(1)
    wanted = ((tau * items @ centres.T).exp() @ torch.tensor([0.1, 0.2, 0.7])).log() / tau
    torch.testing.assert_close(bank.prior(items, tau), wanted, atol=2e-3, rtol=0)


def test_both_forms_agree_to_second_order() -> None:
    """Their difference is of third order: an eighth of tau leaves less than a fiftieth of it."""
    queries, items = unit(200, 0), unit(20, 1)
    bank, variance = QueryBank.of(queries, "bank"), QueryBank.of(queries, "variance")
    apart = [float((bank.prior(items, tau) - variance.prior(items, tau)).double().norm()) for tau in (4.0, 0.5)]
    assert 0 < apart[1] < apart[0] / 50


def test_large_galleries_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, items = unit(50, 0), unit(33, 1)
    whole = QueryBank.of(queries, "bank").prior(items, 5.0)
    monkeypatch.setattr("varalign.canonical.hub_correction._SIMILARITIES", 200)
    torch.testing.assert_close(QueryBank.of(queries, "bank").prior(items, 5.0), whole, atol=1e-6, rtol=1e-6)


def test_the_score_is_an_inner_product() -> None:
    queries, items, prior = unit(5, 0), unit(7, 1), torch.linspace(-1, 1, 7)
    torch.testing.assert_close(as_queries(queries) @ as_items(items, prior).T, queries @ items.T - prior)


@pytest.mark.parametrize("form", ["bank", "centroids", "variance"])
def test_corrected_ranks_are_those_of_the_corrected_similarities(form: str) -> None:
    images, texts = unit(20, 0), unit(40, 1)
    pairs = torch.stack([torch.arange(40), torch.arange(40) // 2], dim=1)
    correction = HubCorrection.of(unit(30, 2), unit(60, 3), 10.0, source="dev", form=form)  # type: ignore[arg-type]
    i2t, t2i = corrected_ranks(images, texts, pairs, correction)
    s = images @ texts.T
    by_text, by_image = s - correction.text_prior(texts), s - correction.image_prior(images)[:, None]
    own = [by_text[i, 2 * i : 2 * i + 2].max() for i in range(20)]
    others = torch.ones(20, 40, dtype=torch.bool)
    others[pairs[:, 1], pairs[:, 0]] = False
    assert i2t.tolist() == [int(((by_text[i] >= own[i]) & others[i]).sum()) for i in range(20)]
    assert t2i.tolist() == [int((by_image[:, j] >= by_image[j // 2, j]).sum()) - 1 for j in range(40)]


def test_a_hub_no_longer_wins() -> None:
    """One image is near every text; each text's own image is a little further away."""
    texts = unit(30, 0)
    images = torch.nn.functional.normalize(texts + 0.5 * unit(30, 1), dim=1)
    images[0] = torch.nn.functional.normalize(texts.sum(0), dim=0)
    texts = torch.nn.functional.normalize(texts + 1.5 * images[0], dim=1)
    pairs = torch.arange(30)
    plain = ranks(images, texts, pairs)[1]
    pairs_of = torch.stack([pairs, pairs], dim=1)
    corrected = corrected_ranks(images, texts, pairs_of, HubCorrection.of(images, texts, 10.0, source="gallery"))[1]
    assert np.mean(plain == 0) < 0.1
    assert np.mean(corrected == 0) > 0.7


def test_a_bank_of_training_pairs_takes_a_smaller_tau() -> None:
    bank = unit(5, 0)
    assert HubCorrection.of(bank, bank, 10.0, source="train").tau == TRAINED_SHARPNESS * 10
    assert HubCorrection.of(bank, bank, 10.0, source="dev").tau == HELD_OUT_SHARPNESS * 10


def test_what_is_no_bank() -> None:
    with pytest.raises(ValueError, match=r"queries: wanted \(R, D\) with at least one row, got \(0, 8\)"):
        QueryBank.of(torch.zeros(0, 8), "bank")
    with pytest.raises(ValueError, match="form 'median': wanted one of bank, centroids, variance"):
        QueryBank.of(unit(3, 0), "median")  # type: ignore[arg-type]
