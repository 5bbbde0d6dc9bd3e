"""CLIP's text towers through open_clip: its own transformer, or a model of transformers behind a pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.tokens.tokenizers import Tokenizer, clip_tokenizer, hf_tokenizer
from varalign.encoders.base import TextEncoder, TextOptions, cut_padding, known_blocks, plain, present
from varalign.encoders.clip_model import SMALL_VISION, build_clip, load_tower
from varalign.encoders.clip_source import ClipSource, find_clip
from varalign.encoders.hf_text import HfTextEncoder
from varalign.encoders.hub import hub_folder
from varalign.encoders.specs import CLIP_CONFIG, EncoderSpec, SpecError
from varalign.encoders.transformers_model import checkpoint_layers, config_of, lasting_config, read_config
from varalign.encoders.weights import first_line

BLOCKS = (
    "transformer.resblocks",
    "transformer.encoder.layer",
    "transformer.layers",
    "transformer.block",
    "transformer.layer",
)
PLACES = ("hf_tokenizer_name", "hf_model_name", "hf_model_pretrained")
"""Settings that say where a part comes from, not what it computes."""


class ClipTextEncoder(TextEncoder):
    """CLIP's text tower; features are open_clip's `encode_text(ids)`: pooled and projected, not normalised.

    Args:
        spec: kind `clip`; see `clip_source` for the forms of its weights.
        options: `tokenizer` (by default the one that the model's config names: CLIP's own, or transformers' in the
            model's folder or from the hub); `max_length`, by default and at most the model's context length; with
            `architecture` and without `load_weights`, no source is looked up.
    """

    def __init__(self, spec: EncoderSpec, options: TextOptions) -> None:
        super().__init__()
        source, known = None, options.architecture
        if known is None or options.load_weights:
            source = find_clip(spec, option="--text-encoder", load_weights=options.load_weights)
            embed_dim, quick_gelu, config = source.embed_dim, source.quick_gelu, dict(source.text_cfg)
        else:
            embed_dim, quick_gelu, config = known["embed_dim"], known["quick_gelu"], dict(known["text_cfg"])
        self.spec = str(spec) if source is None else source.spec
        model_config = known.get("hf_config") if known is not None else None
        if config.get("hf_model_name"):
            if model_config is None:
                assert source is not None
                model_config = read_config(_place(source, spec, "hf_model_name", ("config.json",), ("config.json",)))
            self.text = _model_of_transformers(spec, embed_dim, config, model_config)
        else:
            self.text = build_clip(spec, embed_dim, quick_gelu, SMALL_VISION, config).text
        if source is not None and source.checkpoint is not None:
            load_tower(self.text, "text", source.checkpoint, str(spec))
        self.text.output_tokens = False
        self.tokenizer = options.tokenizer or _tokenizer(source, spec, config, options.max_length)
        if self.tokenizer.vocabulary_size > self.text.vocab_size:
            raise SpecError(
                f"'{spec}': its text tower knows {self.text.vocab_size} tokens, the tokenizer makes "
                f"{self.tokenizer.vocabulary_size}"
            )
        self.feature_dim = embed_dim
        self.has_source = True
        self._quick_gelu = quick_gelu
        self._config = config
        self._is_model = bool(config.get("hf_model_name"))
        # A causal tower pools the state of the end token, which does not depend on later tokens: padding can be cut. So
        # it can where the tower masks it.
        if self._is_model:
            self._cuts = self.tokenizer.pad_id == self.text.config.pad_token_id
        else:
            pools_end = self.text.attn_mask is not None and self.text.pool_type == "argmax"
            self._cuts = pools_end and self.text.cls_emb is None and self.tokenizer.kind == "clip"
        longest = _context_length(config)
        if self.tokenizer.max_length > longest:
            raise SpecError(f"'{spec}': its text tower reads at most {longest} tokens: give --max-length {longest}")
        if self.tokenizer.max_length < longest and not self._cuts:
            raise SpecError(f"'{spec}': its text tower reads {longest} tokens of each text: leave out --max-length")

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of ids (B, context length)."""
        short = cut_padding(ids, lengths) if self._cuts else ids
        whole = self._is_model or short.shape[1] == self.text.context_length
        features: Tensor = self.text(short) if whole else self._short_forward(short)
        return features

    def _short_forward(self, ids: Tensor) -> Tensor:
        """The tower on fewer tokens than its context length, which open_clip's forward refuses (its mask is fixed)."""
        text, length = self.text, ids.shape[1]
        states = text.token_embedding(ids) + text.positional_embedding[:length]
        states = text.ln_final(text.transformer(states, attn_mask=text.attn_mask[:length, :length]))
        # The end token has the highest id of the vocabulary and occurs once in every text.
        pooled: Tensor = states[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        if text.text_projection is None:
            return pooled
        if isinstance(text.text_projection, nn.Linear):
            pooled = text.text_projection(pooled)
        else:
            pooled = torch.matmul(pooled, text.text_projection)
        return pooled

    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks."""
        return known_blocks(self.text, BLOCKS, self.spec)

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """Final norm, pooler and projection."""
        inner = present(self.text.transformer, ("final_layer_norm", "layer_norm", "pooler")) if self._is_model else []
        return inner + present(self.text, ("ln_final", "text_projection", "proj"))

    def checkpoint_activations(self, beside_adapters: bool = False) -> None:
        """As `Encoder.checkpoint_activations`."""
        if self._is_model:
            checkpoint_layers(self.text.transformer, self.spec, beside_adapters)
        else:
            self.text.set_grad_checkpointing()

    def architecture(self) -> dict[str, Any]:
        """Sizes, activation and the tokenizer's fingerprint; the config of a model of transformers."""
        model = {"hf_config": lasting_config(self.text)} if self._is_model else {}
        return plain(
            {
                "kind": "clip-text",
                "embed_dim": self.feature_dim,
                "quick_gelu": self._quick_gelu,
                "text_cfg": self._config,
                "tokenizer": self.tokenizer.fingerprint,
                **model,
            }
        )

    def identity(self) -> dict[str, Any]:
        """As `Encoder.identity`, without the names of places; of a model's config only what differs from defaults."""
        values = self.architecture()
        values["text_cfg"] = {key: value for key, value in values["text_cfg"].items() if key not in PLACES}
        if self._is_model:
            values["hf_config"] = lasting_config(self.text, whole=False)
        return values


def _model_of_transformers(
    spec: EncoderSpec, embed_dim: int, config: Mapping[str, Any], model_config: Mapping[str, Any]
) -> Any:
    """open_clip's HFTextEncoder with random weights, as it makes it of a model's name, but of the config alone."""
    import open_clip
    from open_clip.hf_model import HFTextEncoder

    settings = open_clip.CLIPTextCfg(**config)
    try:
        options = {"pooler_type": settings.hf_pooler_type, "proj_type": settings.hf_proj_type}
        tower = HFTextEncoder("", embed_dim, config=config_of(model_config), **options).to(torch.float32).eval()
        if tower.config.is_encoder_decoder:
            tower.transformer = tower.transformer.encoder
        elif settings.hf_pooler_type != "cls_pooler":
            tower.transformer.pooler = None
        with torch.no_grad():
            tower(torch.zeros(1, 2, dtype=torch.long) + (tower.config.pad_token_id == 0))
    except Exception as error:  # each model of transformers raises errors of its own
        raise SpecError(f"'{spec}': open_clip cannot build its text tower: {first_line(error)}") from error
    return tower


def _context_length(config: Mapping[str, Any]) -> int:
    import open_clip

    return open_clip.CLIPTextCfg(**config).context_length


def _tokenizer(
    source: ClipSource | None, spec: EncoderSpec, config: Mapping[str, Any], max_length: int | None
) -> Tokenizer:
    """The tokenizer that open_clip's `get_tokenizer` makes of a model's config, by default at its context length."""
    import open_clip

    assert source is not None
    settings = open_clip.CLIPTextCfg(**config)
    given, length = settings.tokenizer_kwargs or {}, max_length or settings.context_length
    if not settings.hf_tokenizer_name:
        if given not in ({}, {"clean": "lower"}):
            raise SpecError(f"'{spec}': its config gives CLIP's tokenizer settings that varalign has not: {given}")
        return clip_tokenizer(context_length=length)
    names = HfTextEncoder.TOKENIZER_NAMES
    folder = _place(source, spec, "hf_tokenizer_name", names, ("*.json", "*.txt", "*.model"))
    asked = {"clean": "whitespace", **given, "tokenizer_mode": settings.tokenizer_mode}
    reads_padding = not settings.hf_model_name
    try:
        return hf_tokenizer(folder, length, settings=asked, whole=reads_padding)
    except ValueError as error:
        raise SpecError(f"'{spec}': {error}") from error


def _place(source: ClipSource, spec: EncoderSpec, key: str, names: tuple[str, ...], patterns: tuple[str, ...]) -> Any:
    """The folder with one of the files `names` that a model's config means by `key`.

    It is the model's own folder where that has one of them, the folder that the config names, or the hub's, in which
    `patterns` say what is downloaded.
    """
    name = str(source.text_cfg[key])
    own = [source.folder, source.folder / name] if source.folder is not None else []
    for folder in own if key == "hf_tokenizer_name" else own[1:]:
        if any((folder / file).is_file() for file in names):
            return folder
    instead = f"--text-encoder clip:{spec.name}@FOLDER, a folder with {CLIP_CONFIG} and the weights"
    if key == "hf_tokenizer_name":
        instead += ", with these files beside them"
    else:
        instead += f", where {key} names the folder of these files"
    return hub_folder(name, [patterns], [names], spec=str(spec), instead=instead)
