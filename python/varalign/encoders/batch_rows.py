"""Dropout and noise of a pass over some rows of a batch: what a pass over the whole batch would draw for these rows.

A step may be split over processes and into parts. Each of them draws for the whole batch and takes its own rows, so
that neither the number of processes nor that of the parts changes what is drawn, and every process's random generator
stays in the state of all others'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BatchRows:
    """The rows of a batch that a pass has.

    Attributes:
        first: of them. total: rows of the whole batch.
        tokens: padded length of the whole batch's texts; None: rows have no tokens.
    """

    first: int
    total: int
    tokens: int | None = None


_ROWS: ContextVar[BatchRows | None] = ContextVar("batch_rows", default=None)


@contextmanager
def batch_rows(rows: BatchRows | None) -> Iterator[None]:
    """Within, what is drawn is that of these rows; None: the pass has the whole batch."""
    before = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(before)


def dropout(values: Tensor, p: float, training: bool, *, dim: int = 0) -> Tensor:
    """`nn.functional.dropout`, `dim` being the axis of the batch's rows; that of tokens, if any, follows it."""
    whole = _whole(values, dim)
    if whole is None or not training or p == 0:
        return nn.functional.dropout(values, p, training)
    return values * _own(nn.functional.dropout(torch.ones_like(whole), p, True), values, dim)


def normal_like(values: Tensor, *, dim: int = 0) -> Tensor:
    """`torch.randn_like`, `dim` being the axis of the batch's rows."""
    whole = _whole(values, dim)
    return torch.randn_like(values) if whole is None else _own(torch.randn_like(whole), values, dim)


class RowDropout(nn.Dropout):
    """`nn.Dropout` on (B, ...), B rows of a batch."""

    def forward(self, values: Tensor) -> Tensor:
        """As `dropout`."""
        return dropout(values, self.p, self.training)


def _whole(values: Tensor, dim: int) -> Tensor | None:
    """An empty tensor for the whole batch that lies in memory as `values` would, or None where `values` is whole.

    An axis along which `values` repeats (stride 0) does so in it: the order of memory decides who gets which number.
    """
    rows = _ROWS.get()
    if rows is None:
        return None
    shape = list(values.shape)
    shape[dim] = rows.total
    if rows.tokens is not None:
        shape[dim + 1] = rows.tokens
    base = [1 if stride == 0 else size for size, stride in zip(shape, values.stride(), strict=True)]
    return values.new_empty(base).expand(shape)


def _own(whole: Tensor, values: Tensor, dim: int) -> Tensor:
    rows = _ROWS.get()
    assert rows is not None
    own = whole.narrow(dim, rows.first, values.shape[dim])
    return own if rows.tokens is None else own.narrow(dim + 1, 0, values.shape[dim + 1])
