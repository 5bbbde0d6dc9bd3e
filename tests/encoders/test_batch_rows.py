"""What is drawn for some rows of a batch is what the whole batch draws for them."""

from __future__ import annotations

import pytest
import torch
from varalign.encoders.batch_rows import BatchRows, RowDropout, batch_rows, dropout, normal_like


def drawn(values: torch.Tensor, rows: BatchRows | None, dim: int, kind: str) -> torch.Tensor:
    torch.manual_seed(4)
    with batch_rows(rows):
        return dropout(values, 0.4, True, dim=dim) if kind == "dropout" else normal_like(values, dim=dim)


@pytest.mark.parametrize("kind", ["dropout", "noise"])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("repeated", [False, True])
def test_parts_draw_what_the_whole_batch_draws(kind: str, dim: int, repeated: bool) -> None:
    whole = torch.rand(7, 5) + 1
    if dim == 1:
        whole = whole.expand(3, 7, 5) if repeated else whole.expand(3, 7, 5).contiguous()
    expected = drawn(whole, None, dim, kind)
    for first, count in ((0, 2), (2, 4), (6, 1)):
        found = drawn(whole.narrow(dim, first, count), BatchRows(first, 7), dim, kind)
        assert torch.equal(found, expected.narrow(dim, first, count))


def test_shorter_texts_draw_what_they_draw_among_longer_ones() -> None:
    whole = torch.rand(4, 6, 3) + 1
    expected = drawn(whole, None, 0, "dropout")
    found = drawn(whole[1:3, :4], BatchRows(1, 4, tokens=6), 0, "dropout")
    assert torch.equal(found, expected[1:3, :4])


def test_every_rank_s_generator_ends_in_one_state() -> None:
    states = []
    for first, count in ((0, 3), (3, 1)):
        drawn(torch.ones(count, 5), BatchRows(first, 4), 0, "dropout")
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_nothing_is_drawn_outside_training() -> None:
    layer = RowDropout(0.5).eval()
    with batch_rows(BatchRows(0, 9)):
        assert torch.equal(layer(torch.ones(3, 2)), torch.ones(3, 2))
