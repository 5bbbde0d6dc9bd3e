"""The files of a diagnosis: the table of the pairs, and the page of the worst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.aligner.diagnosis.gather import Subject
from varalign.aligner.diagnosis.judge import Judgement
from varalign.canonical.best import best_captions
from varalign.canonical.mixture import bin_centres
from varalign.data.files import write_atomically
from varalign.evaluation.cartography import KINDS
from varalign.pictures.diagnosis_page import Suspect, draw_cartography, write_diagnosis_page
from varalign.pictures.score_plot import draw_scores
from varalign.runs.csv_table import csv_table

COLUMNS = (
    "image",
    "caption_row",
    "caption",
    "score",
    "image_score",
    "probability_right",
    "epochs_mean",
    "epochs_variance",
    "epochs_kind",
    "injected",
    "exclude",
)


def write_table(file: Path, subject: Subject, judgement: Judgement, order: NDArray[np.int64]) -> None:
    """Write the pairs of these caption rows as CSV, in this order; a cell is empty where nothing is known.

    `exclude` is empty: a person marks wrong pairs there for `train --exclude`.
    """
    owner, moments, scores, kinds = subject.data.caption_owner, subject.moments, judgement.scores, judgement.kinds
    captions = subject.data.caption_texts if subject.shown is None else subject.shown.captions
    columns: list[list[Any]] = [[""] * len(order) for _ in range(7)]
    if scores is not None:
        parts = scores.scores[order], scores.image_scores[owner[order]], scores.probability_right[order]
        columns[:3] = [[f"{value:.4f}" for value in part.tolist()] for part in parts]
    elif kinds is not None:
        columns[2] = [f"{1 - value:.4f}" for value in kinds.probability_wrong[order].tolist()]
    if moments is not None:
        seen = np.isfinite(moments.probability_mean[order])
        for column, form, values in (
            (3, ".5f", moments.probability_mean),
            (4, ".6f", moments.probability_variance),
        ):
            columns[column] = [f"{v:{form}}" if s else "" for v, s in zip(values[order].tolist(), seen, strict=True)]
    if kinds is not None:
        columns[5] = [KINDS[kind] if kind >= 0 else "" for kind in kinds.kind[order].tolist()]
    if subject.wrong is not None:
        columns[6] = subject.wrong[order].astype(int).tolist()
    rows = (
        (subject.image_name(int(owner[row])), row, "" if captions is None else captions[row], *cells, "")
        for row, *cells in zip(order.tolist(), *columns, strict=True)
    )
    write_atomically(file, csv_table(COLUMNS, rows))


def write_page(
    file: Path, subject: Subject, judgement: Judgement, lines: list[str], order: NDArray[np.int64], *, seed: int
) -> None:
    """Write the page: the sentences, the pictures, and the pairs of these caption rows beside what fits better."""
    write_diagnosis_page(
        file, subject.name, lines, _pictures(subject, judgement), _suspects(subject, judgement, order, seed)
    )


def _pictures(subject: Subject, judgement: Judgement) -> list[tuple[str, bytes | str]]:
    pictures: list[tuple[str, bytes | str]] = []
    if judgement.scores is not None:
        found = judgement.scores
        values = found.image_scores if found.by == "image" else found.scores
        mixture, places = found.mixture, bin_centres().numpy()
        away = (places - mixture.mean) / mixture.deviation
        right = np.exp(-(away**2) / 2) / (mixture.deviation * np.sqrt(2 * np.pi))
        wrong = mixture.wrong_density.numpy()
        svg = draw_scores(values[values.isfinite()].numpy(), found.wrong_share, (places, right), (places, wrong))
        pictures.append((f"scores, one {found.by} each, and the two fitted kinds", svg))
    if judgement.kinds is not None and subject.moments is not None:
        mean, variance = subject.moments.probability_mean, subject.moments.probability_variance
        png = draw_cartography(mean, variance, KINDS, judgement.kinds.kind)
        pictures.append(("pairs by mean and deviation of their probability over the epochs", png))
    return pictures


def _suspects(subject: Subject, judgement: Judgement, order: NDArray[np.int64], seed: int) -> list[Suspect]:
    owner, shown, rank = subject.data.caption_owner, subject.shown, judgement.rank
    if rank is None or not len(order):
        return []
    better, fits = None, None
    if judgement.scores is not None and subject.x is not None and subject.y is not None:
        ids = torch.from_numpy(owner)
        found = best_captions(subject.x, subject.y, ids, judgement.scores, ids[torch.from_numpy(order)], seed=seed)
        better, fits = (part.tolist() for part in found)

    def caption(row: int) -> str:
        return f"caption row {row}" if shown is None else shown.captions[row]

    suspects = []
    for place, row in enumerate(order.tolist()):
        image = int(owner[row])
        suspects.append(
            Suspect(
                image=subject.image_name(image) if shown is None else shown.image_paths[image],
                caption=caption(row),
                score=f"score {rank[row]:.2f}" if better is not None else f"mean probability {rank[row]:.3f}",
                better=None if better is None else caption(better[place]),
                better_score=None if fits is None else f"score {fits[place]:.2f}",
                known_wrong=None if subject.wrong is None else bool(subject.wrong[row]),
            )
        )
    return suspects
