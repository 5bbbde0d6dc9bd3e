"""BERT and its relatives as text encoders, through transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.tokenizers import Tokenizer, bert_tokenizer
from varalign.encoders.base import TextEncoder, TextOptions, cut_padding, known_blocks, masked_mean, plain, token_mask
from varalign.encoders.hub import hub_folder
from varalign.encoders.specs import EncoderSpec, SpecError, looks_like_path
from varalign.encoders.weights import WeightsError, check_pickle, first_line

POOLINGS = ("mean", "cls")
MAX_LENGTH = 64
WEIGHT_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
TOKENIZER_NAMES = ("vocab.txt", "tokenizer.json")
HUB_FILES = (
    "config.json",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)
# Entries of a config that describe its origin, not the model.
VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "_attn_implementation")
# Entries that affect the features at equal tensors; the other fields of a config change with transformers' version.
IDENTITY = (
    "model_type",
    "hidden_act",
    "activation",
    "layer_norm_eps",
    "num_attention_heads",
    "position_embedding_type",
)


class BertEncoder(TextEncoder):
    """A BERT-family model without its pooler; the features are the mean of the last layer's states, or the first state.

    Args:
        spec: kind `bert`; its name is a hub name or a folder with config.json, the weights and the vocabulary.
        options: `tokenizer` (by default the folder's own); `pooling`, "mean" over all tokens (special tokens included,
            padding excluded) or "cls", the state of the first token; `max_length`, by default 64, at most the number of
            the model's positions. With `architecture` and `tokenizer` and without `load_weights`, no source is looked
            up.
    """

    def __init__(self, spec: EncoderSpec, options: TextOptions) -> None:
        super().__init__()
        if options.pooling not in POOLINGS:
            raise SpecError(f"'{spec}' pools by {' or '.join(POOLINGS)}, not by '{options.pooling}'")
        tokenizer = options.tokenizer
        if options.architecture is not None and not options.load_weights and tokenizer is not None:
            self.model = _random_model(options.architecture["config"], spec)
        else:
            folder = _find_folder(spec)
            config = _config_of(folder)
            self.model = _read_model(folder, spec) if options.load_weights else _random_model(config, spec)
            if tokenizer is None:
                tokenizer = _read_tokenizer(folder, spec, self.model, options.max_length)
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # trained for BERT's next-sentence task, unused here
        self.model.eval()
        rows, self.feature_dim = _sizes(self.model, spec)
        if tokenizer.vocabulary_size > rows:
            raise SpecError(f"'{spec}': the tokenizer makes {tokenizer.vocabulary_size} tokens, the model knows {rows}")
        self.tokenizer = tokenizer
        self.pooling = options.pooling
        self.spec = str(spec.with_absolute_path())
        self.has_source = True

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of ids (B, L) padded after lengths (B,)."""
        ids = cut_padding(ids, lengths)
        mask = token_mask(ids, lengths)
        states: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states[:, 0] if self.pooling == "cls" else masked_mean(states, mask)

    def blocks(self) -> list[nn.Module]:
        """The transformer's layers."""
        return known_blocks(self.model, ("encoder.layer", "transformer.layer", "layers", "encoder.layers"), self.spec)

    def architecture(self) -> dict[str, Any]:
        """The model's config, pooling and the tokenizer's fingerprint."""
        return plain(
            {
                "kind": "bert",
                "pooling": self.pooling,
                "config": {k: v for k, v in self.model.config.to_dict().items() if k not in VOLATILE},
                "tokenizer": self.tokenizer.fingerprint,
            }
        )

    def identity(self) -> dict[str, Any]:
        """As `Encoder.identity`: the config's entries of `IDENTITY` only."""
        values = self.architecture()
        values["config"] = {key: values["config"][key] for key in IDENTITY if key in values["config"]}
        return values


def _find_folder(spec: EncoderSpec) -> Path:
    """The folder that a spec names, or the folder of a hub name in the hub's cache."""
    folder = Path(spec.name).expanduser()
    if folder.is_dir():
        missing = [
            " or ".join(names)
            for names in (("config.json",), WEIGHT_NAMES, TOKENIZER_NAMES)
            if not any((folder / name).is_file() for name in names)
        ]
        if missing:
            raise SpecError(f"'{spec}': folder {folder} lacks {', '.join(missing)}")
        return folder.resolve()
    if looks_like_path(spec.name) or spec.name.count("/") > 1:
        raise SpecError(f"'{spec}': no folder '{spec.name}'")
    return hub_folder(
        spec.name,
        [HUB_FILES, ["pytorch_model.bin"]],
        [("config.json",), WEIGHT_NAMES, TOKENIZER_NAMES],
        spec=str(spec),
        instead="--text-encoder bert:FOLDER",
    )


def _read_tokenizer(folder: Path, spec: EncoderSpec, model: Any, max_length: int | None) -> Tokenizer:
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_LENGTH
    try:
        return bert_tokenizer(folder, max_length=min(max_length or MAX_LENGTH, positions))
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError) as error:
        raise SpecError(
            f"'{spec}': its tokenizer is not BERT's WordPiece, or damaged ({error}); name the folder of a model with a "
            "BERT tokenizer"
        ) from error


def _sizes(model: Any, spec: EncoderSpec) -> tuple[int, int]:
    """Rows of the word embedding and width of the states.

    Raises:
        SpecError: the model is not a plain text encoder.
    """
    try:
        rows, width = int(model.get_input_embeddings().num_embeddings), int(model.config.hidden_size)
        alone = not model.config.is_encoder_decoder
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        alone = False
    if not alone:
        raise SpecError(
            f"'{spec}': it holds a {type(model).__name__}, which is no encoder of texts by itself; name the folder of "
            "a BERT model"
        )
    return rows, width


def _config_of(folder: Path) -> Mapping[str, Any]:
    """The config with its defaults; refused without `model_type`, which transformers may guess from the folder name."""
    from transformers import AutoConfig, PretrainedConfig

    try:
        named = "model_type" in PretrainedConfig.get_config_dict(folder, local_files_only=True)[0]
        config: Mapping[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict() if named else {}
    except Exception as error:
        raise WeightsError(f"{folder / 'config.json'}: transformers cannot read it: {first_line(error)}") from error
    if not named:
        raise WeightsError(f"{folder / 'config.json'}: has no model_type, so it does not say which model this is")
    return config


def _read_model(folder: Path, spec: EncoderSpec) -> Any:
    from transformers import AutoModel

    for file in folder.glob("*.bin"):
        check_pickle(file)
    try:
        # Local files only, so that nothing is downloaded; transformers reads pickles with weights_only.
        model, report = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # each file format of transformers raises errors of its own
        raise WeightsError(f"'{spec}': transformers cannot load {folder}: {first_line(error)}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise WeightsError(
            f"'{spec}': the weights in {folder} lack {len(missing)} tensors ({', '.join(missing[:3])}, …)"
        )
    return model.to(torch.float32)


def _random_model(config: Mapping[str, Any], spec: EncoderSpec) -> Any:
    from transformers import AutoConfig, AutoModel

    values = dict(config)
    try:
        return AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).to(torch.float32)
    except Exception as error:  # each model of transformers raises errors of its own
        raise WeightsError(f"'{spec}': transformers cannot build a model of its config: {first_line(error)}") from error
