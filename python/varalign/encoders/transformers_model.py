"""Models of transformers: their folder, local or from the hub, their config, and their weights without running code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from varalign.encoders.base import plain
from varalign.encoders.hub import hub_folder
from varalign.encoders.specs import EncoderSpec, Side, SpecError, looks_like_path
from varalign.encoders.weights import WeightsError, check_pickle, first_line

WEIGHT_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
HUB_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors", "[0-9]_*/*.json", "[0-9]_*/model*.safetensors")
PICKLES = ("pytorch_model.bin", "[0-9]_*/pytorch_model.bin")
# Entries of a config that describe its origin, not the model.
VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation")
DUAL = ("clip", "siglip")
"""Models with a tower for images and one for texts."""
PROJECTED = {
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
}
"""The classes of CLIP's towers with their projection, by the type of their config."""
ALONE = {"siglip_vision_model": "SiglipVisionModel", "siglip_text_model": "SiglipTextModel"}
"""The classes of SigLIP's towers, one of which AutoModel does not know."""


def model_folder(
    spec: EncoderSpec, needed: Sequence[Sequence[str]], option: str, inside: str = "", described: str = ""
) -> Path:
    """The folder that a spec names, or the hub cache's folder for a hub name.

    Args:
        spec: its name is a folder or a hub name.
        needed: groups of file names, of each of which the folder has one.
        option: the option that names the encoder, for the message.
        inside: a folder of these files in the named one (`0_Transformer`), taken where it is there.
        described: as `hub_folder` takes it.

    Raises:
        SpecError: no such folder, or it lacks a file.
        WeightsUnavailable: a hub name that is neither in the cache nor to be downloaded now.
    """
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        check_folder(folder / inside if (folder / inside).is_dir() else folder, needed, spec)
        return folder.resolve()
    if looks_like_path(spec.name) or spec.name.count("/") > 1:
        raise SpecError(f"'{spec}': no folder '{spec.name}'")
    instead = f"{option} {spec.kind}:FOLDER"
    options = {"instead": instead, "inside": inside, "described": described}
    return hub_folder(spec.name, [HUB_FILES, PICKLES], needed, spec=str(spec), **options)


def check_folder(folder: Path, needed: Sequence[Sequence[str]], spec: EncoderSpec) -> None:
    """SpecError unless the folder has a file of each group."""
    missing = [" or ".join(names) for names in needed if not any((folder / name).is_file() for name in names)]
    if missing:
        raise SpecError(f"'{spec}': folder {folder} lacks {', '.join(missing)}")


def read_config(folder: Path) -> Mapping[str, Any]:
    """The config with its defaults; refused without `model_type`, which transformers may guess from the folder name."""
    from transformers import AutoConfig, PretrainedConfig

    try:
        named = "model_type" in PretrainedConfig.get_config_dict(folder, local_files_only=True)[0]
        config: Mapping[str, Any] = (
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
            if named
            else {}
        )
    except Exception as error:
        raise WeightsError(f"{folder / 'config.json'}: transformers cannot read it: {first_line(error)}") from error
    if not named:
        raise WeightsError(f"{folder / 'config.json'}: has no model_type, so it does not say which model this is")
    return config


def read_model(folder: Path, spec: EncoderSpec, side: Side) -> Any:
    """The tower of a folder in float32, in evaluation mode, every tensor that its features depend on read from it.

    A pooler that the folder has no tensors for is taken off. Of a model with two towers (CLIP, SigLIP) only this side's
    is built.
    """
    from transformers import AutoConfig

    for file in folder.glob("*.bin"):
        check_pickle(file)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        place, part = _tower(config, side)
        # Local files only, so that nothing is downloaded; transformers reads pickles with weights_only.
        options = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
        with _no_report():
            model, report = place.from_pretrained(folder, config=part, **options)
    except Exception as error:  # each file format of transformers raises errors of its own
        raise WeightsError(f"'{spec}': transformers cannot load {folder}: {first_line(error)}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise WeightsError(
            f"'{spec}': the weights in {folder} lack {len(missing)} tensors ({', '.join(missing[:3])}, …)"
        )
    if report["missing_keys"]:
        model.pooler = None
    return model.to(torch.float32).eval()


def random_model(config: Mapping[str, Any], spec: EncoderSpec, side: Side, *, projected: bool = False) -> Any:
    """A tower of a config with random weights, in float32, in evaluation mode; `projected`: with CLIP's projection."""
    try:
        described = config_of(config)
        if projected:
            described.architectures = [PROJECTED[described.model_type]]
        place, part = _tower(described, side)
        return place._from_config(part).to(torch.float32).eval()
    except Exception as error:  # each model of transformers raises errors of its own
        raise WeightsError(f"'{spec}': transformers cannot build a model of its config: {first_line(error)}") from error


def config_of(values: Mapping[str, Any]) -> Any:
    """transformers' config of its values, `model_type` among them."""
    import transformers

    rest = dict(values)
    kind = rest.pop("model_type")
    if kind in ALONE:  # before 5.5 AutoConfig does not know SigLIP's text tower
        return getattr(transformers, ALONE[kind]).config_class(**rest)
    return transformers.AutoConfig.for_model(kind, **rest)


def lasting_config(model: Any, *, whole: bool = True) -> dict[str, Any]:
    """The model's config without facts of one time and place; `whole=False`: what differs from the class's defaults."""
    values = model.config.to_dict() if whole else model.config.to_diff_dict()
    return plain({key: value for key, value in values.items() if key not in VOLATILE})


def has_projection(model: Any) -> bool:
    """Whether the tower is one of CLIP's with its projection."""
    return type(model).__name__ in PROJECTED.values()


def _tower(config: Any, side: Side) -> tuple[Any, Any]:
    """The class of a side's tower and its config: of a model with two towers, of an encoder alone, or the model's own.

    Of a model that writes texts (T5) it is the class of its encoder.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING

    if config.model_type in DUAL:
        part = config.vision_config if side == "image" else config.text_config
        if part.model_type in PROJECTED:
            part.projection_dim = config.projection_dim
        return getattr(transformers, {**PROJECTED, **ALONE}[part.model_type]), part
    projected = PROJECTED.get(config.model_type)
    name = projected if projected in (config.architectures or ()) else ALONE.get(config.model_type)
    if name:
        return getattr(transformers, name), config
    encoder = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    found = MODEL_MAPPING[type(config)]
    if side == "text" and getattr(encoder, "__name__", "").endswith("EncoderModel"):
        return encoder, config
    return found[0] if isinstance(found, tuple) else found, config


def checkpoint_layers(model: Any, spec: str, beside_adapters: bool) -> None:
    """`Encoder.checkpoint_activations` of a model of transformers.

    Raises:
        SpecError: it has none, or its layers are in evaluation mode, in which transformers does without.
    """
    if beside_adapters:
        raise SpecError(
            f"'{spec}': transformers has gradient checkpointing for layers in training mode alone, and those beside "
            "adapters (--lora) are not"
        )
    # Newer versions of transformers warn of the second name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise SpecError(f"'{spec}': {first_line(error)}") from error
    model.disable_input_require_grads()  # frozen embeddings would get a gradient


@contextmanager
def _no_report() -> Iterator[None]:
    """Within it transformers prints no table of the tensors that a tower does not take, and no bar of progress."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
