"""Resolves a `clip:` spec to architecture, activation, preprocessing and weights, by tag, file or folder.

Origin of each setting:

- **A tag** (`openai`, `laion2b_s34b_b79k`, …): the architecture is open_clip's model of that name; QuickGELU, size,
  mean, deviation and interpolation come from open_clip's record of the tag.
- **A folder** with `open_clip_config.json`: all settings come from that file.
- **A file**: the architecture is open_clip's model of that name; QuickGELU comes from the name (`ViT-B-32-quickgelu`)
  or from the metadata that `varalign convert` wrote; the preprocessing is the one that all tags of the model share.

A state dict does not record which GELU it was trained with, and OpenAI's weights give poor features with the wrong one.
The spec of OpenAI's weights in a plain file is therefore `clip:ViT-B-32-quickgelu@FILE`. If a model's tags differ and
the file has no metadata, a warning on the logger `varalign` says which activation is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from varalign.data.files import read_bytes
from varalign.data.images import Preprocess, prepare
from varalign.encoders.base import plain
from varalign.encoders.hub import LOGGER, download_url, hub_file
from varalign.encoders.specs import CLIP_CONFIG, EncoderSpec, SpecError
from varalign.encoders.weights import named_file, safetensors_metadata

WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
QUICK_SUFFIX = "-quickgelu"


@dataclass(frozen=True)
class ClipSource:
    """The CLIP model that a spec names.

    Attributes:
        spec: the spec, with its path made absolute if it names one.
        embed_dim: width of the features of both towers.
        quick_gelu: whether the activations are QuickGELU.
        vision_cfg: the image tower's fields that differ from open_clip's defaults.
        text_cfg: the text tower's, likewise.
        preprocess: the preprocessing that the image tower expects.
        checkpoint: the weights file; None if only the architecture is needed.
        folder: the model's folder, if the spec names one.
    """

    spec: str
    embed_dim: int
    quick_gelu: bool
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    preprocess: Preprocess
    checkpoint: Path | None
    folder: Path | None = None


def find_clip(spec: EncoderSpec, *, option: str, load_weights: bool) -> ClipSource:
    """Resolve a `clip:` spec.

    Args:
        spec: kind `clip`, with a name and weights.
        option: the command-line option that names the encoder, for the messages.
        load_weights: False: only the architecture is needed, and a tag's weights are not downloaded.

    Raises:
        SpecError: unknown tag, missing file, or a folder that lacks its config or weights.
        WeightsUnavailable: a tag whose weights are not in the cache and cannot be downloaded.
    """
    import open_clip

    assert spec.weights is not None
    tag = open_clip.get_pretrained_cfg(spec.name, spec.weights)
    if tag:
        return _from_tag(spec, tag, option, load_weights)
    folder = Path(spec.weights).expanduser()
    if folder.is_dir():
        return _from_folder(spec.with_absolute_path(), folder.resolve(), load_weights)
    if folder.is_file():
        return _from_file(spec.with_absolute_path(), named_file(spec.weights, str(spec)))
    tags = open_clip.list_pretrained_tags_by_model(spec.name)
    raise SpecError(
        f"'{spec}': '{spec.weights}' is no file or folder, and none of open_clip's tags for {spec.name}: "
        f"{', '.join(tags) or 'it has none'}"
    )


def _from_tag(spec: EncoderSpec, tag: Mapping[str, Any], option: str, load_weights: bool) -> ClipSource:
    checkpoint = _download(spec, tag, option) if load_weights else None
    model = _named_model(spec)
    quick = bool(tag.get("quick_gelu")) or bool(model.get("quick_gelu"))
    return _source(spec, model, quick, tag, checkpoint)


def _from_folder(spec: EncoderSpec, folder: Path, load_weights: bool) -> ClipSource:
    import open_clip

    config_file = folder / CLIP_CONFIG
    if not config_file.is_file():
        raise SpecError(f"'{spec}': folder {folder} has no {CLIP_CONFIG}, which says what the model is")
    try:
        config = json.loads(read_bytes(config_file))
    except (ValueError, RecursionError) as error:
        raise SpecError(f"'{spec}': {config_file} is not JSON: {error}") from error
    model = config.get("model_cfg", config) if isinstance(config, dict) else None
    parts = ("embed_dim", "vision_cfg", "text_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(part), dict) for part in parts[1:]):
        raise SpecError(f"'{spec}': {config_file} lacks {parts[0]}, {parts[1]} or {parts[2]}")
    named = open_clip.get_model_config(spec.name)
    if named is not None:
        _same_architecture(spec, named, model, config_file)
    checkpoint = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if checkpoint is None and load_weights:
        raise SpecError(f"'{spec}': folder {folder} has no weights: {', '.join(WEIGHT_NAMES)}")
    found = _source(
        spec,
        model,
        bool(model.get("quick_gelu")),
        config["preprocess_cfg"] if isinstance(config.get("preprocess_cfg"), dict) else {},
        checkpoint if load_weights else None,
    )
    return replace(found, folder=folder)


def _from_file(spec: EncoderSpec, path: Path) -> ClipSource:
    import open_clip

    model = _named_model(spec)
    quick = bool(model.get("quick_gelu"))
    recorded = safetensors_metadata(path)
    tags = [open_clip.get_pretrained_cfg(spec.name, tag) for tag in open_clip.list_pretrained_tags_by_model(spec.name)]
    if "quick_gelu" in recorded:
        quick = recorded["quick_gelu"] == "true"
    elif not quick and len({bool(tag.get("quick_gelu")) for tag in tags}) > 1:
        LOGGER.warning(
            "'%s' records no activation and gets GELU, as %s says; OpenAI's weights (and other QuickGELU ones) want "
            "clip:%s%s@%s",
            spec,
            spec.name,
            spec.name,
            QUICK_SUFFIX,
            spec.weights,
        )
    keys = ("mean", "std", "interpolation", "resize_mode")
    known = [{key: tag[key] for key in keys if key in tag} for tag in tags]
    if recorded.get("source") != "openai" and any(other != known[0] for other in known):
        raise SpecError(
            f"'{spec}': the weights of {spec.name} come with different preprocessing, and a file does not say which: "
            f"put it as {WEIGHT_NAMES[0]} into a folder with the {CLIP_CONFIG} that belongs to it, and name the folder"
        )
    return _source(spec, model, quick, {} if recorded.get("source") == "openai" or not known else known[0], path)


def _download(spec: EncoderSpec, tag: Mapping[str, Any], option: str) -> Path:
    name = spec.name if not tag.get("quick_gelu") or spec.name.endswith(QUICK_SUFFIX) else spec.name + QUICK_SUFFIX
    instead = f"{option} clip:{name}@FILE"
    if not tag.get("hf_hub"):
        return download_url(tag["url"], spec=str(spec), instead=instead)
    repo, _, file = tag["hf_hub"].rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return hub_file(repo, names, spec=str(spec), instead=instead)


def _named_model(spec: EncoderSpec) -> dict[str, Any]:
    import open_clip

    model: dict[str, Any] | None = open_clip.get_model_config(spec.name)
    if model is None:
        raise SpecError(f"'{spec}': open_clip has no model '{spec.name}', and only a folder says what it is")
    return model


def _source(
    spec: EncoderSpec, model: Mapping[str, Any], quick: bool, preprocess: Mapping[str, Any], checkpoint: Path | None
) -> ClipSource:
    import open_clip

    if "multimodal_cfg" in model:
        raise SpecError(f"'{spec}' is a CoCa model; varalign builds CLIP's two towers only")
    vision = _changed(open_clip.CLIPVisionCfg, model["vision_cfg"])
    text = _changed(open_clip.CLIPTextCfg, model["text_cfg"])
    size = vision.get("image_size", open_clip.CLIPVisionCfg.image_size)
    return ClipSource(
        spec=str(spec),
        embed_dim=_dimensions(model, spec),
        quick_gelu=quick,
        vision_cfg=vision,
        text_cfg=text,
        preprocess=_preprocess(spec, size, preprocess),
        checkpoint=checkpoint,
    )


def _dimensions(model: Mapping[str, Any], spec: EncoderSpec) -> int:
    found = model.get("embed_dim")
    if not isinstance(found, int) or found < 1:
        raise SpecError(f"'{spec}': the config of its model has embed_dim {found!r}, but it must be a number from 1 on")
    return found


def _preprocess(spec: EncoderSpec, size: Any, values: Mapping[str, Any]) -> Preprocess:
    import open_clip

    modes: dict[str, Literal["crop", "squash"]] = {"shortest": "crop", "squash": "squash"}
    resize = modes.get(str(values.get("resize_mode", "shortest")))
    interpolation = values.get("interpolation", "bicubic")
    if isinstance(size, list | tuple):
        size = size[0] if len(set(map(str, size))) == 1 else None
    if resize is None or size is None or interpolation not in ("bicubic", "bilinear"):
        raise SpecError(f"'{spec}': its images are not square, or resized in a way varalign has not: {dict(values)}")
    try:
        mean = tuple(values.get("mean") or open_clip.OPENAI_DATASET_MEAN)
        std = tuple(values.get("std") or open_clip.OPENAI_DATASET_STD)
        found = Preprocess(size=int(size), mean=mean, std=std, interpolation=interpolation, resize=resize)
        prepare(found)  # checks sizes and numbers
    except (TypeError, ValueError, OverflowError) as error:
        raise SpecError(f"'{spec}': its preprocessing cannot be used: {error}") from error
    return found


def _changed(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an open_clip config that differ from the defaults, so that equal models have equal dicts."""
    default = kind()
    try:
        given = kind(**values)
    except TypeError as error:
        raise SpecError(f"this open_clip does not know a field of the model's config: {error}") from error
    fields = kind.__dataclass_fields__
    changed = plain({name: getattr(given, name) for name in fields if getattr(given, name) != getattr(default, name)})
    # The origin of a vision tower's initial weights, which the checkpoint replaces.
    changed.pop("timm_model_pretrained", None)
    return changed


def _same_architecture(spec: EncoderSpec, named: Mapping[str, Any], found: Mapping[str, Any], file: Path) -> None:
    import open_clip

    for part, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        wanted, there = _changed(kind, named[part]), _changed(kind, found[part])
        for key in sorted((wanted.keys() | there.keys()) - {"hf_tokenizer_name", "hf_model_name"}):
            if wanted.get(key) != there.get(key):
                raise SpecError(
                    f"'{spec}': {file} is another model than {spec.name}: {part} has {key} {there.get(key)} "
                    f"instead of {wanted.get(key)}"
                )
