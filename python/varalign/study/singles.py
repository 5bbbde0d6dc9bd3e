"""Cells that the ordinary trainer trains, one at a time: those on images, and those with options not in `BATCHED`."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from varalign.aligner.evaluate import embed_split
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.features import load_features
from varalign.data.readers.reading import READING, Reading
from varalign.evaluation.retrieval import mean_recall
from varalign.runs.folder import RunFolder
from varalign.runs.metrics import CROSS_VALIDATION
from varalign.study.grid import Cell
from varalign.study.packs import REPORTED, cell_config, rank_results
from varalign.study.spec import Study, StudyError
from varalign.training.run import resume, train


def open_images(study: Study) -> ImageCaptions:
    """The images and captions of a study without a features file.

    Raises:
        StudyError: the splits depend on the seed, so that runs could not be paired.
    """
    first, other = (_load(study, seed) for seed in (0, 1))
    if not np.array_equal(first.split, other.split):
        raise StudyError(
            f"data: {study.source[1]} has no lists that split it, so each seed would be measured on test images of its "
            "own; put Flickr_8k.trainImages.txt, .devImages.txt and .testImages.txt beside the captions"
        )
    return first


def _load(study: Study, seed: int = 0) -> ImageCaptions:
    reading = Reading(**{name: study.options[name] for name in READING if name in study.options})
    skip = bool(study.options.get("skip_missing", False))
    return load_dataset(study.source[1], seed=seed, skip_missing=skip, reading=reading)


def run_cell(cell: Cell, name: str, study: Study, folder: Path, device: str) -> dict[str, Any]:
    """Train one cell in `folder/runs/NAME`, or resume it, and measure it.

    Args:
        cell: the cell. name: its name.
        study: the study.
        folder: of the study.
        device: where it trains.

    Returns:
        The cell's result, as in `run_pack`. The checkpoints are then deleted; metrics and report stay.
    """
    place = folder / "runs" / name
    kind, source = study.source
    whole = load_features(source) if kind == "features" else _load(study)
    config = cell_config(cell, len(whole.rows("train")))
    replay: dict[str, Any] = (
        {"schedule": "replay", "replay_run": str(folder / "runs" / cell.replays)} if cell.replays else {}
    )
    where: dict[str, Any] = {kind: source, "out": str(place), "device": device}
    config = dataclasses.replace(config, **where, **replay, keep=1, threads=1, evaluations=study.evaluations)

    def quiet(_: str) -> None:
        return None

    if (place / "config.json").is_file():
        trained = resume(place, {"device": device}, say=quiet, progress=False)
    else:
        if place.exists():  # the process was killed before it wrote config.json
            shutil.rmtree(place)
        trained = train(config, say=quiet, progress=False, whole_below=0)
    run = RunFolder.open(place)
    lines = run.read_metrics()
    judged = ("dev", CROSS_VALIDATION)
    dev = max(mean_recall(line) for line in lines if line["kind"] == "eval" and line["split"] in judged)
    options = run.options()
    result: dict[str, Any] = {
        "dev": dev,
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "options": {name: options.get(name) for name in REPORTED},
        "finite": True,
    }
    if cell.kind == "run":
        parts = trained.aligner.parts
        found = embed_split(parts, parts.data.rows("test"))
        result |= rank_results(found.images, found.texts, found.owner, found.pairs)
        result["w_i2t"] = [round(line["w_i2t"], 6) for line in lines if line["kind"] == "step"]
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return result
