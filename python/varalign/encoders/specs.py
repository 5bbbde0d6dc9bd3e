"""Encoder specs, `kind:name@weights`, and the table of encoder kinds.

A new kind is one file with its class and one row of `KINDS`; `varalign.encoders.build` imports that file when such an
encoder is built. Specs are read strictly: the error for an unknown spec lists the known forms. This file imports no
torch, so that the command line can check specs before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Side = Literal["image", "text"]
SIDES: tuple[Side, Side] = ("image", "text")
CLIP_CONFIG = "open_clip_config.json"
"""The file that open_clip's folders have, and no others."""


class SpecError(ValueError):
    """A spec that names nothing known, or an option that an encoder does not have; the message lists known ones."""


class WeightsUnavailable(RuntimeError):
    """Weights that are not on this machine and cannot be downloaded.

    The message says what to download, where to put it and which option names it. Commands end with exit code 2.
    """


class WeightsChanged(RuntimeError):
    """An encoder spec leads to other weights than those that the run was trained with."""


@dataclass(frozen=True)
class EncoderSpec:
    """A parsed spec.

    Attributes:
        kind: the name of a row of `KINDS`.
        name: the model's name, hub name or folder; empty if the kind takes none.
        weights: the part after `@`; None without one.
    """

    kind: str
    name: str = ""
    weights: str | None = None

    def __str__(self) -> str:
        text = f"{self.kind}:{self.name}" if self.name else self.kind
        return text if self.weights is None else f"{text}@{self.weights}"

    @property
    def has_source(self) -> bool:
        """Whether the weights come from a file, a folder or a hub; otherwise they are random."""
        return self.weights is not None or any(row.pretrained for row in KINDS if row.name == self.kind)

    def with_absolute_path(self) -> EncoderSpec:
        """The spec with an absolute path of its file or folder, so that it works in any working directory."""
        place = self.weights if self.weights is not None else self.name
        path = Path(place).expanduser()
        if not place or not path.exists():
            return self
        absolute = str(path.resolve())
        return replace(self, name=absolute) if self.weights is None else replace(self, weights=absolute)


@dataclass(frozen=True)
class EncoderKind:
    """One kind of encoder.

    Attributes:
        name: the first part of its specs.
        side: "image" or "text".
        place: `module:class`, imported when an encoder of this kind is built.
        forms: every form of its specs; capitals stand for a name or a path. They also define the grammar: a kind takes
            a name if its forms have a colon, and weights if one of them has an `@`.
        pretrained: whether its weights always come from a file, a folder or a hub.
        check: raises SpecError for a name or weights that the kind does not have; None: no check.
        hands_over: gives the spec of another kind that reads what this one's spec leads to, None where this kind does.
    """

    name: str
    side: Side
    place: str
    forms: tuple[str, ...]
    pretrained: bool = False
    check: Callable[[EncoderSpec, Side], None] | None = None
    hands_over: Callable[[EncoderSpec], EncoderSpec | None] | None = None


@functools.cache
def clip_models() -> tuple[str, ...]:
    """The names of open_clip's model configurations, read from its folder without importing it."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return ()
    folder = Path(next(iter(found.submodule_search_locations))) / "model_configs"
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def _check_clip(spec: EncoderSpec, side: Side) -> None:
    if spec.weights is None:
        raise SpecError(
            f"{side} encoder '{spec}' names no weights: add @openai or another of open_clip's tags, "
            "@FILE or @FOLDER (one with open_clip_config.json)"
        )
    names = clip_models()
    folder = Path(spec.weights).expanduser()
    if spec.name in names or not names or any((folder / name).is_file() for name in (CLIP_CONFIG, "config.json")):
        return
    if looks_like_path(spec.weights) and not folder.exists():
        return  # a missing file is reported when the weights are read; a saved run may not need them
    near = difflib.get_close_matches(spec.name, names, n=5, cutoff=0.4)
    hint = f"near it: {', '.join(near)}; " if near else ""
    raise SpecError(
        f"{side} encoder '{spec}': open_clip has no model '{spec.name}'; {hint}"
        f'all {len(names)}: python -c "import open_clip; print(open_clip.list_models())"'
    )


def _clip_of_transformers(spec: EncoderSpec) -> EncoderSpec | None:
    """`hf:` with the folder, where that is transformers' and not open_clip's."""
    folder = Path(spec.weights or "").expanduser()
    is_transformers = (folder / "config.json").is_file() and not (folder / CLIP_CONFIG).is_file()
    return EncoderSpec("hf", str(folder)) if spec.weights and is_transformers else None


_CLIP_FORMS = ("clip:MODEL@TAG", "clip:MODEL@FILE", "clip:MODEL@FOLDER")
KINDS = (
    EncoderKind(
        "resnet18",
        "image",
        "varalign.encoders.resnet:ResNet18",
        ("resnet18", "resnet18@imagenet", "resnet18@FILE"),
    ),
    EncoderKind(
        "clip",
        "image",
        "varalign.encoders.clip:ClipImageEncoder",
        _CLIP_FORMS,
        True,
        _check_clip,
        _clip_of_transformers,
    ),
    EncoderKind(
        "timm",
        "image",
        "varalign.encoders.timm_image:TimmImageEncoder",
        ("timm:MODEL", "timm:MODEL@hub", "timm:MODEL@FILE"),
    ),
    EncoderKind("hf", "image", "varalign.encoders.hf_image:HfImageEncoder", ("hf:HUB-NAME", "hf:FOLDER"), True),
    EncoderKind("lstm", "text", "varalign.encoders.lstm:LSTMEncoder", ("lstm",)),
    EncoderKind("bert", "text", "varalign.encoders.bert:BertEncoder", ("bert:HUB-NAME", "bert:FOLDER"), True),
    EncoderKind("hf", "text", "varalign.encoders.hf_text:HfTextEncoder", ("hf:HUB-NAME", "hf:FOLDER"), True),
    EncoderKind(
        "clip",
        "text",
        "varalign.encoders.clip_text:ClipTextEncoder",
        _CLIP_FORMS,
        True,
        _check_clip,
        _clip_of_transformers,
    ),
)

IMAGE_SPECS = tuple(form for row in KINDS if row.side == "image" for form in row.forms)
"""Every form of image encoder spec; capitals stand for a name or a path."""

TEXT_SPECS = tuple(form for row in KINDS if row.side == "text" for form in row.forms)
"""Every form of text encoder spec; capitals stand for a name or a path."""


def kind_of(spec: EncoderSpec, side: Side) -> EncoderKind:
    """The row of a spec that `parse_spec` gave."""
    return next(row for row in KINDS if (row.name, row.side) == (spec.kind, side))


def parse_spec(text: str, side: Side) -> EncoderSpec:
    """Read the encoder spec of a side.

    Raises:
        SpecError: unknown kind or malformed; the message lists the known forms.

    >>> parse_spec("clip:ViT-B-32@openai", "image")
    EncoderSpec(kind='clip', name='ViT-B-32', weights='openai')
    """
    known = IMAGE_SPECS if side == "image" else TEXT_SPECS
    unknown = SpecError(f"unknown {side} encoder '{text}'; known: {', '.join(known)}")
    kind, colon, rest = text.strip().partition(":")
    if "@" in kind:  # the kind takes no name, and a colon belongs to a path: resnet18@FILE, resnet18@C:\weights.pth
        kind, _, rest = text.strip().partition("@")
        colon, rest = "", f"@{rest}"
    row = next((row for row in KINDS if (row.name, row.side) == (kind, side)), None)
    named = row is not None and ":" in row.forms[0]
    if row is None or named != bool(colon):
        raise unknown
    takes_weights = any("@" in form for form in row.forms)
    # In a kind without weights, an `@` is part of the hub name or folder.
    name, at, weights = rest.partition("@") if takes_weights or not named else (rest, "", "")
    spec = EncoderSpec(kind, name, weights if at else None)
    if named != bool(name) or (at and not (weights and takes_weights)):
        raise unknown
    if row.check is not None:
        row.check(spec, side)
    return spec


def parse_image_spec(text: str) -> EncoderSpec:
    """`parse_spec` of an image encoder."""
    return parse_spec(text, "image")


def parse_text_spec(text: str) -> EncoderSpec:
    """`parse_spec` of a text encoder."""
    return parse_spec(text, "text")


def looks_like_path(text: str) -> bool:
    """Whether `text` can only mean a file or folder: absolute, `~`, `./`, `../`, a backslash, or a weights suffix."""
    return (
        text.startswith(("/", "./", "../", "~"))
        or text in (".", "..")
        or "\\" in text
        or text.endswith((".pt", ".pth", ".bin", ".safetensors"))
    )
