"""BERT and its relatives as text encoders, with BERT's WordPiece of the compiled core."""

from __future__ import annotations

from typing import Any

from varalign.data.json_file import read_object
from varalign.data.tokens.bert_tokens import OtherTokenizer
from varalign.data.tokens.tokenizers import Tokenizer, bert_tokenizer
from varalign.encoders.hf_text import HfTextEncoder
from varalign.encoders.hub import LOGGER
from varalign.encoders.sentence import Sentence
from varalign.encoders.specs import EncoderSpec, SpecError

# Entries that affect the features at equal tensors; the other fields of a config change with transformers' version.
IDENTITY = (
    "model_type",
    "hidden_act",
    "activation",
    "layer_norm_eps",
    "num_attention_heads",
    "position_embedding_type",
)
# The tokenizers of transformers that are BERT's WordPiece.
WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")


class BertEncoder(HfTextEncoder):
    """A BERT-family model: `HfTextEncoder`, whose texts the compiled core cuts into BERT's WordPiece.

    A folder with another tokenizer is read as `hf:` reads it, and a line on the logger `varalign` says so.

    Args:
        spec: kind `bert`; its name is a hub name or a folder with config.json, the weights and the vocabulary.
        options: as `HfTextEncoder` takes them.
    """

    KIND = "bert"
    TOKENIZER_NAMES = ("vocab.txt", "tokenizer.json")

    def identity(self) -> dict[str, Any]:
        """As `Encoder.identity`: the config's entries of `IDENTITY` only."""
        values = self.architecture()
        values["config"] = {key: values["config"][key] for key in IDENTITY if key in values["config"]}
        return values

    def _read_tokenizer(self, sentence: Sentence, spec: EncoderSpec, max_length: int) -> Tokenizer:
        try:
            _check_class(sentence, self.model.config.model_type)
            return bert_tokenizer(sentence.folder, max_length, sentence.prompt)
        except OtherTokenizer as other:
            LOGGER.warning("'%s' is read as hf:%s: %s", spec, spec.name, other)
            return super()._read_tokenizer(sentence, spec, max_length)
        except (ValueError, TypeError, LookupError, AttributeError, OSError, RecursionError) as error:
            raise SpecError(
                f"'{spec}': its tokenizer is damaged ({error}); name the folder of a whole model"
            ) from error


def _check_class(sentence: Sentence, model_type: str) -> None:
    """OtherTokenizer where transformers would take another tokenizer than BERT's."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    if sentence.lower:
        raise OtherTokenizer("its sentence_bert_config.json sets do_lower_case")
    file = sentence.folder / "tokenizer_config.json"
    usual = TOKENIZER_MAPPING_NAMES.get(model_type) or WORDPIECE[0]
    found = (read_object(file) if file.is_file() else {}).get("tokenizer_class") or usual
    if str(found).removesuffix("Fast") not in WORDPIECE:
        raise OtherTokenizer(f"its tokenizer is a {found}, not BERT's")
