"""Intervals, the clustered bootstrap and Holm's correction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from varalign.evaluation.retrieval import ranks, retrieval
from varalign.study import inference
from varalign.study.inference import METRICS, hits, holm, interval, paired_differences, recalls
from varalign.study.packs import rank_text


def cell(i2t: str, t2i: str, captions: list[int]) -> dict[str, object]:
    return {"ranks_i2t": i2t, "ranks_t2i": t2i, "captions": captions}


def test_recalls_of_ranks_as_text_equal_retrieval() -> None:
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(30).repeat_interleave(torch.arange(30) % 3 + 1)
    u, v = torch.randn(30, 4, generator=generator), torch.randn(len(owner), 4, generator=generator)
    v += 0.7 * u[owner]
    i2t, t2i = ranks(u, v, owner)
    found = recalls(cell(rank_text(i2t), rank_text(t2i), np.bincount(owner.numpy()).tolist()))
    truth = retrieval(u, v, owner)
    for metric in METRICS[1:]:
        assert found[metric] == pytest.approx(truth[metric], abs=1e-12)
    assert found["mean_recall@1"] == pytest.approx((truth["i2t_recall@1"] + truth["t2i_recall@1"]) / 2)


def test_hits_belong_to_the_image_that_the_caption_has() -> None:
    values, share = hits(cell("0+", "01+", [1, 2]), "t2i_recall@1")
    assert values.tolist() == [1 / 3, 0.0]
    assert share.tolist() == [1 / 3, 2 / 3]
    assert hits(cell("0+", "01+", [1, 2]), "t2i_recall@5")[0].tolist() == [1 / 3, 1 / 3]
    assert hits(cell("0+", "01+", [1, 2]), "mean_recall@1")[0].tolist() == [(1 / 2 + 1 / 3) / 2, 0.0]


def test_interval_by_hand() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)  # t at 0.975 with 2 degrees of freedom, deviation 1
    assert np.isnan(interval([1.0])[1])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def random_cell(generator: np.random.Generator, hit_rate: np.ndarray) -> dict[str, object]:
    """Images with five captions that share one hit, as alike as captions of one image can be."""
    hit = generator.random(len(hit_rate)) < hit_rate
    text = "".join("0" if one else "+" for one in hit)
    return cell(text, "".join(one * 5 for one in text), [5] * len(hit_rate))


def test_the_bootstrap_knows_that_captions_of_an_image_are_one_draw() -> None:
    """With one seed and hits that differ by image only, the interval is that of images, not of texts."""
    generator = np.random.default_rng(1)
    a, b = (random_cell(generator, np.full(400, rate)) for rate in (0.5, 0.3))
    (found,) = paired_differences([([a], [b])], "t2i_recall@1")
    difference = hits(a, "t2i_recall@1")[0] - hits(b, "t2i_recall@1")[0]
    error = (difference * 400).std() / np.sqrt(400)
    assert found["difference"] == pytest.approx(difference.sum())
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert found["p"] < 0.01


def test_equal_runs_have_no_difference_and_p_one() -> None:
    generator = np.random.default_rng(0)
    runs = [random_cell(generator, np.full(50, 0.5)) for _ in range(3)]
    assert paired_differences([(runs, runs)], "mean_recall@1") == [
        {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    ]


def test_p_values_under_no_difference_are_no_smaller_than_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 comparisons between runs of equal ability at most 10 % come out below 0.05 (5 % wanted, 200 draws)."""
    monkeypatch.setattr(inference, "DRAWS", 500)
    generator = np.random.default_rng(3)
    rate = generator.random(100)
    small = 0
    for _ in range(200):
        ours, theirs = ([random_cell(generator, rate) for _ in range(4)] for _ in range(2))
        small += paired_differences([(ours, theirs)], "mean_recall@1")[0]["p"] < 0.05
    assert small <= 20


def test_what_few_draws_decide_is_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference of four standard errors: p as the normal law has it, which ten thousand draws cannot tell from 0."""
    generator = np.random.default_rng(8)
    a, b = (random_cell(generator, np.full(400, rate)) for rate in (0.5, 0.37))
    clear, unclear = paired_differences([([a], [b]), ([a], [a])], "t2i_recall@1")
    table = (hits(a, "t2i_recall@1")[0] - hits(b, "t2i_recall@1")[0]) * 400
    expected = 2 * norm.sf(abs(table.mean()) / (table.std() / 20))
    assert 1e-5 < expected < 1e-4 and unclear["p"] == 1.0
    assert clear["p"] == pytest.approx(expected, rel=0.5)
    assert [clear] == paired_differences([([a], [b])], "t2i_recall@1")
    monkeypatch.setattr(inference, "MOST", 10_000)
    (few,) = paired_differences([([a], [b])], "t2i_recall@1")
    assert (clear["low"], clear["high"]) == (few["low"], few["high"])


def test_unpaired_runs_are_refused() -> None:
    a, b = cell("00", "00", [1, 1]), cell("0", "00", [2])
    with pytest.raises(ValueError, match="different test queries"):
        paired_differences([([a], [b])], "mean_recall@1")
    with pytest.raises(ValueError, match="as many"):
        paired_differences([([a], [])], "mean_recall@1")
