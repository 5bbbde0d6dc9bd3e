"""The captions of a step against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from varalign.data.index import CaptionIndex
from varalign.losses.contrastive import contrastive
from varalign.training.steps.step_texts import Relation, StepTexts

COUNTS = (5, 1, 3, 5, 2)


class Captions(CaptionIndex):
    """Images with 5, 1, 3, 5 and 2 captions."""

    def __init__(self) -> None:
        self.split = np.zeros(len(COUNTS), np.int8)
        self._owner = np.repeat(np.arange(len(COUNTS)), COUNTS)

    @property
    def caption_owner(self) -> np.ndarray:
        return self._owner


def step(use: str, count: int, rows: list[int]) -> StepTexts:
    return StepTexts.draw(Captions(), np.array(rows), seed=3, epoch=2, count=count, use=use)  # type: ignore[arg-type]


def test_each_caption_of_an_image_once() -> None:
    texts = step("each", 4, [3, 1, 2])
    assert texts.owner.tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    assert len(set(texts.captions.tolist())) == 8
    assert (Captions().caption_owner[texts.captions] == np.array([3, 1, 2])[texts.owner]).all()
    features = torch.randn(8, 4)
    assert texts.join(features, None) is features


def test_one_caption_is_the_same_either_way() -> None:
    a, b = step("each", 1, [0, 2, 4]), step("mean", 1, [0, 2, 4])
    assert a.captions.tolist() == b.captions.tolist() and a.owner.tolist() == b.owner.tolist() == [0, 1, 2]


def test_means_and_weights() -> None:
    texts = step("mean", 2, [0, 3])
    features, weights = torch.randn(4, 3), torch.tensor([1.0, 0.0, 0.5, 0.5])
    wanted = torch.stack([features[0], features[2:].mean(0)])
    torch.testing.assert_close(texts.join(features, weights), wanted)
    for got in texts.weights(weights):
        assert got is not None and got.tolist() == [0.5, 0.5]
    images, each = step("each", 3, [1, 2]).weights(torch.tensor([0.2, 1.0, 0.0, 0.5]))
    assert images is not None and images.tolist() == pytest.approx([0.2, 0.5])
    assert each is not None and len(each) == 4


def test_pair_values_of_texts_with_several_images_against_a_loop() -> None:
    """Texts 0 and 3 are one, of images 0 and 2; image 1 has it beside its own. Other positives are not counted."""
    texts = StepTexts(np.arange(5), np.array([0, 1, 1, 2, 3]))
    generator = torch.Generator().manual_seed(1)
    u, v = (
        torch.nn.functional.normalize(torch.randn(n, 6, dtype=torch.float64, generator=generator), dim=1)
        for n in (4, 5)
    )
    ids = torch.tensor([[9, -1], [1, 9], [9, -2], [3, -3]]), torch.tensor([9, 1, 1, 9, 3])
    scale, s = torch.tensor(5.0, dtype=torch.float64), u @ v.T
    *_, stats_i2t, stats_t2i = contrastive(u, v, scale, *ids)
    found = texts.pair_values(stats_i2t, stats_t2i, scale, Relation(u, v, *ids))
    positive = (ids[0][:, :, None] == ids[1]).any(1)
    for j, i in enumerate(texts.owner.tolist()):
        pair, e = torch.exp(scale * s[i, j]), torch.exp(scale * s)
        by_image = pair / (pair + e[i][~positive[i]].sum())
        by_text = pair / (pair + e[:, j][~positive[:, j]].sum())
        margin = s[i, j] - (s[i][~positive[i]].max() + s[:, j][~positive[:, j]].max()) / 2
        torch.testing.assert_close(found[j], torch.stack([(by_image + by_text) / 2, margin]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_pair_values_against_a_loop(count: int) -> None:
    texts = step("each", count, [0, 1, 2, 3])
    generator = torch.Generator().manual_seed(0)
    u, v = (
        torch.nn.functional.normalize(torch.randn(n, 6, dtype=torch.float64, generator=generator), dim=1)
        for n in (4, len(texts.owner))
    )
    scale, owner = torch.tensor(5.0, dtype=torch.float64), torch.from_numpy(texts.owner)
    *_, stats_i2t, stats_t2i = contrastive(u, v, scale, torch.arange(4), owner)
    found = texts.pair_values(stats_i2t, stats_t2i, scale)
    s = u @ v.T
    for j, i in enumerate(texts.owner.tolist()):
        negatives = s[i][owner != i]
        pair = torch.exp(scale * s[i, j])
        by_image = pair / (pair + torch.exp(scale * negatives).sum())
        by_text = pair / torch.exp(scale * s[:, j]).sum()
        others = torch.cat([s[:i, j], s[i + 1 :, j]])
        margin = s[i, j] - (negatives.max() + others.max()) / 2
        torch.testing.assert_close(found[j], torch.stack([(by_image + by_text) / 2, margin]), rtol=1e-9, atol=1e-12)
