"""PairMoments: running mean and variance of every training pair's positive probability and margin, over the epochs.

Accumulates in float64 (Welford 1962), merges (Chan, Golub and LeVeque 1979), can be pickled, and gives its state as
NumPy arrays for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
QUANTITIES = ("probability", "margin")


class PairMoments:
    """Running mean and variance, over the epochs, of every training pair's positive probability and margin.

    n: number of pairs. A high mean and low variance of the probability mean that the pair is learnt; a low mean and low
    variance that the caption probably does not belong to the image (Swayamdipta et al. 2020, "dataset cartography").
    """

    def __init__(self, n: int) -> None:
        if n < 0:
            raise ValueError(f"the number of pairs must be 0 or more, got {n}")
        self.n = n
        self.count: NDArray[np.int64] = np.zeros(n, np.int64)
        """(n,) int64: how often each pair was seen."""
        # One column per quantity: means (0 for pairs never seen) and sums of squared deviations.
        self._means: Floats = np.zeros((n, 2))
        self._m2s: Floats = np.zeros((n, 2))

    def update(self, indices: ArrayLike, values: ArrayLike) -> None:
        """Add one observation of some pairs.

        indices: (B,) integers from 0 to n - 1; repetitions are allowed. values: (B, 2), positive probability and
        margin. Raises ValueError, without any change, if an index is out of range or the shapes do not fit.
        """
        index = np.asarray(indices)
        value = np.asarray(values, dtype=np.float64)
        if index.size and not np.issubdtype(index.dtype, np.integer):
            raise ValueError(f"indices must be integers, got {index.dtype}")
        if index.ndim != 1 or value.shape != (len(index), 2):
            raise ValueError(f"indices (B,) and values (B, 2) are wanted, got shapes {index.shape} and {value.shape}")
        wrong = index[(index < 0) | (index >= self.n)]
        if len(wrong):
            raise ValueError(f"pair index {wrong[0]} is not within 0 to {self.n} (exclusive)")
        left = np.arange(len(index))
        while len(left):  # each round adds one observation per pair; more than one round only with repetitions
            pairs, first = np.unique(index[left], return_index=True)
            rows, left = left[first], np.delete(left, first)
            self.count[pairs] += 1
            added, means = value[rows], self._means[pairs]
            delta = added - means
            means += delta / self.count[pairs, None]
            self._means[pairs] = means
            self._m2s[pairs] += delta * (added - means)

    def merge(self, other: PairMoments) -> None:
        """Add the observations of `other`. Raises ValueError if the number of pairs differs."""
        if self.n != other.n:
            raise ValueError(f"cannot merge moments of {other.n} pairs into those of {self.n}")
        pairs = np.flatnonzero(other.count)
        a, b = self.count[pairs, None].astype(np.float64), other.count[pairs, None].astype(np.float64)
        delta = other._means[pairs] - self._means[pairs]
        self._means[pairs] += delta * (b / (a + b))
        self._m2s[pairs] += other._m2s[pairs] + delta * delta * (a / (a + b)) * b
        self.count[pairs] += other.count[pairs]

    @property
    def probability_mean(self) -> Floats:
        """(n,) float64: mean positive probability, NaN for a pair never seen."""
        return np.where(self.count > 0, self._means[:, 0], np.nan)

    @property
    def probability_variance(self) -> Floats:
        """(n,) float64: variance (divided by the count) of the positive probability, NaN for a pair never seen."""
        return self._variance(0)

    @property
    def margin_mean(self) -> Floats:
        """(n,) float64: mean margin, NaN for a pair never seen."""
        return np.where(self.count > 0, self._means[:, 1], np.nan)

    @property
    def margin_variance(self) -> Floats:
        """(n,) float64: variance (divided by the count) of the margin, NaN for a pair never seen."""
        return self._variance(1)

    def _variance(self, quantity: int) -> Floats:
        variance = np.full(self.n, np.nan)
        np.divide(self._m2s[:, quantity], self.count, out=variance, where=self.count > 0)
        return variance

    def state(self) -> dict[str, NDArray[Any]]:
        """The whole state as (n,) arrays."""
        state: dict[str, NDArray[Any]] = {"count": self.count.copy()}
        for column, quantity in enumerate(QUANTITIES):
            state[f"{quantity}_mean"] = self._means[:, column].copy()
            state[f"{quantity}_m2"] = self._m2s[:, column].copy()
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> PairMoments:
        """The inverse of `state`; raises ValueError if the arrays do not fit each other."""
        parts = {
            key: np.asarray(state[key]) for quantity in QUANTITIES for key in (f"{quantity}_mean", f"{quantity}_m2")
        }
        count = np.asarray(state["count"])
        if count.ndim != 1 or (count.size and count.min() < 0):
            raise ValueError("a state of PairMoments needs one count, 0 or more, a pair")
        if odd := [part.shape for part in parts.values() if part.shape != count.shape]:
            raise ValueError(f"a state of PairMoments has counts of {len(count)} pairs but moments of shape {odd[0]}")
        pairs = cls(len(count))
        pairs.count[:] = count
        for column, quantity in enumerate(QUANTITIES):
            pairs._means[:, column] = parts[f"{quantity}_mean"]
            pairs._m2s[:, column] = parts[f"{quantity}_m2"]
        return pairs

    def __reduce__(self) -> tuple[Any, ...]:
        return PairMoments.from_state, (self.state(),)

    def __repr__(self) -> str:
        return f"PairMoments(n={self.n}, observations={int(self.count.sum())})"
