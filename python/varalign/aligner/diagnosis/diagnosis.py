"""`varalign diagnose`: estimates the share of wrong pairs, ranks the pairs, and suggests better captions."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.aligner.diagnosis.gather import Bools, Say, Settings, Subject, gather
from varalign.aligner.diagnosis.judge import Judgement, judge
from varalign.aligner.diagnosis.write import write_page, write_table
from varalign.aligner.run_report import add_diagnosis
from varalign.data.errors import DataError
from varalign.data.outputs import UNFINISHED, check_output_folder, written_together
from varalign.data.ranks import world
from varalign.runs.folder import RunFolder
from varalign.runs.progress import to_stderr

UNKNOWN = 0.5
"""Width of the interval above which the share counts as unknown."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of a diagnosis.

    Attributes:
        wrong_share, low, high: estimated share of wrong pairs and its 95 % interval; None if the judges abstain.
        pairs, images: numbers judged.
        method: "closed-form" (from features, before training) or "moments" (from a run's epochs).
        by: "image" if the captions of an image are wrong together, else "pair".
        csv, page: the files written.
        average_precision: of the ranking against injected noise, keys `pair` and `image`; empty without noise.
        kinds: number of pairs of each kind over the epochs of a run; empty without a run.
        seconds: wall time.
        abstains: why the judges abstain; empty if they do not.
        kinds_abstain: why there are no kinds although there is a run; else empty.
    """

    wrong_share: float | None
    low: float | None
    high: float | None
    pairs: int
    images: int
    method: str
    by: str
    csv: Path
    page: Path
    average_precision: dict[str, float]
    kinds: dict[str, int]
    seconds: float
    abstains: str = ""
    kinds_abstain: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON takes it."""
        values = dict(vars(self)) | {"csv": str(self.csv), "page": str(self.page)}
        precision = values.pop("average_precision")
        return values | {f"average_precision_{name}": value for name, value in precision.items()}

    def lines(self) -> list[str]:
        """The result in sentences."""
        counted = f"{self.pairs:,} pairs of {self.images:,} images"
        if self.wrong_share is None or self.low is None or self.high is None:
            return [f"{counted}: not judged ({self.method}): {self.abstains}"]
        judged = "captions of an image are wrong together" if self.by == "image" else "caption by caption"
        found = [
            f"{counted}: {100 * self.wrong_share:.1f} % wrong "
            f"(95 % interval {100 * self.low:.1f} to {100 * self.high:.1f}; {self.method}, {judged})"
        ]
        if self.high - self.low > UNKNOWN:
            found.append("these features hardly tell right pairs from wrong ones: the share is not known")
        if self.kinds:
            kinds = ", ".join(f"{n:,} {name}" for name, n in self.kinds.items())
            unseen = self.pairs - sum(self.kinds.values())
            found.append(f"over the epochs: {kinds}" + (f", {unseen:,} never seen" if unseen > 0 else ""))
        if self.kinds_abstain:
            found.append(f"over the epochs: not judged: {self.kinds_abstain}")
        if self.average_precision:
            each = ", ".join(f"{value:.3f} by {name}" for name, value in self.average_precision.items())
            found.append(f"average precision against the injected noise: {each}")
        return found


def diagnose(settings: Settings, *, say: Say = to_stderr) -> Diagnosis:
    """Estimate the share of wrong pairs, write all pairs with scores to a table, and the worst ones to a page.

    Raises:
        DataError: settings that contradict each other, or data that cannot be diagnosed.
        WeightsUnavailable: pretrained weights are not on this machine and cannot be downloaded.
    """
    started = time.perf_counter()
    out = settings.out or (Path("diagnosis") if settings.run is None else settings.run / "diagnosis")
    world().by_writer(lambda: check_output_folder(out, ("diagnosis.html", "pairs.csv"), overwrite=settings.overwrite))
    if settings.worst < 0:
        raise DataError(f"--worst is {settings.worst}, but must be at least 0")
    subject = gather(settings, say)
    judgement = judge(subject, settings)
    owner, order = subject.data.caption_owner, _worst_first(judgement)
    diagnosis = Diagnosis(
        wrong_share=judgement.share,
        low=judgement.low,
        high=judgement.high,
        pairs=len(order),
        images=len(np.unique(owner[order])),
        method=judgement.method,
        by=judgement.by,
        csv=out / "pairs.csv",
        page=out / "diagnosis.html",
        average_precision=_precision(subject, judgement, order),
        kinds={} if judgement.kinds is None else judgement.kinds.counts(),
        seconds=0.0,
        abstains=judgement.abstains,
        kinds_abstain=judgement.kinds_abstain,
    )
    if not world().is_writer:
        return diagnosis
    out.mkdir(parents=True, exist_ok=True)
    with written_together(out / UNFINISHED, [diagnosis.page, diagnosis.csv]):
        write_table(diagnosis.csv, subject, judgement, order)
        if judgement.by == "image":  # one pair of each image
            order = order[np.sort(np.unique(owner[order], return_index=True)[1])]
        write_page(diagnosis.page, subject, judgement, diagnosis.lines(), order[: settings.worst], seed=settings.seed)
    if settings.run is not None:
        add_diagnosis(RunFolder(settings.run), diagnosis.lines(), diagnosis.page, _probabilities(judgement))
    return replace(diagnosis, seconds=round(time.perf_counter() - started, 2))


def _probabilities(judgement: Judgement) -> dict[int, float]:
    """The probability that a pair is wrong, by caption row, of the pairs that have one."""
    if judgement.scores is not None:
        wrong = 1 - judgement.scores.probability_right.numpy()
    elif judgement.kinds is not None:
        wrong = judgement.kinds.probability_wrong
    else:
        return {}
    rows = np.flatnonzero(np.isfinite(wrong))
    return dict(zip(rows.tolist(), wrong[rows].tolist(), strict=True))


def _worst_first(judgement: Judgement) -> NDArray[np.int64]:
    """The judged caption rows, most suspicious first if they are ranked."""
    rows = np.flatnonzero(judgement.judged)
    return rows if judgement.rank is None else rows[np.argsort(judgement.rank[rows], kind="stable")]


def _precision(subject: Subject, judgement: Judgement, rows: NDArray[np.int64]) -> dict[str, float]:
    wrong, rank, rows = subject.wrong, judgement.rank, np.sort(rows)
    if wrong is None or rank is None or not 0 < wrong[rows].sum() < len(rows):
        return {}
    return average_precisions(wrong[rows], rank[rows], subject.data.caption_owner[rows])


def average_precisions(wrong: Bools, rank: NDArray[np.float64], owner: NDArray[np.int64]) -> dict[str, float]:
    """Average precision of a ranking against the truth, by pair and by image.

    Args:
        wrong: (n,) the truth. rank: (n,) lower is more suspicious. owner: (n,) the image of each.

    Returns:
        `pair`; and `image`, with the mean rank of each image's captions. `image` is left out unless all captions of
        each image are right or all are wrong, with both kinds of images.
    """
    from sklearn.metrics import average_precision_score

    found = {"pair": float(average_precision_score(wrong, -rank))}
    _, place = np.unique(owner, return_inverse=True)
    counts = np.bincount(place)
    bad = np.bincount(place, weights=wrong) / counts
    if set(bad.tolist()) == {0.0, 1.0}:
        means = np.bincount(place, weights=rank) / counts
        found["image"] = float(average_precision_score(bad == 1.0, -means))
    return found
