"""Text encoders of transformers and of sentence-transformers folders, with the library's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from varalign.data.json_file import read_object
from varalign.data.tokens.tokenizers import Tokenizer, hf_tokenizer
from varalign.encoders.base import TextEncoder, TextOptions, cut_padding, known_blocks, plain, present, token_mask
from varalign.encoders.sentence import MODULES, Sentence, SentenceHead, read_sentence
from varalign.encoders.specs import EncoderSpec, SpecError
from varalign.encoders.transformers_model import (
    WEIGHT_NAMES,
    check_folder,
    checkpoint_layers,
    has_projection,
    lasting_config,
    model_folder,
    random_model,
    read_config,
    read_model,
)

MAX_LENGTH = 64
MOST_LENGTH = 512
"""Tokens of a text that a folder's own limit is cut to: the ids of all captions lie in memory at that width."""
POOLINGS = {"mean": "mean", "cls": "cls", "last": "lasttoken"}
"""What `--pooling` may say, and the name that it has in `sentence.POOLINGS`."""
BLOCKS = (
    "encoder.layer",
    "transformer.layer",
    "layers",
    "encoder.layers",
    "encoder.block",
    "h",
    "text_model.encoder.layers",
)
INSIDE = "0_Transformer"
OWN_VECTORS = {
    "CLIPTextModelWithProjection": "text_embeds",
    "CLIPTextModel": "pooler_output",
    "SiglipTextModel": "pooler_output",
}
"""Models that make one vector of a text themselves, and its name among their outputs."""
UNMASKED = ("SiglipTextModel",)
"""Those that read the padding too, so that every text has the model's full length."""


class HfTextEncoder(TextEncoder):
    """A text model of transformers; features are what its folder says, else the pooled last states.

    A sentence-transformers folder says pooling, layers behind it, prompt and longest text; its features are those of
    `SentenceTransformer(folder).encode`. Another folder's are the mean of the last states over all tokens (marks
    included, padding not), or what `pooling` says. The model's pooler, trained for next-sentence tasks, is left out.
    The text towers of CLIP and SigLIP give their own vectors.

    Args:
        spec: kind `hf`; its name is a hub name or a folder with config.json, weights and tokenizer.
        options: `tokenizer` (the folder's own by default); `pooling`, "mean", "cls" or "last", where the folder does
            not say; `max_length`, by default what a sentence-transformers folder says up to 512, else 64, and no more
            than the model has positions; with `architecture` and `tokenizer` and without `load_weights` no source is
            looked up.
    """

    KIND = "hf"
    TOKENIZER_NAMES: tuple[str, ...] = (
        "tokenizer.json",
        "vocab.txt",
        "vocab.json",
        "sentencepiece.bpe.model",
        "spiece.model",
        "spm.model",
        "tokenizer.model",
    )

    def __init__(self, spec: EncoderSpec, options: TextOptions) -> None:
        super().__init__()
        known, tokenizer, sentence = options.architecture, options.tokenizer, None
        if known is not None and not options.load_weights and tokenizer is not None:
            self.model = random_model(known["config"], spec, "text", projected=known.get("projected", False))
        else:
            sentence = self._find(spec)
            config = read_config(sentence.folder)
            if options.load_weights:
                self.model = read_model(sentence.folder, spec, "text")
            else:
                self.model = random_model(config, spec, "text")
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        self.model.eval()
        rows, width = _sizes(self.model, spec)
        self._own = OWN_VECTORS.get(type(self.model).__name__)
        self._unmasked = type(self.model).__name__ in UNMASKED
        if tokenizer is None:
            assert sentence is not None
            limit = _longest(self.model, sentence, options.max_length, own=self._own is not None)
            if self._unmasked and options.max_length not in (None, limit):
                raise SpecError(f"'{spec}': its model reads {limit} tokens of each text: leave out --max-length")
            tokenizer = self._read_tokenizer(sentence, spec, limit)
        if known is None:
            assert sentence is not None
            known = _described(sentence, tokenizer, options.pooling, spec, own=self._own is not None)
        if tokenizer.vocabulary_size > rows:
            raise SpecError(f"'{spec}': the tokenizer makes {tokenizer.vocabulary_size} tokens, the model knows {rows}")
        pooling = known["pooling"]
        modes = [] if self._own else [pooling] if isinstance(pooling, str) else pooling
        self.head = SentenceHead(modes, known.get("layers", ()), width, known.get("skip", 0))
        if sentence is not None and options.load_weights and self.head.layers:
            self.head.load(sentence.places, str(spec))
        self._known = {key: known[key] for key in ("pooling", "layers", "skip") if key in known}
        self.feature_dim = _own_width(self.model) if self._own else self.head.feature_dim
        self.tokenizer = tokenizer
        self.spec = str(spec.with_absolute_path())
        self.has_source = True
        self.eval()

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, feature_dim) features of ids (B, L) padded behind lengths (B,)."""
        if self._unmasked:
            return self.model(input_ids=ids)[self._own]  # type: ignore[no-any-return]
        ids = cut_padding(ids, lengths)
        mask = token_mask(ids, lengths)
        found = self.model(input_ids=ids, attention_mask=mask.long())
        features: Tensor = found[self._own] if self._own else self.head(found.last_hidden_state, mask)
        return features

    def blocks(self) -> list[nn.Module]:
        """The transformer's layers."""
        return known_blocks(self.model, BLOCKS, self.spec)

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """The norm after the layers, and the layers behind the pooling."""
        names = ("norm", "final_norm", "ln_f", "final_layer_norm", "head", "text_projection")
        inner = present(getattr(self.model, "text_model", nn.Module()), names)
        return [*present(self.model, names), *inner, *self.head.layers]

    def checkpoint_activations(self, beside_adapters: bool = False) -> None:
        """As `Encoder.checkpoint_activations`."""
        checkpoint_layers(self.model, self.spec, beside_adapters)

    def architecture(self) -> dict[str, Any]:
        """The model's config, pooling, the layers behind it and the tokenizer's fingerprint."""
        described = {"kind": self.KIND, "config": lasting_config(self.model), "tokenizer": self.tokenizer.fingerprint}
        projected = {"projected": True} if has_projection(self.model) else {}
        return plain({**described, **self._known, **projected})

    def identity(self) -> dict[str, Any]:
        """As `Encoder.identity`: of the config only what differs from its class's defaults."""
        return {**self.architecture(), "config": lasting_config(self.model, whole=False)}

    def _find(self, spec: EncoderSpec) -> Sentence:
        needed = (("config.json",), WEIGHT_NAMES, self.TOKENIZER_NAMES)
        sentence = read_sentence(model_folder(spec, needed, "--text-encoder", INSIDE, MODULES))
        check_folder(sentence.folder, needed, spec)
        return sentence

    def _read_tokenizer(self, sentence: Sentence, spec: EncoderSpec, max_length: int) -> Tokenizer:
        try:
            return hf_tokenizer(
                sentence.folder, max_length, sentence.prompt, lower=sentence.lower, whole=self._unmasked
            )
        except ValueError as error:
            raise SpecError(f"'{spec}': {error}") from error


def _described(
    sentence: Sentence, tokenizer: Tokenizer, pooling: str, spec: EncoderSpec, *, own: bool
) -> dict[str, Any]:
    """Pooling and layers, as `HfTextEncoder.architecture` holds them; `own`: the model makes one vector itself."""
    if own:
        if pooling != "auto" or sentence.pooling:
            raise SpecError(f"'{spec}': its model makes one vector of a text itself, so that nothing is pooled")
        return {"pooling": "own"}
    if pooling not in ("auto", *POOLINGS):
        raise SpecError(f"'{spec}' pools by {', '.join(POOLINGS)}, not by '{pooling}'")
    modes = sentence.pooling or (POOLINGS.get(pooling, "mean"),)
    if pooling != "auto" and modes != (POOLINGS[pooling],):
        raise SpecError(
            f"'{spec}': its folder says that it pools by {' and '.join(modes)}: leave out --pooling {pooling}"
        )
    known: dict[str, Any] = {"pooling": modes[0] if len(modes) == 1 else list(modes)}
    if sentence.layers:
        known["layers"] = list(sentence.layers)
    if sentence.prompt and not sentence.pools_prompt:
        ids = tokenizer([""])
        length = int(ids.lengths[0])
        known["skip"] = length - int(ids.ids[0, length - 1] == tokenizer.end_id)
    return known


def _own_width(model: Any) -> int:
    """Width of the vectors of a model of `OWN_VECTORS`."""
    last = getattr(model, "text_projection", None) or getattr(model, "head", None)
    return int(model.config.hidden_size if last is None else last.out_features)


def _longest(model: Any, sentence: Sentence, wanted: int | None, *, own: bool) -> int:
    """Tokens of the longest text: what is wanted, else what the folder says, within the model's positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limit = positions if isinstance(positions, int) and positions > 0 else MOST_LENGTH
    for module in model.modules():  # RoBERTa and its like count positions from the padding's id on
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            limit = min(limit, module.position_embeddings.num_embeddings - padding - 1)
    if wanted is None:
        wanted = limit if own else sentence.max_length
    if wanted is None and sentence.pooling:
        wanted = _tokenizer_limit(sentence.folder / "tokenizer_config.json")
        return min(wanted, limit, MOST_LENGTH)
    return min(MAX_LENGTH if wanted is None else wanted, limit, MOST_LENGTH)


def _tokenizer_limit(file: Path) -> int:
    found = read_object(file).get("model_max_length") if file.is_file() else None
    return int(found) if isinstance(found, int | float) and found >= 2 else MOST_LENGTH


def _sizes(model: Any, spec: EncoderSpec) -> tuple[int, int]:
    """Rows of the word embedding and width of the states.

    Raises:
        SpecError: the model is not one tower for texts.
    """
    try:
        rows, width = int(model.get_input_embeddings().num_embeddings), int(model.config.hidden_size)
        alone = not model.config.is_encoder_decoder
    except (NotImplementedError, AttributeError, TypeError, ValueError):
        alone = False
    if not alone:
        raise SpecError(
            f"'{spec}': it holds a {type(model).__name__}, which is no encoder of texts by itself; name the folder of "
            "a text encoder"
        )
    return rows, width
