"""Checks the options of all cells before the first one runs: no study stops after hours at a bad combination."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch

from varalign.canonical.pair_scores import require_enough
from varalign.data.damage import check_feature_noise
from varalign.data.noise import parse_noise
from varalign.study.grid import FREE, Cell, Condition
from varalign.study.packs import cell_config
from varalign.study.spec import StudyError
from varalign.training.run import check


def check_cells(conditions: Sequence[Condition], train_images: int, device: torch.device) -> None:
    """Refuse a study with a cell that the trainer would refuse.

    Args:
        conditions: of the study, before their first stage.
        train_images: of the whole training split.
        device: where it trains.

    Raises:
        StudyError: for the first such cell; the message names its values of the axes.
    """
    seen = set()
    for condition in conditions:
        for cell in condition.possible():
            key = json.dumps([cell.axes["fraction"], cell.axes["noise"], cell.schedule, dict(cell.options)])
            if key not in seen:
                seen.add(key)
                _check_cell(cell, condition, train_images, device)


def _check_cell(cell: Cell, condition: Condition, train_images: int, device: torch.device) -> None:
    kind, source = condition.study.source
    where: dict[str, Any] = {kind: source}
    try:
        config = dataclasses.replace(cell_config(cell, train_images), **where).validate()
        check(config, device)
        size = config.dataset_size or train_images
        if config.pair_weighting == "closed-form":
            require_enough(size)
        if kind == "features":
            check_feature_noise(parse_noise(config.noise))
    except ValueError as error:
        tuned = {name for stage in condition.study.tune for name in stage if name in cell.options and name not in FREE}
        shown = {name: value for name, value in cell.axes.items() if name != "seed"}
        shown |= {name: cell.options[name] for name in sorted(tuned) if name not in shown}
        values = ", ".join(f"{name}={value}" for name, value in shown.items())
        raise StudyError(
            f"no run can be made of {values}: {error}; a study trains its whole grid, so leave a value out or give it "
            "a study of its own"
        ) from None
