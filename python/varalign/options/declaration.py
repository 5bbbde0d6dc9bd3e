"""How an option is declared, and how one value of it is checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from varalign.data.errors import DataError

_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class ConfigError(DataError):
    """An option has a value that no run can have; the message names the option and what it takes."""


@dataclass(frozen=True)
class Option:
    """One option of `varalign train`: `option` declares it; its name and type hint give the last three attributes.

    Attributes:
        group: heading in the help.
        help: what the option does, in one sentence; the command line adds the default.
        default: value where nothing was said; None means that the run finds it out.
        recipe: whether the recipe gives the default, by the start and the number of images (`varalign.options.recipe`).
        common: whether `--help` shows the option; `--help-all` shows every option.
        on_resume: whether `--resume` takes the option too, because it does not change a run's numbers.
        low, high: least and largest value.
        choices: the values of a closed list: of a registry's table, or those of a `Literal` type hint.
        metavar: stands for the value in the help; by default N for whole numbers and X for others.
        bare: value of the option without a value; true and false then stand for it and for the default.
        removed: values of older versions, each with the value that replaces it in configuration files.
        check: raises ConfigError or SpecError for a value that is wrong in another way.
        name: with underscores; `flag` has dashes.
        types: the types that its values may have; int stands for float too.
        optional: whether None is a value.
    """

    group: str
    help: str
    default: Any = None
    _: KW_ONLY
    recipe: bool = False
    common: bool = False
    on_resume: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    metavar: str = ""
    bare: str | None = None
    removed: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Any], object] | None = None
    name: str = ""
    types: tuple[type, ...] = ()
    optional: bool = False

    @property
    def flag(self) -> str:
        """`batch_size` → `--batch-size`."""
        return "--" + self.name.replace("_", "-")

    @property
    def type(self) -> type:
        """The type on the command line: bool, int, float or str."""
        return str if str in self.types else self.types[0]

    def validate(self, value: Any) -> None:
        """Refuse a value of the wrong type or out of range.

        Raises:
            ConfigError: naming the option, what came and what it takes.
            SpecError: an encoder spec that names nothing known.
        """
        if value is None:
            if not self.optional:
                raise ConfigError(f"{self.flag} needs a value")
            return
        if self.bare is not None and isinstance(value, bool):
            return
        if self.choices is not None and value not in self.choices:
            raise ConfigError(
                f"{self.flag} {value!r} is not known: it takes {', '.join(self.choices)}{near(value, self.choices)}"
            )
        fits = isinstance(value, self.types) or (self.type is float and isinstance(value, int))
        if not fits or (self.type is not bool and isinstance(value, bool)):
            raise ConfigError(f"{self.flag} takes {_TYPE_NAMES[self.type]}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.flag} takes a finite number, not {value!r}")
        if self.low is not None and value < self.low:
            raise ConfigError(f"{self.flag} is {value}, but must be at least {self.low}")
        if self.high is not None and value > self.high:
            raise ConfigError(f"{self.flag} is {value}, but must be at most {self.high}")
        if self.check is not None:
            self.check(value)


def option(group: str, help: str, default: Any = None, **declared: Any) -> Any:
    """A dataclass field that is an option of `varalign train`; `Option` describes the arguments."""
    return field(default=default, metadata={"option": Option(group, help, default, **declared)})


def declared(cls: type) -> dict[str, Option]:
    """The options of a dataclass of `option` fields, by name, in their order."""
    hints = get_type_hints(cls)
    return {item.name: _complete(item.metadata["option"], item.name, hints[item.name]) for item in fields(cls)}


def _complete(option: Option, name: str, hint: Any) -> Option:
    """The option with what its name and its type hint say."""
    parts = get_args(hint) or (hint,)
    literal = get_origin(hint) is Literal
    types = (str,) if literal else tuple(part for part in parts if part is not type(None))
    return replace(
        option,
        name=name,
        types=types,
        optional=option.recipe or type(None) in parts,
        choices=parts if literal else option.choices,
        metavar=option.metavar or ("N" if types == (int,) else "X"),
    )


def near(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'variance'?` where a known word is near, else nothing."""
    found = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


REPORTERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""The values of `report_to`; each is the name of the package and of the extra too."""


def reporters(value: str) -> tuple[str, ...]:
    """`report_to` as names: `tensorboard,wandb` are two.

    Raises:
        ConfigError: a name that is none of `REPORTERS`.
    """
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in REPORTERS:
            raise ConfigError(
                f"--report-to {value!r}: {name!r} is not known: it takes {', '.join(REPORTERS)}{near(name, REPORTERS)}"
            )
    return names


def checkpoint_interval(value: int | str) -> tuple[int, float]:
    """`checkpoint_every` as (steps, seconds), one of which is 0: 200 or `200` is in steps, `10m` in minutes.

    Raises:
        ConfigError: anything else.
    """
    text = str(value).strip().lower()
    try:
        steps, minutes = (0, float(text[:-1])) if text.endswith("m") else (int(text), 0.0)
    except ValueError:
        steps = minutes = -1
    if steps < 0 or not 0 <= minutes < math.inf:
        raise ConfigError(f"--checkpoint-every {value!r}: takes a number of steps, such as 200, or of minutes, 10m")
    return steps, 60 * minutes
