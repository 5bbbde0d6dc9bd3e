"""Other people's losses, to compare with: each a file, an `Objective` that `ComparisonLoss` trains."""

from varalign.losses.others.base import Batch, Objective
from varalign.losses.others.comparison import LOSSES, UNDIRECTED, ComparisonLoss, build_objective

__all__ = ["LOSSES", "UNDIRECTED", "Batch", "ComparisonLoss", "Objective", "build_objective"]
