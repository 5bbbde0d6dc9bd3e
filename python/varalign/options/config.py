"""What a training run is told: one dataclass, from which the command line, the config file and `config.json` come.

This room imports no torch: `varalign train --help` is made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from varalign.data.errors import DataError
from varalign.encoders.specs import parse_image_spec, parse_text_spec

SIDES: tuple[Literal["image", "text"], ...] = ("image", "text")
SCHEDULE_NAMES = ("variance", "entropy", "spread", "fixed", "random", "replay")
PRETRAINED_IMAGE = "clip:ViT-B-32@openai"
PRETRAINED_TEXT = "bert:bert-base-uncased"
CUSTOM_IMAGE = "resnet18"
CUSTOM_TEXT = "lstm"


class ConfigError(DataError):
    """An option has a value that no run can have; the message names the option and what it takes."""


def _option(default: Any, group: str, text: str, **extra: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": text, **extra})


def _recipe(group: str, text: str, **extra: Any) -> Any:
    """An option whose default depends on the start and on how many images there are: None until `recipe.fill`."""
    return field(default=None, metadata={"group": group, "help": text, "recipe": True, **extra})


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is told; each field is an option of `varalign train` with dashes for underscores.

    The options of the recipe (`RECIPE`) are None where nothing was said; `varalign.options.recipe.fill` puts its
    values there as soon as the data are known, so whatever was said wins and everything after it reads plain numbers.

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
    word_dropout: float = _option(
        0.0,
        "data",
        "chance of a word of a caption to be left out in a step, drawn anew each epoch (live text towers)",
        metavar="X",
        low=0.0,
        high=0.95,
    )
    color_jitter: float = _option(
        0.0,
        "data",
        "training changes brightness, contrast and saturation by factors of 1 - X to 1 + X",
        metavar="X",
        low=0.0,
        high=1.0,
    )
    decode: Literal["exact", "fast"] = _option(
        "exact", "data", "fast decodes large JPEG files at 1/2, 1/4 or 1/8 size; the pixels differ a little"
    )
    decoded_cache: Literal["off", "disk", "device"] = _option(
        "off",
        "data",
        "decode the training images once, at 1.5 times the training size, and crop from those ever after: far quicker; "
        "crops of larger images come out a little softer. Alone it means disk; device keeps them in the memory of "
        "--device too and crops there",
        bare="disk",
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
    lora: int = _option(
        0,
        "encoders",
        "rank of low-rank adapters that train beside the linear layers of the frozen towers (LoRA, extra `lora`); 0 "
        "none",
        metavar="R",
        low=0,
        high=512,
    )
    wise_ft: bool = _option(
        False,
        "encoders",
        "after training, go back part of the way to the pretrained weights, as far as is best on dev (WiSE-FT)",
    )
    freeze: Literal["auto", "none", "image", "text", "both"] = _option(
        "auto", "encoders", "which towers stay as they are (auto: the pretrained kinds)"
    )
    embedding_dim: int = _recipe(
        "encoders",
        "dimensions of the shared space; with --members those of the closed form, to which each member adds 64",
        metavar="N",
        low=1,
        high=4096,
    )
    head: Literal["linear", "mlp"] = _recipe(
        "encoders", "projection head over each tower (with the closed-form start linear is its map alone)"
    )
    hidden_dim: int = _recipe("encoders", "width of the mlp head", metavar="N", low=1)
    dropout: float = _recipe("encoders", "dropout in the heads", metavar="X", low=0.0, high=0.95)
    members: int = _recipe(
        "encoders",
        "perceptrons trained from random weights beside the closed form, which stays whole; their similarities are "
        "averaged. 0 trains one residual on top of it instead",
        metavar="K",
        low=0,
        high=64,
    )

    start: Literal["auto", "closed-form", "random"] = _option(
        "auto",
        "start",
        "where the heads start: regularised canonical correlation of the towers' features, or random weights (auto: "
        "closed-form where both towers are frozen)",
    )
    ridge: float | None = _option(
        None, "start", "ridge of the closed form, in mean variances (chosen on dev)", metavar="X", low=0.0
    )
    text_ridge: float | None = _option(
        None,
        "start",
        "ridge on the texts' side (chosen on dev; --ridge where that is given)",
        metavar="X",
        low=0.0,
    )
    power: float | None = _option(
        None, "start", "power of the correlations in the closed form's maps (chosen on dev)", metavar="X", low=0.0
    )
    map_lr: float | None = _recipe(
        "start", "learning rate of the closed form's maps, in parts of --lr; 0 keeps them", metavar="X", low=0.0
    )
    pair_weighting: Literal["none", "closed-form", "moments"] = _option(
        "none",
        "start",
        "weigh training pairs by their probability of being right, from closed-form scores before training or from "
        "the run's own margins over its epochs",
    )
    pair_warmup: float = _option(
        0.2, "start", "share of the epochs before --pair-weighting moments weighs", metavar="X", low=0.0, high=1.0
    )

    loss: Literal[
        "clip",
        "nt-xent",
        "siglip",
        "dcl",
        "hard-negatives",
        "soft-targets",
        "cyclip",
        "sogclr",
        "isogclr",
        "gce",
        "structure",
        "adversarial",
        "adversarial-inputs",
    ] = _option("clip", "loss", "the contrastive loss; all but clip are other people's, to compare with")
    loss_strength: float | None = _option(
        None,
        "loss",
        "the loss's own number, such as gce's exponent or structure's factor (its paper's value)",
        metavar="X",
    )
    attack_steps: int = _option(
        1, "loss", "steps of the adversarial losses' attack: 1 is FGSM, more is PGD", metavar="N", low=1, high=100
    )
    schedule: Literal[
        "variance", "entropy", "spread", "fixed", "random", "replay", "uncertainty", "dwa", "famo", "imtl", "imtl-g"
    ] = _option("variance", "loss", "how the two directions of the loss are weighted at each step")
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

    epochs: int = _recipe("training", "passes over the training images", metavar="N", low=1)
    batch_size: int = _recipe("training", "images a step", metavar="N", low=2)
    lr: float = _recipe("training", "learning rate of heads and of towers trained from scratch", metavar="X", low=0.0)
    tower_lr: float = _option(1e-5, "training", "learning rate of unfrozen pretrained towers", metavar="X", low=0.0)
    weight_decay: float = _recipe("training", "AdamW's weight decay", metavar="X", low=0.0)
    input_noise: float = _recipe(
        "training",
        "deviation of the normal noise added to the heads' inputs, in deviations of each feature",
        metavar="X",
        low=0.0,
        high=10.0,
    )
    feature_mixup: float = _option(
        0.0,
        "training",
        "mix the features of each pair of a step with another's, by shares of a beta distribution with this parameter "
        "(FuseMix; 1 is uniform, 0 mixes nothing)",
        metavar="X",
        low=0.0,
        high=100.0,
    )
    captions_per_step: int = _recipe(
        "training", "captions of an image in a step, drawn anew each epoch", metavar="N", low=1, high=100
    )
    captions_as: Literal["mean", "each"] = _recipe(
        "training", "what the captions of a step become: one text by their mean, or a positive of the image each"
    )
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
    max_nonfinite: int = _option(
        10,
        "training",
        "steps in a row that may be skipped, their loss or gradient not being finite, before the run goes back to a "
        "checkpoint with a lower rate, and the second time stops",
        metavar="N",
        low=1,
    )
    evaluations: int = _option(
        0,
        "training",
        "times that dev is looked at in a run besides the start, evenly; 0 looks after every epoch",
        metavar="N",
        low=0,
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
    checkpoint_every: int | str = _option(
        0,
        "output",
        "write a checkpoint every N steps (200) or minutes (10m) too; one is written whenever dev is looked at",
        metavar="N[m]",
    )
    keep: int = _option(2, "output", "checkpoints kept beside the best", metavar="N", low=1)
    tensorboard: bool = _option(False, "output", "write TensorBoard events into the run folder (extra `tensorboard`)")

    def __post_init__(self) -> None:
        # These were plain switches once: files and programs that say true or false go on working.
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if "bare" in item.metadata and isinstance(value, bool):
                object.__setattr__(self, item.name, item.metadata["bare"] if value else item.default)

    def validate(self) -> TrainConfig:
        """Check every range and every combination; returns self.

        Raises:
            ConfigError: for the first fault found.
        """
        for item in dataclasses.fields(self):
            check_value(item, getattr(self, item.name))
        checkpoint_interval(self.checkpoint_every)
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
        live = (
            "captions_per_image",
            "skip_missing",
            "augment",
            "color_jitter",
            "decoded_cache",
            "image_size",
            "max_length",
            "pooling",
            "bidirectional",
        )
        for name in live if self.features is not None else ():
            if getattr(self, name) != FIELDS[name].default:
                raise ConfigError(
                    f"{option_name(name)} needs images and captions: a features file holds what became of them"
                )
        if self.color_jitter and not self.sees_crops:
            raise ConfigError(
                f"--color-jitter {self.color_jitter:g} is part of the augmentation, which this run has not: "
                "leave out --no-augment, or pass --augment where the image tower is frozen"
            )
        for name in ("unfreeze", "lora") if self.features is not None else ():
            if getattr(self, name):
                raise ConfigError(
                    f"{option_name(name)} needs the towers, which a features file does not have: train from --data "
                    "instead"
                )
        if self.lora and self.unfreeze:
            raise ConfigError("--lora trains beside frozen blocks and --unfreeze trains blocks: pass one of them")
        if self.start == "closed-form" and not self.frozen_towers:
            specs = parse_image_spec(self.image_spec), parse_text_spec(self.text_spec)
            if not all(spec.has_source for spec in specs):
                raise ConfigError(
                    "--start closed-form correlates the features of two towers, and a tower that trains from random "
                    f"weights has none yet ({specs[0]}, {specs[1]}): name pretrained towers, or leave --start out"
                )
        for name in ("ridge", "text_ridge", "power", "map_lr") if self.resolved_start == "random" else ():
            if getattr(self, name) is not None:
                raise ConfigError(f"{option_name(name)} belongs to --start closed-form, and this run starts at random")
        if self.members and not self.takes_members:
            raise ConfigError(
                f"--members {self.members} stand beside the closed form of frozen towers: they go with --start "
                "closed-form and --head mlp, and not with --map-lr, --lora or --unfreeze"
            )
        live_start = self.resolved_start == "random" and not self.frozen_towers
        if self.pair_weighting == "closed-form" and live_start:
            raise ConfigError(
                "--pair-weighting closed-form scores features of frozen towers: freeze both, or take moments"
            )
        if self.loss == "siglip" and self.schedule != "fixed":
            raise ConfigError(f"--loss siglip has no two directions to weigh by {self.schedule}: pass --schedule fixed")
        if self.loss != "clip" and self.duplicates != "positive":
            raise ConfigError(f"--duplicates {self.duplicates} belongs to --loss clip, not to {self.loss}")
        if self.loss == "clip" and self.loss_strength is not None:
            raise ConfigError("--loss-strength belongs to another --loss than clip, which has no number of its own")
        if not self.loss.startswith("adversarial") and self.attack_steps != 1:
            raise ConfigError("--attack-steps belongs to --loss adversarial and adversarial-inputs")
        if self.input_noise and live_start:
            raise ConfigError(
                "--input-noise needs features whose deviations stay what they are: freeze both towers, or leave it out"
            )
        tuned = [
            spec.has_source and not self.lora and self.trains(side)
            for side, spec in zip(
                SIDES, (parse_image_spec(self.image_spec), parse_text_spec(self.text_spec)), strict=True
            )
        ]
        if self.wise_ft and (self.features is not None or not any(tuned)):
            raise ConfigError(
                "--wise-ft goes back towards pretrained weights, and no pretrained tower trains in this run: "
                "pass --unfreeze N, or leave it out"
            )
        if self.word_dropout and (self.features is not None or not self.trains("text")):
            raise ConfigError("--word-dropout leaves words out for a text tower that trains, and this one is frozen")
        if self.feature_mixup and not self.frozen_towers:
            raise ConfigError("--feature-mixup mixes what frozen towers give: freeze both, or leave it out")
        if self.feature_mixup and self.captions_as == "each" and self.captions_per_step != 1:
            raise ConfigError(
                "--feature-mixup wants one text an image: pass --captions-as mean or --captions-per-step 1"
            )
        if self.feature_mixup and self.loss == "adversarial-inputs":
            raise ConfigError(
                "--loss adversarial-inputs moves the inputs of the images as they are, and --feature-mixup trains on "
                "mixed pairs: pass one of them (--loss adversarial takes mixed features)"
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

    def freezes(self, side: Literal["image", "text"]) -> bool:
        """Whether a side's tower is frozen, but for the blocks that `unfreeze` frees."""
        spec = parse_image_spec(self.image_spec) if side == "image" else parse_text_spec(self.text_spec)
        return self.freeze in (side, "both") or (self.freeze == "auto" and spec.has_source)

    def trains(self, side: Literal["image", "text"]) -> bool:
        """Whether a side's tower changes in training: whole, its last blocks, or adapters beside it."""
        return not self.freezes(side) or self.unfreeze > 0 or self.lora > 0

    @property
    def sees_crops(self) -> bool:
        """Whether training sees random crops of the images."""
        return self.augment if self.augment is not None else self.trains("image")

    @property
    def tunes_towers(self) -> bool:
        """Whether weights of a pretrained tower train, other than adapters beside them."""
        specs = parse_image_spec(self.image_spec), parse_text_spec(self.text_spec)
        return any(
            spec.has_source and (self.unfreeze > 0 or not self.freezes(side))
            for side, spec in zip(SIDES, specs, strict=True)
        )

    @property
    def frozen_towers(self) -> bool:
        """Whether no tower trains: features computed once serve the whole run."""
        return self.features is not None or not any(self.trains(side) for side in SIDES)

    @property
    def scratch_text(self) -> bool:
        """Whether the text encoder trains from random weights."""
        return self.features is None and not parse_text_spec(self.text_spec).has_source

    @property
    def resolved_start(self) -> Literal["closed-form", "random"]:
        """The start, `auto` resolved."""
        if self.start == "auto":
            return "closed-form" if self.frozen_towers else "random"
        return self.start

    @property
    def looks(self) -> frozenset[int]:
        """The epochs, counted from 1, after which dev is looked at, the last among them; the recipe is filled in."""
        times = self.evaluations or self.epochs
        return frozenset(round(self.epochs * look / times) for look in range(1, times + 1)) - {0}

    @property
    def takes_members(self) -> bool:
        """Whether perceptrons can stand beside the closed form: nothing asks for a residual or a map that trains."""
        closed = self.resolved_start == "closed-form" and self.frozen_towers
        return closed and self.head != "linear" and self.map_lr is None

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON takes them."""
        return dataclasses.asdict(self)


FIELDS: dict[str, dataclasses.Field[Any]] = {item.name: item for item in dataclasses.fields(TrainConfig)}
RECIPE = tuple(name for name, item in FIELDS.items() if item.metadata.get("recipe"))
_HINTS = get_type_hints(TrainConfig)


# Options that change nothing in some runs: which, when, and why. The first that fits an option speaks for it.
_IDLE: tuple[tuple[tuple[str, ...], Callable[[TrainConfig], bool], str], ...] = (
    (
        ("flip", "decode", "max_bad"),
        lambda config: config.features is not None,
        "needs images and captions: a features file holds what became of them",
    ),
    (
        ("freeze", "tower_lr"),
        lambda config: config.features is not None,
        "needs the towers, which a features file does not have: train from --data instead",
    ),
    (
        ("tower_lr",),
        lambda config: not config.tunes_towers,
        "is the rate of pretrained towers that train, and none does in this run: pass --unfreeze N, or leave it out",
    ),
    (
        ("flip",),
        lambda config: not config.sees_crops,
        "is part of the augmentation, which this run has not: leave out --no-augment, or pass --augment where the "
        "image tower is frozen",
    ),
    (
        ("fixed_weight",),
        lambda config: config.schedule != "fixed",
        "belongs to --schedule fixed: any other finds the weights itself",
    ),
    (
        ("pair_warmup",),
        lambda config: config.pair_weighting != "moments",
        "belongs to --pair-weighting moments: nothing else waits before it weighs",
    ),
    (
        ("hidden_dim", "dropout"),
        lambda config: config.head == "linear",
        "belongs to --head mlp: linear has nothing inside",
    ),
)


def idle_options(config: TrainConfig) -> dict[str, str]:
    """The options that cannot change this run, each with the reason."""
    return {name: why for names, holds, why in reversed(_IDLE) if holds(config) for name in names}


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


def field_type(name: str) -> type:
    """The plain type of an option: bool, int, float or str; str where there is a choice, as on the command line."""
    hint = _HINTS[name]
    if get_origin(hint) is Literal:
        return str
    parts = [part for part in get_args(hint) if part is not type(None)]
    return str if str in parts else parts[0] if parts else hint


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
        if type(None) not in get_args(_HINTS[item.name]) and not item.metadata.get("recipe"):
            raise ConfigError(f"{option} needs a value")
        return
    choices = field_choices(item.name)
    if "bare" in item.metadata and isinstance(value, bool):
        return
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{option} {value!r} is not known: it takes {', '.join(choices)}{hint}")
    wanted = field_type(item.name)
    either = set(get_args(_HINTS[item.name])) == {int, str}
    fits = isinstance(value, (int, str) if either else wanted) or (wanted is float and isinstance(value, int))
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
    """One config from layers of options, a later layer over an earlier one, checked.

    The last layer is what is asked for now: there an option that cannot change the run is refused. The layers before
    come from files, which may hold it: a run's own holds every option, and a TOML file may serve several runs.

    Raises:
        ConfigError: for the first fault found.
    """
    merged: dict[str, Any] = {}
    said: Mapping[str, Any] = {}
    for layer in layers:
        merged.update(layer)
        said = layer
    config = TrainConfig(**merged).validate()
    for name, why in idle_options(config).items():
        if said.get(name, FIELDS[name].default) != FIELDS[name].default:
            raise ConfigError(f"{option_name(name)} {why}")
    return config


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
