"""Encoder specs, `kind:name@weights`, read strictly: an unknown one lists the known ones and nothing is guessed.

No torch here: the command line checks specs and catches these errors before anything heavy is imported.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

IMAGE_SPECS = (
    "resnet18",
    "resnet18@imagenet",
    "resnet18@FILE",
    "clip:MODEL@TAG",
    "clip:MODEL@FILE",
    "clip:MODEL@FOLDER",
    "timm:MODEL",
    "timm:MODEL@hub",
    "timm:MODEL@FILE",
)
"""Every form of image encoder spec; capitals stand for a name or a path."""

TEXT_SPECS = ("lstm", "bert:HUB-NAME", "bert:FOLDER", "clip:MODEL@TAG", "clip:MODEL@FILE", "clip:MODEL@FOLDER")
"""Every form of text encoder spec; capitals stand for a name or a path."""


class SpecError(ValueError):
    """A spec that names nothing known, or an option that an encoder has not; the message says what there is."""


class WeightsUnavailable(RuntimeError):
    """Weights that are neither on this machine nor to be had from their hub now.

    The message says what to download, where to put it and which option names it. Commands end with exit code 2.
    """


class WeightsChanged(RuntimeError):
    """The weights a run was trained on are no longer those that its encoder spec leads to."""


@dataclass(frozen=True)
class EncoderSpec:
    """What a spec string says.

    Attributes:
        kind: `resnet18`, `clip`, `timm`, `lstm` or `bert`.
        name: the model's name (`clip`, `timm`), the hub name or folder (`bert`), else empty.
        weights: what stands behind `@`; None where nothing does.
    """

    kind: str
    name: str = ""
    weights: str | None = None

    def __str__(self) -> str:
        text = f"{self.kind}:{self.name}" if self.name else self.kind
        return text if self.weights is None else f"{text}@{self.weights}"

    @property
    def has_source(self) -> bool:
        """Whether the weights come from a file, a folder or a hub, rather than from random numbers."""
        return self.kind in ("clip", "bert") or self.weights is not None

    def with_absolute_path(self) -> EncoderSpec:
        """The spec with the file or folder that it names made absolute, so that it can be read from elsewhere later."""
        if self.kind == "bert":
            folder = Path(self.name).expanduser()
            return replace(self, name=str(folder.resolve())) if folder.exists() else self
        path = Path(self.weights).expanduser() if self.weights is not None else None
        return replace(self, weights=str(path.resolve())) if path is not None and path.exists() else self


def parse_image_spec(text: str) -> EncoderSpec:
    """Read an image encoder spec.

    Raises:
        SpecError: unknown kind or malformed; the message lists `IMAGE_SPECS`.

    >>> parse_image_spec("clip:ViT-B-32@openai")
    EncoderSpec(kind='clip', name='ViT-B-32', weights='openai')
    """
    spec = _split(text, "image", IMAGE_SPECS)
    if spec.kind == "resnet18" and not spec.name:
        return spec
    if spec.kind in ("clip", "timm") and spec.name:
        return _checked_clip(spec, "image") if spec.kind == "clip" else spec
    raise _unknown(text, "image", IMAGE_SPECS)


def parse_text_spec(text: str) -> EncoderSpec:
    """Read a text encoder spec.

    Raises:
        SpecError: unknown kind or malformed; the message lists `TEXT_SPECS`.

    >>> parse_text_spec("bert:bert-base-uncased")
    EncoderSpec(kind='bert', name='bert-base-uncased', weights=None)
    """
    spec = _split(text, "text", TEXT_SPECS)
    if spec.kind == "lstm" and not spec.name and spec.weights is None:
        return spec
    if spec.kind == "bert" and spec.name:
        return spec
    if spec.kind == "clip" and spec.name:
        return _checked_clip(spec, "text")
    raise _unknown(text, "text", TEXT_SPECS)


@functools.cache
def clip_models() -> tuple[str, ...]:
    """The names of open_clip's model configurations, read from its folder without importing it."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return ()
    folder = Path(next(iter(found.submodule_search_locations))) / "model_configs"
    return tuple(sorted(path.stem for path in folder.glob("*.json")))


def looks_like_path(text: str) -> bool:
    """Whether `text` can only mean a file or folder: absolute, `~`, `./`, `../`, a backslash, or a weights suffix."""
    return (
        text.startswith(("/", "./", "../", "~"))
        or text in (".", "..")
        or "\\" in text
        or text.endswith((".pt", ".pth", ".bin", ".safetensors"))
    )


def _split(text: str, side: str, known: tuple[str, ...]) -> EncoderSpec:
    kind, colon, rest = text.strip().partition(":")
    if not colon:
        # Without a colon an `@` belongs to the kind: resnet18@imagenet, resnet18@FILE.
        kind, at, weights = text.strip().partition("@")
        if at and not weights:
            raise _unknown(text, side, known)
        return EncoderSpec(kind, "", weights if at else None)
    if "@" in kind:  # resnet18@C:\weights.pth
        kind, _, drive = kind.partition("@")
        return EncoderSpec(kind, "", f"{drive}:{rest}")
    if kind == "bert":  # a folder's name may hold an `@`
        return EncoderSpec(kind, rest)
    name, at, weights = rest.partition("@")
    if at and not weights:
        raise _unknown(text, side, known)
    return EncoderSpec(kind, name, weights if at else None)


def _checked_clip(spec: EncoderSpec, side: str) -> EncoderSpec:
    if spec.weights is None:
        raise SpecError(
            f"{side} encoder '{spec}' names no weights: add @openai or another of open_clip's tags, "
            "@FILE or @FOLDER (one with open_clip_config.json)"
        )
    names = clip_models()
    folder = Path(spec.weights).expanduser()
    if spec.name in names or not names or (folder / "open_clip_config.json").is_file():
        return spec
    if looks_like_path(spec.weights) and not folder.exists():
        return spec  # that is what has to be said about it, where the weights are wanted; or a saved run does without
    near = difflib.get_close_matches(spec.name, names, n=5, cutoff=0.4)
    hint = f"near it: {', '.join(near)}; " if near else ""
    raise SpecError(
        f"{side} encoder '{spec}': open_clip has no model '{spec.name}'; {hint}"
        f'all {len(names)}: python -c "import open_clip; print(open_clip.list_models())"'
    )


def _unknown(text: str, side: str, known: tuple[str, ...]) -> SpecError:
    return SpecError(f"unknown {side} encoder '{text}'; known: {', '.join(known)}")
