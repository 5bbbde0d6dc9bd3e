"""The settings of a study: one small TOML file, or the same from options. Torch-free.

features = "features.safetensors"        # or data = "data/flickr8k"
evaluations = 8                          # evaluations on dev in a run, besides the one at the start
tune_seeds = 3                           # seeds of the tuning runs; reported runs have other seeds
tune_each_noise = false                  # tune every noise level separately; false: all use the first one's options

[options]                                # any option of `varalign train`, for every cell
batch_size = 128
epochs = { 1 = 200, 10 = 60, 100 = 30 }  # any value may depend on the fraction

[axes]                                   # an axis is one of these four or any option of `varalign train`
schedule = ["variance", "entropy"]       # the controls are added (fixed-tuned only where fixed_weight is tuned)
fraction = [1, 10, 100]                  # per cent of the training images
noise = ["none", "swap-images=0.2"]
seed = 10                                # a count, or a list, or by fraction: { 1 = 20, 100 = 5 }

[[tune]]                                 # a grid tuned on dev with fixed weights, starting from the best options so far
start = "random"                         # an axis with one value: the table applies to these conditions only
lr = [3e-4, 1e-3, 3e-3]
epochs = { 1 = [100, 300], 10 = [30, 100], 100 = [15, 30] }
[[tune]]
fixed_weight = [0.3, 0.4, 0.5, 0.6, 0.7]

Two things differ from `varalign train`. After a closed-form start a cell trains one residual (`members = 0`) unless the
study sets `members`, so that schedules are compared on a single model; random starts ignore `members`. And a loss
without two directions, such as `siglip`, is trained under `fixed` and `fixed-tuned` only.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError
from varalign.losses.others import is_directed
from varalign.options.declaration import ConfigError, near
from varalign.options.fields import OPTIONS
from varalign.options.layers import known_options, read_values

TUNED = "fixed-tuned"
FIXED = ("fixed", TUNED)
CONTROLS = (*FIXED, "random", "replay")
AXES = ("start", "schedule", "loss", "pair_weighting", "fraction", "noise", "seed")
FIRST_TUNE_SEED = 1_000_000
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)
DEFAULT_TUNE: tuple[dict[str, Any], ...] = (
    {"lr": [3e-4, 1e-3, 3e-3], "epochs": {1: [50, 150], 10: [20, 60], 100: [15, 30]}},
    {"weight_decay": [0.01, 0.3], "dropout": [0.1, 0.5]},
    {"fixed_weight": list(WEIGHTS)},
)
DEFAULT_IMAGE_TUNE: tuple[dict[str, Any], ...] = ({"fixed_weight": list(WEIGHTS)},)


class StudyError(DataError):
    """A study file that cannot be used; the message names the key."""


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        source: `("features", FILE)` or `("data", DIR)`.
        options: options of `varalign train` for every cell; a value may be a `{fraction: value}` mapping.
        axes: name to values, without `seed`, in the order in which cells are made.
        seeds: a list, or `{fraction: list}`.
        tune: the tuning stages; each maps options to the values to try, and axes to the value that it applies to.
        tune_seeds: number of seeds of each trial.
        tune_each_noise: whether every noise level is tuned separately; False: all use the options of the first one.
        evaluations: number of evaluations on dev in a run, besides the one at the start.
        runs_at_once: maximum number of runs in one batched product.
        baselines: each gives values of some axes; a cell is compared with the cell that has these values and equals it
            in all other axes.
    """

    source: tuple[str, str]
    options: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]
    seeds: Any
    tune: tuple[Mapping[str, Any], ...]
    tune_seeds: int
    tune_each_noise: bool
    evaluations: int
    runs_at_once: int
    baselines: tuple[Mapping[str, Any], ...]

    def seeds_at(self, fraction: float) -> list[int]:
        """The seeds reported at a fraction."""
        found: list[int] = at_fraction(self.seeds, fraction)
        return found

    def loss(self, axes: Mapping[str, Any]) -> str:
        """The loss that a condition is trained with."""
        name: str = axes.get("loss", at_fraction(self.options.get("loss"), axes["fraction"])) or OPTIONS["loss"].default
        return name

    def schedules(self, axes: Mapping[str, Any]) -> tuple[str, ...]:
        """The schedules that a condition is trained under: those of the study that make a difference there.

        Without a tuned `fixed_weight`, `fixed-tuned` would equal `fixed`; a loss without two directions can only be
        trained with fixed weights.
        """
        names: tuple[str, ...] = self.axes["schedule"]
        if not is_directed(self.loss(axes)):
            names = tuple(name for name in names if name in FIXED)
        tunes = any("fixed_weight" in stage and self.tune_grid(stage, axes) for stage in self.tune)
        return names if tunes else tuple(name for name in names if name != TUNED)

    def tune_grid(self, stage: Mapping[str, Any], axes: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every combination of a tuning stage's values in a condition; none if the stage is for other conditions."""
        values: dict[str, list[Any]] = {}
        for name, given in stage.items():
            if not isinstance(given, (list, dict)):
                if axes.get(name) != given:
                    return []
            else:
                values[name] = at_fraction(given, axes["fraction"])
        return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]

    def as_dict(self) -> dict[str, Any]:
        """The study as JSON takes it."""
        return {
            self.source[0]: self.source[1],
            "options": dict(self.options),
            "axes": {name: list(values) for name, values in self.axes.items()},
            "seeds": self.seeds,
            "tune": [dict(stage) for stage in self.tune],
            "tune_seeds": self.tune_seeds,
            "tune_each_noise": self.tune_each_noise,
            "evaluations": self.evaluations,
            "runs_at_once": self.runs_at_once,
            "baselines": [dict(baseline) for baseline in self.baselines],
        }


def at_fraction(value: Any, fraction: float) -> Any:
    """A value; of a `{fraction: value}` mapping, the value of the next fraction at or below, else of the lowest."""
    if not isinstance(value, dict):
        return value
    at = sorted(value)
    return value[max((f for f in at if f <= fraction), default=at[0])]


def read_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study file; the module's docstring shows its form.

    Args:
        path: a TOML file; paths in it are relative to the working directory.
        overrides: keys that replace the file's; tables are merged.

    Raises:
        StudyError: naming the file and the key.
    """
    try:
        values = read_values(path)
    except ConfigError as error:
        raise StudyError(str(error)) from None
    if not isinstance(values, dict):
        raise StudyError(f"{path}: wanted the keys of a study, found {type(values).__name__}")
    for key, value in (overrides or {}).items():
        values[key] = (
            {**values[key], **value} if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        )
    return make_study(values, str(path))


def make_study(values: Mapping[str, Any], place: str = "study") -> Study:
    """A checked study from the content of a study file.

    Raises:
        StudyError: naming `place` and the key.
    """
    known = (
        *("features", "data", "options", "axes", "tune", "tune_seeds", "tune_each_noise"),
        *("evaluations", "runs_at_once", "baseline"),
    )
    for key in values:
        if key not in known:
            raise StudyError(f"{place}: unknown key {key!r}{near(key, known)}; it takes {', '.join(known)}")
    source = _source(values, place)
    axes, seeds = _axes(values.get("axes", {}), place)
    options = _options(values.get("options", {}), f"{place}: options")
    for name in options:
        if name in axes or name in ("seed", "features", "data", "dataset_size", "fixed_weight", "replay_run", "out"):
            raise StudyError(f"{place}: options.{name} is set by the study itself; leave it out")
    tune = values.get("tune", DEFAULT_TUNE if source[0] == "features" else DEFAULT_IMAGE_TUNE)
    if isinstance(tune, dict):
        tune = [tune]
    if not isinstance(tune, Sequence) or isinstance(tune, str) or not all(isinstance(stage, dict) for stage in tune):
        raise StudyError(f"{place}: tune takes tables of options with lists of values ([[tune]])")
    stages = tuple(_tune_stage(stage, axes, f"{place}: tune[{number}]") for number, stage in enumerate(tune))
    if not any("fixed_weight" in stage for stage in stages):
        if TUNED in (values.get("axes", {}).get("schedule") or ()):
            raise StudyError(
                f"{place}: axes.schedule: {TUNED!r} needs a [[tune]] table with fixed_weight, or leave it out"
            )
        axes["schedule"] = tuple(name for name in axes["schedule"] if name != TUNED)
    each = values.get("tune_each_noise", False)
    if not isinstance(each, bool):
        raise StudyError(f"{place}: tune_each_noise takes true or false, got {each!r}")
    baselines = _baselines(values.get("baseline"), axes, place)
    return Study(
        source=source,
        options=options,
        axes=axes,
        seeds=seeds,
        tune=stages,
        tune_seeds=_count(values, "tune_seeds", 2, place),
        tune_each_noise=each,
        evaluations=_count(values, "evaluations", 8, place),
        runs_at_once=_count(values, "runs_at_once", 8, place),
        baselines=baselines,
    )


def _source(values: Mapping[str, Any], place: str) -> tuple[str, str]:
    given = [name for name in ("features", "data") if name in values]
    if len(given) != 1:
        raise StudyError(
            f"{place}: wanted one of features (a FILE) and data (a DIR), got {' and '.join(given) or 'none'}"
        )
    if not isinstance(values[given[0]], str):
        raise StudyError(f"{place}: {given[0]} takes a path, not {values[given[0]]!r}")
    return given[0], values[given[0]]


def _axes(given: Any, place: str) -> tuple[dict[str, tuple[Any, ...]], Any]:
    if not isinstance(given, dict):
        raise StudyError(f"{place}: axes takes a table of lists ([axes])")
    axes: dict[str, tuple[Any, ...]] = {}
    for key, values in given.items():
        name = str(key).replace("-", "_")
        if name == "seed":
            continue
        if name != "fraction" and (name not in OPTIONS or name in ("features", "data", "dataset_size", "out")):
            raise StudyError(f"{place}: axes.{key} is no axis{near(name, (*AXES, *OPTIONS))}; known: {', '.join(AXES)}")
        if name == "same_caption":
            raise StudyError(f"{place}: axes.{key} is no axis (runs are compared on equal texts): put it in options")
        values = values if isinstance(values, list) else [values]
        if not values or len({repr(value) for value in values}) < len(values):
            raise StudyError(f"{place}: axes.{key} takes at least one value and none twice, got {values}")
        for value in values:
            _check_axis(name, value, f"{place}: axes.{key}")
        axes[name] = tuple(float(v) if type(v) is int and name == "fraction" else v for v in values)
    axes["schedule"] = tuple(dict.fromkeys((*axes.get("schedule", ()), "variance", *CONTROLS)))
    axes.setdefault("fraction", (100.0,))
    axes.setdefault("noise", ("none",))
    order = {name: place_in for place_in, name in enumerate(("fraction", "noise", "start"))}
    axes = dict(sorted(axes.items(), key=lambda item: order.get(item[0], 9 if item[0] == "schedule" else 5)))
    return axes, _seeds(given.get("seed", 5), f"{place}: axes.seed")


def _check_axis(name: str, value: Any, place: str) -> None:
    if name == "fraction":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 100:
            raise StudyError(f"{place}: wanted per cent of the training images, above 0 and at most 100, got {value!r}")
        return
    if name == "schedule" and value in CONTROLS:
        return
    schedules = OPTIONS["schedule"].choices or ()
    if name == "schedule" and value not in schedules:
        raise StudyError(f"{place}: unknown schedule {value!r}{near(value, schedules)}")
    if name == "noise":
        from varalign.data.noise import parse_noise

        try:
            parse_noise(str(value))
        except ValueError as error:
            raise StudyError(f"{place}: {error}") from None
        return
    _check_option(name, value, place)


def _check_option(name: str, value: Any, place: str) -> None:
    try:
        OPTIONS[name].validate(value)
    except ConfigError as error:
        raise StudyError(f"{place}: {error}") from None


def _seeds(given: Any, place: str) -> Any:
    if isinstance(given, dict):
        by_fraction = _by_fraction(given, place)
        # A mapping within a mapping is refused, because it is no list of seeds.
        return {f: _seeds([value] if isinstance(value, dict) else value, place) for f, value in by_fraction}
    if type(given) is int and 0 < given < FIRST_TUNE_SEED:
        return list(range(given))
    whole = isinstance(given, list) and all(type(seed) is int and 0 <= seed < FIRST_TUNE_SEED for seed in given)
    if not whole or not given or len(set(given)) < len(given):
        raise StudyError(
            f"{place}: wanted a count, or a list of different whole numbers below {FIRST_TUNE_SEED:,}, got {given!r}"
        )
    return list(given)


def _options(given: Any, place: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise StudyError(f"{place} takes a table of options of `varalign train`")
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = _known(key, place)
        if isinstance(value, dict):
            options[name] = dict(_by_fraction(value, f"{place}.{key}"))
            for one in options[name].values():
                _check_option(name, one, f"{place}.{key}")
        else:
            _check_option(name, value, f"{place}.{key}")
            options[name] = value
    return options


def _tune_stage(given: Mapping[str, Any], axes: Mapping[str, tuple[Any, ...]], place: str) -> dict[str, Any]:
    stage: dict[str, Any] = {}
    for key, values in given.items():
        if key in axes and key not in ("schedule", "fraction") and not isinstance(values, (list, dict)):
            if values not in axes[key]:
                raise StudyError(f"{place}.{key}: {values!r} is not among axes.{key}: {list(axes[key])}")
            stage[key] = values
            continue
        name = _known(key, place)
        if name in axes:
            raise StudyError(f"{place}.{key}: an axis cannot be tuned; give one value to name the table's conditions")
        by_fraction = dict(_by_fraction(values, f"{place}.{key}")) if isinstance(values, dict) else None
        for one in by_fraction.values() if by_fraction is not None else [values]:
            if not isinstance(one, list) or not one:
                raise StudyError(f"{place}.{key}: wanted a list of values to try, got {one!r}")
            for value in one:
                _check_option(name, value, f"{place}.{key}")
        stage[name] = values if by_fraction is None else by_fraction
    if not any(isinstance(values, (list, dict)) for values in stage.values()):
        raise StudyError(f"{place}: names no option to tune")
    return stage


def _known(key: str, place: str) -> str:
    if key == "evaluations":
        raise StudyError(f"{place}: evaluations is a key of the whole study: put it at the top of the file")
    try:
        return next(iter(known_options({key: None}, place)))
    except ConfigError as error:
        raise StudyError(str(error)) from None


def _by_fraction(given: Mapping[Any, Any], place: str) -> list[tuple[float, Any]]:
    """(fraction, value) for each entry of a `{fraction: value}` table."""
    found = []
    for key, value in given.items():
        try:
            fraction = float(key)
        except (TypeError, ValueError):
            fraction = 0.0
        if not 0 < fraction <= 100:
            raise StudyError(f"{place}: {key!r} is no fraction in per cent")
        found.append((fraction, value))
    if not found:
        raise StudyError(f"{place}: wanted a value for at least one fraction, got none")
    return found


def _baselines(given: Any, axes: Mapping[str, tuple[Any, ...]], place: str) -> tuple[Mapping[str, Any], ...]:
    usual = TUNED if TUNED in axes["schedule"] else "fixed"
    if given is None:
        given = [{"schedule": usual}]
        if len(axes.get("start", ())) > 1 and "random" in axes["start"]:
            given.insert(0, {"start": "random", "schedule": usual})
    given = [given] if isinstance(given, dict) else given
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) and one for one in given):
        raise StudyError(f"{place}: baseline takes tables of an axis and its value, such as schedule = {usual!r}")
    for one in given:
        for key, value in one.items():
            if value not in axes.get(key, ()):
                raise StudyError(
                    f"{place}: baseline.{key} = {value!r} is not among axes.{key}: {list(axes.get(key, ()))}"
                )
    return tuple(given)


def _count(values: Mapping[str, Any], key: str, default: int, place: str) -> int:
    value = values.get(key, default)
    if type(value) is not int or value < 1:
        raise StudyError(f"{place}: {key} takes a whole number of at least 1, got {value!r}")
    return value
