"""The cells of a study, and the packs of cells that are trained together. Torch-free.

A condition is a combination of values of all axes except schedule and seed. It is tuned stage by stage on dev, with
fixed weights; all its cells are trained with the tuned options. Which cells form a pack depends on the study alone, not
on what has already run, and a cell's name is a hash over its pack. A cell's result is therefore the same whenever and
in whatever order it runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from varalign._core import __version__
from varalign.options.fields import OPTIONS
from varalign.study.spec import FIRST_TUNE_SEED, FIXED, TUNED, Study, at_fraction

OPTIMISER_OPTIONS = ("lr", "weight_decay", "map_lr")  # may differ between the runs of one batched product
# Options in no rule about combinations: reading the study has checked their ranges, which is all that bounds them.
FREE = ("lr", "weight_decay", "dropout", "epochs", "batch_size", "fixed_weight")


@dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Attributes:
        kind: "tune" (measured on dev alone) or "run".
        axes: the condition's values and, for runs, schedule and seed as the study names them.
        options: options of `varalign train`, without data, size, noise, schedule and seed.
        schedule: the loss schedule.
        fixed_weight: of `fixed`.
        seed: of the run.
        replays: name of the cell whose weights are replayed; "" for none.
    """

    kind: str
    axes: Mapping[str, Any]
    options: Mapping[str, Any]
    schedule: str
    fixed_weight: float
    seed: int
    replays: str = ""


@dataclass(frozen=True)
class Pack:
    """Cells that are trained together, and their names in the same order."""

    cells: tuple[Cell, ...]
    names: tuple[str, ...]


def make_pack(study: Study, fingerprint: str, cells: list[Cell]) -> Pack:
    """A pack of these cells; each name is a hash of everything that the cell's result depends on."""
    whole = [__version__, fingerprint, study.evaluations, [asdict(cell) for cell in cells]]
    names = (hashlib.sha256(json.dumps([place, *whole]).encode()).hexdigest()[:20] for place in range(len(cells)))
    return Pack(tuple(cells), tuple(names))


@dataclass
class Condition:
    """One condition: yields the packs of its tuning stages, then those of its runs.

    Attributes:
        study: the study.
        fingerprint: of the data.
        axes: the condition's values.
        batches: whether several runs can be trained as one batched product.
        recipe: options tuned so far.
        fixed_weight: the tuned w_i2t of `fixed-tuned`.
        tuned: every trial so far with its dev score.
    """

    study: Study
    fingerprint: str
    axes: dict[str, Any]
    batches: bool
    recipe: dict[str, Any] = field(default_factory=dict)
    fixed_weight: float = 0.5
    tuned: list[dict[str, Any]] = field(default_factory=list)

    def stages(self, results: Callable[[str], Mapping[str, Any]]) -> Iterator[list[Pack]]:
        """Packs stage by stage; the caller takes the next stage when every cell of the last one has its result.

        Args:
            results: from a finished cell's name to its result.
        """
        self.recipe, self.fixed_weight, self.tuned = {}, 0.5, []
        fraction = self.axes["fraction"]
        for stage in self.study.tune:
            trials = self.study.tune_grid(stage, self.axes)
            if not trials:
                continue
            if len(trials) > 1:
                cells = [
                    self._cell("tune", "fixed", FIRST_TUNE_SEED + place, trial)
                    for trial in trials
                    for place in range(self.study.tune_seeds)
                ]
                packs = self._packs(cells)
                yield packs
                scores = self._scores(trials, packs, results)
                best = max(range(len(trials)), key=scores.__getitem__)  # of equal ones the first
                self.tuned += [{**trial, "dev": score} for trial, score in zip(trials, scores, strict=True)]
            else:
                best = 0
            chosen = dict(trials[best])
            self.fixed_weight = chosen.pop("fixed_weight", self.fixed_weight)
            self.recipe |= chosen
        seeds = self.study.seeds_at(fraction)
        schedules = self.study.schedules(self.axes)
        trained = [name for name in schedules if name != "replay"]
        runs: dict[int, Pack] = {}
        packs = []
        for seed in seeds:
            found = self._packs([self._run(name, seed) for name in trained])
            packs += found
            if "replay" in schedules:
                runs[seed] = next(pack for pack in found if any(cell.schedule == "variance" for cell in pack.cells))
        yield packs
        if not runs:
            return
        cells = []
        for seed in seeds:
            names = [
                n for n, cell in zip(runs[seed].names, runs[seed].cells, strict=True) if cell.schedule == "variance"
            ]
            cells.append(self._run("replay", seed, replays=names[0]))
        yield self._packs(cells)

    def possible(self) -> Iterator[Cell]:
        """One cell for each combination of options that tuning may lead to; call it before `stages`.

        Trials that differ only in options of `FREE` count as one combination.
        """
        grids = [self.study.tune_grid(stage, self.axes) for stage in self.study.tune]
        grids = [grid for grid in grids if grid]
        kinds = [list({_bound(trial): trial for trial in grid}.values()) for grid in grids]
        for stage, grid in enumerate(grids):
            if len(grid) > 1:
                for trials in itertools.product(*kinds[: stage + 1]):
                    yield self._cell("tune", "fixed", FIRST_TUNE_SEED, _merged(trials))
        seed = self.study.seeds_at(self.axes["fraction"])[0]
        for trials in itertools.product(*kinds):
            for schedule in self.study.schedules(self.axes):
                yield self._cell("run", schedule, seed, _merged(trials))

    def _run(self, schedule: str, seed: int, replays: str = "") -> Cell:
        return self._cell("run", schedule, seed, {}, replays)

    def _cell(self, kind: str, schedule: str, seed: int, trial: Mapping[str, Any], replays: str = "") -> Cell:
        fraction = self.axes["fraction"]
        options = {name: at_fraction(value, fraction) for name, value in self.study.options.items()}
        random = self.axes.get("start", options.get("start")) == "random"
        if random:  # members need a closed form
            options.pop("members", None)
        options |= {name: value for name, value in self.axes.items() if name in OPTIONS and name != "noise"}
        options |= {**self.recipe, **trial}
        if not random:  # schedules are compared on a single model unless the study sets `members`
            options.setdefault("members", 0)
        weight = options.pop("fixed_weight", self.fixed_weight if kind == "tune" or schedule == TUNED else 0.5)
        axes = {**self.axes, "schedule": schedule, "seed": seed}
        if kind == "tune" and not self.study.tune_each_noise:  # equal cells have equal names, and are trained once
            axes["noise"] = self.study.axes["noise"][0]
        return Cell(kind, axes, options, "fixed" if schedule in FIXED else schedule, weight, seed, replays)

    def _packs(self, cells: list[Cell]) -> list[Pack]:
        """Packs of at most `runs_at_once` cells whose options differ only where a batched product allows it."""
        groups: dict[str, list[Cell]] = {}
        for place, cell in enumerate(cells):
            shape = {name: value for name, value in cell.options.items() if name not in OPTIMISER_OPTIONS}
            groups.setdefault(json.dumps(shape) if self.batches else str(place), []).append(cell)
        step = self.study.runs_at_once
        return [
            make_pack(self.study, self.fingerprint, group[start : start + step])
            for group in groups.values()
            for start in range(0, len(group), step)
        ]

    def _scores(
        self, trials: list[dict[str, Any]], packs: list[Pack], results: Callable[[str], Mapping[str, Any]]
    ) -> list[float]:
        """Mean dev score of each trial over its seeds."""
        found: dict[str, list[float]] = {}
        for pack in packs:
            for name, cell in zip(pack.names, pack.cells, strict=True):
                found.setdefault(_shape(cell), []).append(results(name)["dev"])
        keys = [_shape(self._cell("tune", "fixed", 0, trial)) for trial in trials]
        return [sum(found[key]) / len(found[key]) for key in keys]


def _shape(cell: Cell) -> str:
    return json.dumps([dict(cell.options), cell.fixed_weight])


def _merged(trials: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for trial in trials for name, value in trial.items()}


def _bound(trial: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in trial.items() if name not in FREE})


def conditions(study: Study, fingerprint: str, batches: Callable[[Mapping[str, Any]], bool]) -> list[Condition]:
    """All conditions of a study, in the order of its axes.

    Args:
        study: the study.
        fingerprint: of the data.
        batches: from a condition's axes to whether its runs can be trained as one batched product.
    """
    names = [name for name in study.axes if name != "schedule"]
    return [
        Condition(study, fingerprint, axes := dict(zip(names, values, strict=True)), batches(axes))
        for values in itertools.product(*(study.axes[name] for name in names))
    ]
