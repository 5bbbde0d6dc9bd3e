"""What a training run is told: one dataclass, from which the command line, the config file and `config.json` come.

This room imports no torch: `varalign train --help` is made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from varalign.data.errors import DataError
from varalign.encoders.specs import parse_image_spec, parse_text_spec

SCHEDULE_NAMES = ("variance", "entropy", "spread", "fixed", "random", "replay")
PRETRAINED_IMAGE = "clip:ViT-B-32@openai"
PRETRAINED_TEXT = "bert:bert-base-uncased"
CUSTOM_IMAGE = "resnet18"
CUSTOM_TEXT = "lstm"


class ConfigError(DataError):
    """An option has a value that no run can have; the message names the option and what it takes."""


def _option(default: Any, group: str, text: str, **extra: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": text, **extra})


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is told; each field is an option of `varalign train` with dashes for underscores.

    Raises:
        ConfigError: from `validate`, when a value is out of its range, naming the option.
        SpecError: from `validate`, when an encoder spec names nothing known.
    """

    data: str | None = _option(
        None,
        "data",
        "folder of images and captions (data/flickr8k if it is there, else the built-in sample)",
        metavar="DIR",
    )
    features: str | None = _option(
        None,
        "data",
        "features file of frozen encoders, instead of images (made by `varalign embed --features`)",
        metavar="FILE",
    )
    dataset_size: int | None = _option(
        None, "data", "use N images of the training split, drawn by seed", metavar="N", low=2
    )
    captions_per_image: int | None = _option(None, "data", "use the first N captions of each image", metavar="N", low=1)
    skip_missing: bool = _option(False, "data", "leave out captions that name a missing image instead of stopping")
    max_bad: float = _option(
        0.01, "data", "share of unreadable images above which the run stops", metavar="X", low=0.0, high=1.0
    )
    augment: bool | None = _option(
        None, "data", "random resized crop and flip in training (on where the image encoder is trained)"
    )
    flip: float = _option(
        0.5,
        "data",
        "chance that training mirrors an image; 0 where captions tell left from right",
        metavar="X",
        low=0.0,
        high=1.0,
    )
    decode: Literal["exact", "fast"] = _option(
        "exact", "data", "fast decodes large JPEG files at 1/2, 1/4 or 1/8 size; the pixels differ a little"
    )
    noise: str | None = _option(
        None,
        "data",
        "noise injected on purpose into the training pairs, such as swap-images=0.4,drop-words=0.1",
        metavar="SPEC",
    )

    use_pretrained: bool = _option(
        False, "encoders", f"short for --image-encoder {PRETRAINED_IMAGE} --text-encoder {PRETRAINED_TEXT}"
    )
    image_encoder: str | None = _option(
        None, "encoders", f"image encoder, kind:name@weights ({CUSTOM_IMAGE})", metavar="SPEC"
    )
    text_encoder: str | None = _option(
        None, "encoders", f"text encoder, kind:name@weights ({CUSTOM_TEXT})", metavar="SPEC"
    )
    image_size: int | None = _option(
        None,
        "encoders",
        "side of the square that images are brought to, in pixels (the encoder's own)",
        metavar="N",
        low=16,
        high=1024,
    )
    max_length: int | None = _option(
        None, "encoders", "most tokens of a caption, marks included (the tokenizer's own)", metavar="N", low=3, high=512
    )
    pooling: Literal["mean", "cls", "last"] = _option(
        "mean", "encoders", "how token vectors become one (cls: bert only, last: lstm only)"
    )
    bidirectional: bool = _option(False, "encoders", "run the LSTM in both directions")
    unfreeze: int = _option(0, "encoders", "train the last N blocks of frozen towers too", metavar="N", low=0)
    freeze: Literal["auto", "none", "image", "text", "both"] = _option(
        "auto", "encoders", "which towers stay as they are (auto: the pretrained kinds)"
    )
    embedding_dim: int = _option(256, "encoders", "dimensions of the shared space", metavar="N", low=1, high=4096)
    head: Literal["linear", "mlp"] = _option("mlp", "encoders", "projection head over each tower")
    hidden_dim: int = _option(512, "encoders", "width of the mlp head", metavar="N", low=1)
    dropout: float = _option(0.1, "encoders", "dropout in the heads", metavar="X", low=0.0, high=0.95)

    schedule: Literal["variance", "entropy", "spread", "fixed", "random", "replay"] = _option(
        "variance", "loss", "how the two directions of the loss are weighted at each step"
    )
    schedule_floor: float = _option(0.05, "loss", "least weight of a direction", metavar="X", low=0.0, high=0.5)
    schedule_beta: float = _option(
        0.9, "loss", "decay of the running mean of the schedule's statistic", metavar="X", low=0.0, high=0.9999
    )
    schedule_gamma: float = _option(1.0, "loss", "power of the statistic in the weights", metavar="X", low=0.0)
    fixed_weight: float = _option(
        0.5, "loss", "weight of image-to-text under --schedule fixed", metavar="X", low=0.0, high=1.0
    )
    replay_run: str | None = _option(
        None, "loss", "run whose weights --schedule replay shuffles in time", metavar="RUN"
    )
    duplicates: Literal["positive", "ignore"] = _option(
        "positive", "loss", "whether further positives of a query stay in its denominator"
    )

    epochs: int = _option(30, "training", "passes over the training images", metavar="N", low=1)
    batch_size: int = _option(128, "training", "images a step", metavar="N", low=2)
    lr: float = _option(
        1e-3, "training", "learning rate of heads and of towers trained from scratch", metavar="X", low=0.0
    )
    tower_lr: float = _option(1e-5, "training", "learning rate of unfrozen pretrained towers", metavar="X", low=0.0)
    weight_decay: float = _option(0.01, "training", "AdamW's weight decay", metavar="X", low=0.0)
    warmup: float = _option(
        0.05, "training", "share of the steps over which the learning rate rises", metavar="X", low=0.0, high=1.0
    )
    lr_schedule: Literal["cosine", "step", "constant"] = _option(
        "cosine", "training", "how the learning rate falls after warm-up (step: a tenth at 60 and at 85 per cent)"
    )
    clip_grad: float = _option(1.0, "training", "largest norm of the gradient; 0 leaves it alone", metavar="X", low=0.0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _option(
        "auto", "training", "arithmetic of the towers (auto: bf16 on CUDA that has it, else fp32)"
    )
    patience: int = _option(
        0, "training", "stop after N epochs without a better mean recall on dev; 0 never", metavar="N", low=0
    )
    seed: int = _option(
        0, "training", "seed of splits, order, augmentation and weights", metavar="S", low=0, high=2**63 - 1
    )
    device: str | None = _option(None, "training", "cpu, cuda, cuda:N or mps (the best there is)", metavar="DEVICE")
    threads: int = _option(0, "training", "threads that decode images; 0 takes all cores", metavar="N", low=0)

    out: str | None = _option(None, "output", "run folder (runs/<date>-<time>)", metavar="DIR")
    cache: str | None = _option(None, "output", "folder of cached tower features (~/.cache/varalign)", metavar="DIR")
    checkpoint_every: int = _option(
        0, "output", "write a checkpoint every N steps too; one is written every epoch", metavar="N", low=0
    )
    keep: int = _option(2, "output", "checkpoints kept beside the best", metavar="N", low=1)
    tensorboard: bool = _option(False, "output", "write TensorBoard events into the run folder (extra `tensorboard`)")

    def validate(self) -> TrainConfig:
        """Check every range and every combination; returns self.

        Raises:
            ConfigError: for the first fault found.
        """
        for item in dataclasses.fields(self):
            check_value(item, getattr(self, item.name))
        parse_image_spec(self.image_spec)
        parse_text_spec(self.text_spec)
        if self.data is not None and self.features is not None:
            raise ConfigError(
                "--data and --features exclude each other in training: one is images, the other is features"
            )
        if self.features is not None and (self.image_encoder or self.text_encoder or self.use_pretrained):
            raise ConfigError(
                "--features holds the towers' output already: leave out --image-encoder, --text-encoder and the like"
            )
        live = ("captions_per_image", "skip_missing", "augment", "image_size", "max_length", "pooling", "bidirectional")
        for name in live if self.features is not None else ():
            if getattr(self, name) != FIELDS[name].default:
                raise ConfigError(
                    f"{option_name(name)} needs images and captions: a features file holds what became of them"
                )
        if self.features is not None and self.unfreeze:
            raise ConfigError(
                "--unfreeze needs the towers, which a features file does not have: train from --data instead"
            )
        if (self.schedule == "replay") != (self.replay_run is not None):
            raise ConfigError("--schedule replay and --replay-run RUN go together")
        return self

    @property
    def image_spec(self) -> str:
        """The image encoder's spec, defaults resolved."""
        return self.image_encoder or (PRETRAINED_IMAGE if self.use_pretrained else CUSTOM_IMAGE)

    @property
    def text_spec(self) -> str:
        """The text encoder's spec, defaults resolved."""
        return self.text_encoder or (PRETRAINED_TEXT if self.use_pretrained else CUSTOM_TEXT)

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON takes them."""
        return dataclasses.asdict(self)


FIELDS: dict[str, dataclasses.Field[Any]] = {item.name: item for item in dataclasses.fields(TrainConfig)}
_HINTS = get_type_hints(TrainConfig)


def field_type(name: str) -> type:
    """The plain type of an option: bool, int, float or str."""
    hint = _HINTS[name]
    if get_origin(hint) is Literal:
        return str
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0] if parts else hint


def field_choices(name: str) -> tuple[str, ...] | None:
    """The values that an option with a closed list takes."""
    hint = _HINTS[name]
    return get_args(hint) if get_origin(hint) is Literal else None


def option_name(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def check_value(item: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value of the wrong type or out of range, naming the option.

    Raises:
        ConfigError: naming the option, what came and what it takes.
    """
    option = option_name(item.name)
    if value is None:
        if type(None) not in get_args(_HINTS[item.name]):
            raise ConfigError(f"{option} needs a value")
        return
    choices = field_choices(item.name)
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{option} {value!r} is not known: it takes {', '.join(choices)}{hint}")
    wanted = field_type(item.name)
    fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if not fits or (wanted is not bool and isinstance(value, bool)):
        raise ConfigError(f"{option} takes {_TYPE_NAMES[wanted]}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{option} takes a finite number, not {value!r}")
    low, high = item.metadata.get("low"), item.metadata.get("high")
    if low is not None and value < low:
        raise ConfigError(f"{option} is {value}, but must be at least {low}")
    if high is not None and value > high:
        raise ConfigError(f"{option} is {value}, but must be at most {high}")


_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read_config_file(path: Path) -> dict[str, Any]:
    """The options in a TOML or JSON file; a run's own `config.json` is one.

    Args:
        path: the file; `.json` is read as JSON, everything else as TOML.

    Returns:
        Option names (underscores) to values; only those that the file names.

    Raises:
        ConfigError: the file is missing, is neither form, or names an option that there is not.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read: {error}") from None
    try:
        values = json.loads(text) if path.suffix == ".json" else _toml(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if isinstance(values, dict) and isinstance(values.get("options"), dict):  # a run's config.json
        values = {name: value for name, value in values["options"].items() if name != "out"}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: wanted options by name, found {type(values).__name__}")
    return known_options(values, str(path))


def known_options(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same options with underscores in their names.

    Raises:
        ConfigError: naming `source`, the unknown option and the nearest known one.
    """
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{source}: unknown option {key!r}{hint}")
        options[name] = float(value) if field_type(name) is float and type(value) is int else value
    return options


def resolve(layers: Iterable[Mapping[str, Any]]) -> TrainConfig:
    """One config from layers of options, a later layer over an earlier one, checked."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    return TrainConfig(**merged).validate()


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
