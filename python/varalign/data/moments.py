"""RunningMoments: count, mean, variance, minimum and maximum of arrays too large to hold, in one pass.

Accumulates in float64, merges across threads, processes and machines, pickles, and gives its state as a dict of plain
NumPy arrays for a checkpoint. Source: Chan, Golub and LeVeque 1979.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varalign import _core

Floats = NDArray[np.float64]


def _as_core_takes_it(values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind == "c":
        raise TypeError(f"values must be real numbers, got {array.dtype}; add real and imaginary parts by themselves")
    if array.dtype not in (np.float32, np.float64, np.uint8):
        array = array.astype(np.float64)
    return np.ascontiguousarray(array) if array.ndim else array.reshape(1)


class RunningMoments:
    """Count, mean, variance, minimum and maximum of all that was added, in one pass.

    columns: None for one stream of numbers (arrays of any shape are added element by element, results are floats); a
    number d for one stream a column (arrays (d,) or (..., d), results are (d,) float64). Blocks are shifted before
    they are squared: data of mean 1e9 and deviation 1 keep nine digits of the variance. The result of an update does
    not depend on threads. Before the first row mean, variance, min and max are NaN; NaN in gives NaN out.

        >>> moments = RunningMoments(columns=2)
        >>> moments.update([[1.0, 10.0], [3.0, 10.0]])
        >>> moments.mean, moments.variance()
        (array([ 2., 10.]), array([1., 0.]))
    """

    def __init__(self, columns: int | None = None) -> None:
        self.columns = columns
        self._core = _core.Moments(1 if columns is None else columns)

    def update(self, values: ArrayLike, *, threads: int = 1) -> None:
        """Add values: float32, float64 or uint8 as they are, everything else as float64.

        threads: 0 means every core. Raises ValueError where the last axis is not `columns` long.
        """
        array = _as_core_takes_it(values)
        if self.columns is not None and (array.ndim == 0 or array.shape[-1] != self.columns):
            raise ValueError(f"values must have {self.columns} columns (their last axis), got shape {array.shape}")
        self._core.update(array, threads)

    def merge(self, other: RunningMoments) -> None:
        """Add all that `other` has seen. Raises ValueError where the columns differ."""
        if self.columns != other.columns:
            raise ValueError(f"cannot merge moments of columns={other.columns} into those of columns={self.columns}")
        self._core.merge(other._core)

    @property
    def count(self) -> int:
        """Rows (or numbers) seen."""
        return self._core.parts()[0]

    @property
    def mean(self) -> Any:
        """Mean: a float, or (columns,) float64."""
        return self._result(1)

    @property
    def min(self) -> Any:
        """Smallest value: a float, or (columns,) float64."""
        return self._result(3)

    @property
    def max(self) -> Any:
        """Largest value: a float, or (columns,) float64."""
        return self._result(4)

    def variance(self, ddof: int = 0) -> Any:
        """Mean squared deviation, divided by count - `ddof` (NaN where that is not positive)."""
        divisor = self.count - ddof
        return self._result(2) / divisor if divisor > 0 else self._result(2) * np.nan

    def std(self, ddof: int = 0) -> Any:
        """Square root of `variance`."""
        root = np.sqrt(self.variance(ddof))
        return float(root) if self.columns is None else root

    def _result(self, part: int) -> Any:
        parts = self._core.parts()
        values: Floats = parts[part] if parts[0] else np.full_like(parts[part], np.nan)  # type: ignore[assignment]
        return float(values[0]) if self.columns is None else values

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything needed to go on later, as arrays: columns (0 for None), count, mean, m2, min, max."""
        count, mean, m2, low, high = self._core.parts()
        return {
            "columns": np.asarray(self.columns or 0, dtype=np.int64),
            "count": np.asarray(count, dtype=np.int64),
            "mean": mean,
            "m2": m2,
            "min": low,
            "max": high,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> RunningMoments:
        """The accumulator that `state` came from."""
        columns = int(np.asarray(state["columns"]))
        moments = cls(columns or None)
        parts = [np.ascontiguousarray(state[key], dtype=np.float64) for key in ("mean", "m2", "min", "max")]
        if any(part.shape != (columns or 1,) for part in parts):
            raise ValueError(f"a state of {columns or 1} columns has arrays of shapes {[p.shape for p in parts]}")
        moments._core = _core.Moments.from_parts(int(np.asarray(state["count"])), *parts)
        return moments

    def __reduce__(self) -> tuple[Any, ...]:
        return RunningMoments.from_state, (self.state(),)

    def __repr__(self) -> str:
        return f"RunningMoments(columns={self.columns}, count={self.count})"
