"""Where options come from: configuration files, older runs, the command line; and one config of them all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError
from varalign.data.files import read_bytes
from varalign.data.json_file import without_repeats
from varalign.data.readers.reading import READING
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError, near
from varalign.options.fields import OPTIONS
from varalign.options.rules import idle_options


def read_config_file(path: Path, say: Callable[[str], object] | None = None) -> dict[str, Any]:
    """The options in a TOML or JSON file; a run's own `config.json` is one.

    Args:
        path: the file; `.json` is read as JSON, everything else as TOML.
        say: called with a remark for each value of an older version that was replaced.

    Returns:
        Option names (underscores) to values; only those that the file names.

    Raises:
        ConfigError: the file is missing, is neither form, or names an unknown option.
    """
    values = read_values(path)
    if isinstance(values, dict) and isinstance(values.get("options"), dict):  # a run's config.json
        values = {name: value for name, value in values["options"].items() if name != "out"}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: wanted options by name, found {type(values).__name__}")
    return replace_removed(known_options(values, str(path)), say)


def read_values(path: Path) -> Any:
    """What a user's TOML file holds, or a JSON file if its name ends in `.json`.

    Raises:
        ConfigError: the file cannot be read or is no regular file, is not valid in its form, or a JSON object has a
            key twice.
    """
    form = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = read_bytes(path).decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=without_repeats) if form == "JSON" else _toml(text)
    except DataError as error:
        raise ConfigError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid {form}: {error}") from None


def known_options(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same options with underscores in their names.

    Raises:
        ConfigError: naming `source`, the unknown option and the nearest known one.
    """
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in OPTIONS:
            raise ConfigError(f"{source}: unknown option {key!r}{near(name, OPTIONS)}")
        options[name] = float(value) if OPTIONS[name].type is float and type(value) is int else value
    return options


def replace_removed(options: Mapping[str, Any], say: Callable[[str], object] | None = None) -> dict[str, Any]:
    """The same options, a value that this version no longer has replaced by the one that took its place.

    Args:
        options: known options, from a file that an older version may have written.
        say: called with a remark for each replaced value.
    """
    found = dict(options)
    for name, value in options.items():
        removed = OPTIONS[name].removed
        if isinstance(value, str) and value in removed:
            found[name] = removed[value]
            if say is not None:
                say(f"{OPTIONS[name].flag} {value} was removed; {removed[value]} is used instead")
    return found


def continued(saved: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run with `--continue-from` takes over.

    Args:
        saved: the options of the run whose model it starts from.
        said: what is said for the new run; with data of its own, the other run's way of reading its data is not taken.

    Raises:
        ConfigError: data for a model that was trained on features, or features for one with encoders.
    """
    if said.get("features" if saved.get("features") is None else "data") is not None:
        kinds = "images, and takes no --features" if saved.get("features") is None else "features, and takes no --data"
        raise ConfigError(f"--continue-from {said['continue_from']}: that model was trained on {kinds}")
    left_out = {"out", "continue_from", "wise_ft", "unpaired_images", "unpaired_texts"}
    if "data" in said or "features" in said:
        left_out |= {"data", "features", "dataset_size", "captions_per_image", "exclude", *READING}
    return {name: value for name, value in saved.items() if name not in left_out}


def resolve(layers: Iterable[Mapping[str, Any]]) -> TrainConfig:
    """One config from layers of options, a later layer over an earlier one, checked.

    The last layer is what was said for this run: an option there that has no effect is refused. Earlier layers come
    from files, which may hold such options.

    Raises:
        ConfigError: for the first fault found.
    """
    merged: dict[str, Any] = {}
    said: Mapping[str, Any] = {}
    for layer in layers:
        merged.update(layer)
        said = layer
    config = TrainConfig(**merged).validate()
    for name, reason in idle_options(config).items():
        if said.get(name, OPTIONS[name].default) != OPTIONS[name].default:
            raise ConfigError(f"{OPTIONS[name].flag} {reason}")
    return config


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
