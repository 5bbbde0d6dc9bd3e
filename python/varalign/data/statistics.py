"""Streaming statistics: moments and quantiles of arrays too large to hold, and moments of every training pair.

All accumulate in float64, merge (across threads, processes and machines), pickle, and give their state as a dict of
plain NumPy arrays for a checkpoint. Sources: Chan, Golub and LeVeque 1979 (merging), Welford 1962 (updating), Dunning
and Ertl 2019 (t-digests).
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


class RunningQuantiles:
    """Approximate quantiles of all numbers that were added, in one pass and little memory, by a t-digest.

    size: the most centroids kept, 10 to 1,000,000; the error shrinks with it. With 500 a quantile's rank is right to
    0.001 everywhere and closer towards both ends (measured on uniform, normal, heavy-tailed and discrete data). Least
    and greatest value are exact. Of at most `size` / 2 values, however they came, quantiles are those of
    `numpy.quantile(method="hazen")` up to rounding: the k-th of n values stands at (k - 1/2) / n, lines between. The
    result of an update does not depend on threads; how values are spread over updates and merges shows, within the
    same error. Before the first value quantiles are NaN.

        >>> quantiles = RunningQuantiles()
        >>> quantiles.update([1.0, 2.0, 4.0])
        >>> quantiles.quantile(0.5), quantiles.quantile([0, 1])
        (2.0, array([1., 4.]))
    """

    def __init__(self, size: int = 500) -> None:
        self.size = size
        self._core = _core.Quantiles(size)

    def update(self, values: ArrayLike, *, threads: int = 1) -> None:
        """Add every element of an array: float32, float64 or uint8 as they are, everything else as float64.

        threads: 0 means every core. Raises ValueError, with nothing changed, where an element is NaN or infinite.
        """
        self._core.update(_as_core_takes_it(values), threads)

    def merge(self, other: RunningQuantiles) -> None:
        """Add all that `other` has seen. Raises ValueError where the sizes differ."""
        self._core.merge(other._core)

    def quantile(self, q: ArrayLike) -> Any:
        """The value below which the share `q` (0 to 1) of all values lies: a float, or an array of the shape of `q`."""
        shares = np.asarray(q, dtype=np.float64)
        found = self._core.quantiles(shares.reshape(-1))
        return float(found[0]) if shares.ndim == 0 else found.reshape(shares.shape)

    @property
    def count(self) -> int:
        """Numbers seen."""
        return self._core.count

    @property
    def min(self) -> float:
        """Smallest value, exactly."""
        return float(self._core.parts()[4])

    @property
    def max(self) -> float:
        """Largest value, exactly."""
        return float(self._core.parts()[5])

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything needed to go on later, as arrays: size, means and weights of the centroids, sum, min, max."""
        size, means, weights, total, low, high = self._core.parts()
        return {
            "size": np.asarray(size, dtype=np.int64),
            "means": means,
            "weights": weights,
            "sum": np.asarray(total),
            "min": np.asarray(low),
            "max": np.asarray(high),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> RunningQuantiles:
        """The accumulator that `state` came from."""
        quantiles = cls(int(np.asarray(state["size"])))
        means, weights = (np.ascontiguousarray(state[key], np.float64).reshape(-1) for key in ("means", "weights"))
        total, low, high = (float(np.asarray(state[key])) for key in ("sum", "min", "max"))
        quantiles._core = _core.Quantiles.from_parts(quantiles.size, means, weights, total, low, high)
        return quantiles

    def __reduce__(self) -> tuple[Any, ...]:
        return RunningQuantiles.from_state, (self.state(),)

    def __repr__(self) -> str:
        return f"RunningQuantiles(size={self.size}, count={self.count})"


class PairMoments:
    """Running mean and variance, over the epochs, of every training pair's positive probability and margin.

    n: number of pairs. High mean and low variance of the probability: learnt; low mean and low variance: the caption
    probably does not belong to the image (Swayamdipta et al. 2020, "dataset cartography").
    """

    def __init__(self, n: int) -> None:
        if n < 0:
            raise ValueError(f"the number of pairs must be 0 or more, got {n}")
        self.n = n
        self._core = _core.PairMoments(n)

    def update(self, indices: ArrayLike, values: ArrayLike) -> None:
        """Add one observation of some pairs.

        indices: (B,) integers within 0 to n; one may occur twice. values: (B, 2), positive probability and margin.
        Raises ValueError, with nothing changed, where an index is out of range or the shapes do not fit.
        """
        index_array = np.ascontiguousarray(indices)
        if index_array.size and not np.issubdtype(index_array.dtype, np.integer):
            raise ValueError(f"indices must be integers, got {index_array.dtype}")
        value_array = np.ascontiguousarray(values, dtype=np.float64)
        if index_array.ndim != 1 or value_array.shape != (len(index_array), 2):
            raise ValueError(
                f"indices (B,) and values (B, 2) are wanted, got shapes {index_array.shape} and {value_array.shape}"
            )
        self._core.update(index_array.astype(np.int64), value_array)

    def merge(self, other: PairMoments) -> None:
        """Add all that `other` has seen. Raises ValueError where the number of pairs differs."""
        self._core.merge(other._core)

    @property
    def count(self) -> NDArray[np.int64]:
        """(n,) int64: how often each pair was seen."""
        return self._core.parts()[0].astype(np.int64)

    @property
    def probability_mean(self) -> Floats:
        """(n,) float64: mean positive probability, NaN for a pair never seen."""
        return self._moments(0)[0]

    @property
    def probability_variance(self) -> Floats:
        """(n,) float64: variance (divided by the count) of the positive probability, NaN for a pair never seen."""
        return self._moments(0)[1]

    @property
    def margin_mean(self) -> Floats:
        """(n,) float64: mean margin, NaN for a pair never seen."""
        return self._moments(1)[0]

    @property
    def margin_variance(self) -> Floats:
        """(n,) float64: variance (divided by the count) of the margin, NaN for a pair never seen."""
        return self._moments(1)[1]

    def _moments(self, quantity: int) -> tuple[Floats, Floats]:
        counts, means, m2s = self._core.parts()
        seen = counts > 0
        variance = np.full(self.n, np.nan)
        np.divide(m2s[quantity], counts, out=variance, where=seen)
        return np.where(seen, means[quantity], np.nan), variance

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything needed to go on later, as (n,) arrays."""
        counts, means, m2s = self._core.parts()
        return {
            "count": counts.astype(np.int64),
            "probability_mean": means[0],
            "probability_m2": m2s[0],
            "margin_mean": means[1],
            "margin_m2": m2s[1],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> PairMoments:
        """The accumulator that `state` came from."""
        counts = np.ascontiguousarray(state["count"])
        if counts.ndim != 1 or (counts.size and counts.min() < 0):
            raise ValueError("a state of PairMoments needs one count, 0 or more, a pair")
        means = [np.ascontiguousarray(state[key], np.float64) for key in ("probability_mean", "margin_mean")]
        m2s = [np.ascontiguousarray(state[key], np.float64) for key in ("probability_m2", "margin_m2")]
        pairs = cls(len(counts))
        pairs._core = _core.PairMoments.from_parts(counts.astype(np.uint64), means, m2s)
        return pairs

    def __reduce__(self) -> tuple[Any, ...]:
        return PairMoments.from_state, (self.state(),)

    def __repr__(self) -> str:
        return f"PairMoments(n={self.n}, observations={int(self.count.sum())})"
