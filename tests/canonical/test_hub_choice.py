"""Hub correction is taken where held-out pairs gain by it, and nowhere else."""

from __future__ import annotations

import torch
from varalign.canonical.hub_choice import Gain, HeldOut, judge, judge_by_halves
from varalign.canonical.hub_correction import HubCorrection


def pairs_with_hubs(images: int, seed: int, hubs: float = 1.0) -> HeldOut:
    """Images with two texts each; two dimensions say which items are near every query, and nothing of the pairs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator)

    topic = draw(images, 24)
    text_topic = topic.repeat_interleave(2, dim=0) + 0.6 * draw(2 * images, 24)
    topic = topic + 0.6 * draw(images, 24)
    popular, level = hubs * 2 * draw(images, 1), hubs * torch.full((images, 1), 5.0)
    text_popular = hubs * 2 * draw(2 * images, 1)
    u = torch.cat([topic, popular, level], dim=1)
    v = torch.cat([text_topic, level.repeat(2, 1), text_popular], dim=1)
    unit = torch.nn.functional.normalize
    text = torch.arange(2 * images)
    return HeldOut(unit(u, dim=1), unit(v, dim=1), torch.stack([text, text // 2], dim=1))


def correction(of: HeldOut, source: str = "train") -> HubCorrection:
    return HubCorrection.of(of.images, of.texts, 12.0, source=source)


def test_taken_where_hubs_stand_in_the_way() -> None:
    found = judge(pairs_with_hubs(200, 0), correction(pairs_with_hubs(300, 1)), 12.0)
    assert found.images == 200
    assert found.corrected_recall > found.recall + 0.1
    assert found.corrected_loss < found.loss
    assert found.taken


def test_not_taken_without_hubs_nor_by_a_bank_of_other_queries() -> None:
    assert not judge(pairs_with_hubs(200, 0, hubs=0.0), correction(pairs_with_hubs(300, 1, hubs=0.0)), 12.0).taken
    strange = pairs_with_hubs(300, 1)
    strange = HeldOut(-strange.images, -strange.texts, strange.pairs)
    assert not judge(pairs_with_hubs(200, 0), correction(strange), 12.0).taken


def test_by_halves_each_half_is_judged_by_a_bank_of_the_other() -> None:
    held_out, seen = pairs_with_hubs(200, 0), []

    def make(bank: HeldOut) -> HubCorrection:
        seen.append(bank)
        return correction(bank, "dev")

    found = judge_by_halves(held_out, make, 12.0)
    assert found.images == 200 and found.taken
    assert torch.equal(seen[0].images, held_out.images[1::2])
    assert torch.equal(seen[1].images, held_out.images[::2])
    assert all(len(bank.texts) == 200 for bank in seen)


def test_a_part_keeps_pairs_and_texts_together() -> None:
    """A text of two images stays with the one that is kept."""
    images, texts = torch.eye(4), torch.eye(4)[:3]
    whole = HeldOut(images, texts, torch.tensor([[0, 0], [1, 1], [1, 3], [2, 2]]))
    part = whole.part(torch.tensor([1, 3]))
    assert torch.equal(part.images, images[[1, 3]])
    assert torch.equal(part.texts, texts[[1]])
    assert part.pairs.tolist() == [[0, 0], [0, 1]]


def test_a_gain_is_taken_beyond_chance_alone() -> None:
    def gain(corrected: float, loss: float = 0.9) -> Gain:
        return Gain(100, recall=0.2, corrected_recall=corrected, error=0.01, loss=1.0, corrected_loss=loss)

    assert gain(0.22).taken
    assert not gain(0.21).taken
    assert not gain(0.22, loss=1.0).taken
    assert gain(0.22).as_dict()["taken"] is True
