"""How many candidates are less similar to a query than its best right one: exact counts at the speed of float32.

A similarity is the float64 inner product, rounded to float32, so that equal candidates tie wherever they stand in a
product. On the CPU a tile of similarities is computed in float32 first. Its error is at most γ‖u‖‖v‖ in any order of
summation, γ = Dε / (1 − Dε) (Higham 2002, Accuracy and Stability of Numerical Algorithms, §3.1). A candidate further
than that from a query's best right one is decided; the few nearer ones are computed again in float64, one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.waiting import counted
from varalign.evaluation.products import exact_products

# I images, T texts, E pairs of them, D embedding, r × c a tile of similarities, n near ones

TILE = {"cpu": (255, 1 << 13), "cuda": (1 << 10, 1 << 14)}
"""Images and texts of a tile. On the CPU it fits a cache, and counts along either side fit 8 and 16 bits."""
ROUNDOFF = 2.0**-24
PRODUCTS_AT_ONCE = 1 << 15
MOST_NEAR = 1 / 64
"""Share of near candidates from which on a tile is computed in float64 as a whole."""
LARGEST_NORM = 1e15
"""From here on products could overflow float32, so every tile is computed in float64."""


def similarities(images_ID: Tensor, texts_TD: Tensor, image_n: Tensor, text_n: Tensor) -> Tensor:
    """(n,) float32: the similarities of image rows and text rows."""
    found = torch.empty(len(image_n), dtype=torch.float32, device=images_ID.device)
    for start in range(0, len(image_n), PRODUCTS_AT_ONCE):
        part = slice(start, start + PRODUCTS_AT_ONCE)
        products = images_ID[image_n[part]].double() * texts_TD[text_n[part]].double()
        found[part] = products.sum(dim=1).float()
    return found


def smaller_counts(
    images_ID: Tensor,
    texts_TD: Tensor,
    pairs: tuple[Tensor, Tensor],
    best: tuple[Tensor, Tensor],
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """How many candidates are smaller than each query's best right one; its right ones count as smaller.

    Args:
        images_ID: floating point. texts_TD: on the same device.
        pairs: (E,) texts and (E,) images that belong together, int64.
        best: float32, similarity of each image's best text (I,) and of each text's best image (T,); −inf without one.
        chunk: most images of a tile.

    Returns:
        (I,) and (T,) int64 on the device.
    """
    text_E, image_E = pairs
    images, texts, device = len(images_ID), len(texts_TD), images_ID.device
    rows, columns = TILE.get(device.type, TILE["cpu"])
    rows = min(rows, chunk or rows)
    order_E = torch.argsort(image_E, stable=True)  # pairs by image, so that those of a tile's rows are one slice
    text_E, image_E = text_E[order_E], image_E[order_E]
    bounds = torch.searchsorted(image_E, torch.arange(0, images + rows, rows, device=device)).tolist()
    tiles = _Tiles(images_ID, texts_TD, best, rows * columns)
    tops = range(0, images, rows)
    for place, top in enumerate(counted(tops, "recall", len(tops))):
        own = slice(bounds[place], bounds[place + 1])
        own_text, own_image = text_E[own], image_E[own] - top
        for left in range(0, texts, columns):
            inside = (own_text >= left) & (own_text < left + columns)
            right = own_image[inside], own_text[inside] - left
            tiles.count(slice(top, min(top + rows, images)), slice(left, min(left + columns, texts)), right)
    return tiles.smaller


@dataclass(frozen=True)
class _Bounds:
    """Candidates below `low` (Q,) are smaller than the best right one of a query, those from `high` (Q,) on are not."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @classmethod
    def of(cls, best: Tensor, norms: Tensor, largest: float, width: int) -> _Bounds:
        """Of queries with these norms (Q,) float64, whose candidates are at most `largest` long and `width` wide."""
        steps = (width + 8) * ROUNDOFF  # eight more roundings: of the inputs, of the float64 result and of the bounds
        error = steps / (1 - steps) * largest * norms + width * torch.finfo(torch.float32).tiny
        return cls((best.double() - error).float().numpy(), (best.double() + error).float().numpy())


class _Tiles:
    """Counts tile by tile.

    Args:
        images_ID, texts_TD, best: as of `smaller_counts`.
        size: most similarities of a tile.
    """

    def __init__(self, images_ID: Tensor, texts_TD: Tensor, best: tuple[Tensor, Tensor], size: int) -> None:
        self.images, self.texts, self.best = images_ID, texts_TD, best
        self.smaller = torch.zeros_like(best[0], dtype=torch.int64), torch.zeros_like(best[1], dtype=torch.int64)
        # A row with NaN is as NaN in float32 as in float64, and an infinite one as infinite or NaN.
        norms = [torch.linalg.vector_norm(side, dim=1, dtype=torch.float64) for side in (images_ID, texts_TD)]
        norms = [norm.nan_to_num(0.0, 0.0) for norm in norms]
        of_image, of_text = (float(norm.max()) for norm in norms)
        self.is_fast = images_ID.device.type == "cpu" and max(of_image, of_text) < LARGEST_NORM
        if self.is_fast:
            self._images, self._texts = images_ID.float(), texts_TD.float()
            self._by_row = _Bounds.of(best[0], norms[0], of_text, images_ID.shape[1])
            self._by_column = _Bounds.of(best[1], norms[1], of_image, images_ID.shape[1])
            self._similarity = torch.empty(size)
            self._is_below = np.empty((2, size), bool)

    def count(self, rows: slice, columns: slice, right: tuple[Tensor, Tensor]) -> None:
        """Count in one tile, given the places (n,) and (n,) of its right pairs."""
        if not (self.is_fast and self._count_fast(rows, columns, right)):
            self._count_exactly(rows, columns, right)

    def _count_exactly(self, rows: slice, columns: slice, right: tuple[Tensor, Tensor]) -> None:
        similarity = (self.images[rows].double() @ self.texts[columns].double().T).float()
        similarity[right] = -torch.inf
        self.smaller[0][rows] += (similarity < self.best[0][rows, None]).sum(dim=1)
        self.smaller[1][columns] += (similarity < self.best[1][columns]).sum(dim=0)

    def _count_fast(self, rows: slice, columns: slice, right: tuple[Tensor, Tensor]) -> bool:
        """False, and nothing counted, where too many candidates are near."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        size = shape[0] * shape[1]
        similarity = self._similarity[:size].view(shape)
        with exact_products():
            torch.mm(self._images[rows], self._texts[columns].T, out=similarity)
        similarity[right] = -torch.inf
        found = similarity.numpy()  # NumPy compares and counts ten times as fast as torch
        below, below_high = (part[:size].reshape(shape) for part in self._is_below)
        counted = []
        for axis, low, high in (
            (1, self._by_row.low[rows, None], self._by_row.high[rows, None]),
            (0, self._by_column.low[columns], self._by_column.high[columns]),
        ):
            np.less(found, low, out=below)
            np.less(found, high, out=below_high)
            dtype = np.uint16 if axis else np.uint8
            count = np.add.reduce(below.view(np.uint8), axis=axis, dtype=dtype)
            near = np.flatnonzero(np.not_equal(below, below_high, out=below))
            if len(near) > MOST_NEAR * size:
                return False
            counted.append((count, *np.divmod(near, shape[1])))
        for side, (part, (count, row, column)) in enumerate(zip((rows, columns), counted, strict=True)):
            self.smaller[side][part] += torch.from_numpy(count.astype(np.int64))
            image, text = torch.from_numpy(row) + rows.start, torch.from_numpy(column) + columns.start
            query = image if side == 0 else text
            is_smaller = similarities(self.images, self.texts, image, text) < self.best[side][query]
            self.smaller[side].index_add_(0, query, is_smaller.long())
        return True
