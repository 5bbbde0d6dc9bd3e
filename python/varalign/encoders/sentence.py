"""What a sentence-transformers folder says its vectors are: pooling, the layers behind it, prompt and longest text.

`modules.json` lists the parts: a Transformer (in the folder itself, or in `0_Transformer` of older ones), a Pooling,
and layers that a row of `LAYERS` reads. Whatever is not understood is an error that names it: nothing is passed over.
B batch, L tokens, D width of the states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.files import read_bytes
from varalign.encoders.base import masked_mean
from varalign.encoders.specs import SpecError
from varalign.encoders.weights import WeightsError, load_exactly, read_state_dict

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
# The names under which sentence-transformers has saved a Transformer's settings.
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
# Older files have one flag a pooling; several of them concatenate in this order.
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Settings that change nothing at these values; any other value is refused.
IDLE: dict[str, dict[str, tuple[Any, ...]]] = {
    "Transformer": {
        "transformer_task": ("feature-extraction",),
        "module_output_name": ("token_embeddings",),
        "modality_config": ({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
        **dict.fromkeys(("query_length", "document_length", "query_expansion", "unpad_inputs"), (None, False)),
        **dict.fromkeys(("model_args", "tokenizer_args", "config_args"), ({}, None)),
        **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs", "processing_kwargs"), ({}, None)),
    },
    "Layer": {"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding", None)},
}


@dataclass(frozen=True)
class Sentence:
    """How a folder makes a vector of a text.

    Attributes:
        folder: of the transformer: its config, weights and tokenizer.
        pooling: names of `POOLINGS`, whose results are concatenated; empty where the folder does not say.
        layers: behind the pooling, as JSON values that `SentenceHead` takes.
        places: the folder of each layer.
        prompt: stands before each text.
        pools_prompt: whether the prompt's tokens are pooled too.
        max_length: longest text in tokens; None where the folder does not say.
        lower: letters are lowered before the tokenizer.
    """

    folder: Path
    pooling: tuple[str, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()
    places: tuple[Path, ...] = ()
    prompt: str = ""
    pools_prompt: bool = True
    max_length: int | None = None
    lower: bool = False


def read_sentence(folder: Path) -> Sentence:
    """What a folder says; one without `modules.json` says nothing.

    Raises:
        SpecError: a part or a setting that is not understood, or a file that is damaged; it is named.
    """
    if not (folder / MODULES).is_file():
        return Sentence(folder)
    modules = _read(folder / MODULES, list)
    parts = [(str(part.get("type")), _inside(folder, part)) for part in modules if isinstance(part, dict)]
    kinds = [kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind for kind, _ in parts]
    if kinds[:2] != ["Transformer", "Pooling"] or len(parts) < len(modules):
        raise SpecError(
            f"{folder / MODULES}: its parts are {', '.join(kinds) or 'none'}; varalign reads a Transformer, a Pooling, "
            f"then {', '.join(LAYERS)}"
        )
    transformer, pooling = parts[0][1], parts[1][1]
    unknown = [kind for kind in kinds[2:] if kind not in LAYERS]
    if unknown:
        raise SpecError(f"{folder / MODULES}: varalign has no layer {unknown[0]!r}; it has {', '.join(LAYERS)}")
    places = tuple(place for _, place in parts[2:])
    layers = tuple(LAYERS[kind](place) for kind, place in zip(kinds[2:], places, strict=True))
    file = next((transformer / name for name in TRANSFORMER_SETTINGS if (transformer / name).is_file()), None)
    settings = _known(file, "Transformer", max_seq_length=None, do_lower_case=False) if file else {}
    modes, pools_prompt = _pooling(pooling / "config.json")
    return Sentence(
        transformer,
        modes,
        layers,
        places,
        _prompt(folder / SETTINGS),
        pools_prompt,
        settings.get("max_seq_length"),
        bool(settings.get("do_lower_case")),
    )


class SentenceHead(nn.Module):
    """Pools the states of a text's tokens and applies the layers behind the pooling.

    Args:
        pooling: names of `POOLINGS`; their results are concatenated.
        layers: the folder's, see `Sentence`.
        width: D.
        skip: tokens at the start (start mark and prompt) that are not pooled.

    Attributes:
        feature_dim: width of the result.

    Raises:
        SpecError: the widths of the layers do not follow one another.
    """

    def __init__(self, pooling: Sequence[str], layers: Sequence[Mapping[str, Any]], width: int, skip: int = 0) -> None:
        super().__init__()
        self.pooling, self.skip, self.feature_dim = tuple(pooling), skip, width * len(pooling)
        self.layers = nn.ModuleList()
        for values in layers:
            if values.get("in_features", self.feature_dim) != self.feature_dim:
                raise SpecError(f"a dense layer takes {values['in_features']} values, but gets {self.feature_dim}")
            self.layers.append(_MAKERS[values["kind"]](values))
            self.feature_dim = values.get("out_features", self.feature_dim)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, feature_dim) of states (B, L, D) and mask (B, L), True on tokens, which come before the padding."""
        if self.skip:
            kept = mask.clone()
            kept[:, : self.skip] = False
            mask = torch.where(kept.any(dim=1, keepdim=True), kept, mask)
        vectors = torch.cat([POOLINGS[name](states, mask) for name in self.pooling], dim=-1)
        for layer in self.layers:
            vectors = layer(vectors)
        return vectors

    def load(self, places: Sequence[Path], spec: str) -> None:
        """Read the layers' weights, each from its folder."""
        for layer, place in zip(self.layers, places, strict=True):
            if not layer.state_dict():
                continue
            file = next((place / name for name in WEIGHT_NAMES if (place / name).is_file()), None)
            if file is None:
                raise WeightsError(f"'{spec}': folder {place} has no {' or '.join(WEIGHT_NAMES)}")
            load_exactly(layer, read_state_dict(file), file, spec)


class Dense(nn.Module):
    """sentence-transformers' Dense: activation(W x + b), with a way past it where `use_residual` is set."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        wide, narrow = values["in_features"], values["out_features"]
        self.linear = nn.Linear(wide, narrow, bias=values["bias"])
        self.activation = getattr(nn, values["activation"])()
        self.past = bool(values["use_residual"])
        if self.past and wide != narrow:
            self.residual = nn.Linear(wide, narrow, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, out_features) of (B, in_features)."""
        found: Tensor = self.activation(self.linear(vectors))
        if self.past:
            found = found + (self.residual(vectors) if hasattr(self, "residual") else vectors)
        return found


class Normalize(nn.Module):
    """Vectors of unit length."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) of (B, D)."""
        return nn.functional.normalize(vectors, dim=-1)


_MAKERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "dense": Dense,
    "normalize": lambda values: Normalize(),
    "dropout": lambda values: nn.Dropout(values["rate"]),
}


def _read_dense(place: Path) -> dict[str, Any]:
    file = place / "config.json"
    known: dict[str, Any] = {"in_features": None, "out_features": None, "bias": True, "use_residual": False}
    values = _known(file, "Layer", **known, activation_function="torch.nn.modules.activation.Tanh")
    path = str(values.pop("activation_function"))
    name = path.rpartition(".")[2]
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and path == f"{kind.__module__}.{name}"):
        raise SpecError(f"{file}: varalign has no activation function {path!r}; it has those of torch.nn")
    sizes = [values[key] for key in ("in_features", "out_features")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise SpecError(f"{file}: in_features and out_features are numbers from 1 on, not {sizes}")
    return {"kind": "dense", **values, "activation": name}


def _read_normalize(place: Path) -> dict[str, Any]:
    if (place / "config.json").is_file():
        _known(place / "config.json", "Layer")
    return {"kind": "normalize"}


def _read_dropout(place: Path) -> dict[str, Any]:
    return {"kind": "dropout", "rate": float(_known(place / "config.json", "Layer", dropout=0.2)["dropout"])}


LAYERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "Dense": _read_dense,
    "Normalize": _read_normalize,
    "Dropout": _read_dropout,
}


def _cls(states: Tensor, mask: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), mask.int().argmax(dim=1)]


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)


def _mean_sqrt(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Weights 1, 2, 3, … by position, so that later tokens count more."""
    weights = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), last]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": masked_mean,
    "cls": _cls,
    "max": _max,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""Of states (B, L, D) and mask (B, L) to (B, D), by sentence-transformers' names."""


def _pooling(file: Path) -> tuple[tuple[str, ...], bool]:
    """The poolings, and whether the prompt is pooled too."""
    names = dict.fromkeys(("embedding_dimension", "word_embedding_dimension", "pooling_mode", *FLAGS))
    values = _known(file, "Pooling", **names, include_prompt=True)
    modes = values["pooling_mode"] or [name for flag, name in FLAGS.items() if values[flag]] or "mean"
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown:
        raise SpecError(f"{file}: varalign has no pooling {unknown[0]!r}; it has {', '.join(POOLINGS)}")
    return modes, bool(values["include_prompt"])


def _prompt(file: Path) -> str:
    """The prompt that stands before a text unless another one is asked for."""
    values = _read(file, dict) if file.is_file() else {}
    if values.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise SpecError(f"{file}: it describes a {values['model_type']}, not a SentenceTransformer")
    name, prompts = values.get("default_prompt_name"), values.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name, ""), str):
        raise SpecError(f"{file}: prompts are names with texts")
    if name not in prompts and name not in ("query", "document"):
        raise SpecError(f"{file}: default_prompt_name is {name!r}, which is none of its prompts: {', '.join(prompts)}")
    return str(prompts.get(name, ""))


def _known(file: Path, part: str, **known: Any) -> dict[str, Any]:
    """The settings of a file under the names of `known`, which holds their defaults.

    Raises:
        SpecError: a setting beside them, unless it has a value that changes nothing.
    """
    found = _read(file, dict)
    idle = IDLE.get(part, {})
    for key, value in found.items():
        if key not in known and value not in idle.get(key, ()):
            raise SpecError(f"{file}: varalign does not understand {key} {json.dumps(value)[:80]}")
    return {key: found.get(key, default) for key, default in known.items()}


def _read(file: Path, kind: type) -> Any:
    try:
        value = json.loads(read_bytes(file))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise SpecError(f"{file}: holds a {type(value).__name__}, not a {kind.__name__}")
    return value


def _inside(folder: Path, part: Mapping[str, Any]) -> Path:
    """The folder of a part, which lies in the model's."""
    place = (folder / str(part.get("path", ""))).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise SpecError(f"{folder / MODULES}: the path {part.get('path')!r} leads out of the folder")
    return place
