"""Small random text models in the folders that transformers and sentence-transformers write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from checkpoints import WORDS

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
TEXTS = ["a dog runs", "Two cats sit on the mat, with a red ball!", "", "snow", "the man and the woman " * 12]


def _word_pieces(marks: list[str]) -> dict[str, int]:
    words = dict.fromkeys([*marks, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)])
    return {word: number for number, word in enumerate(words)}


def _make(family: str) -> tuple[Any, Any]:
    """The tokenizer and the model of a family."""
    import transformers as t

    if family in ("bert", "distilbert", "electra"):
        tokenizer = t.BertTokenizer(vocab=_word_pieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
        sizes = {**SIZES, "vocab_size": len(tokenizer)}
        if family == "bert":
            return tokenizer, t.BertModel(t.BertConfig(**sizes))
        if family == "electra":
            return tokenizer, t.ElectraModel(t.ElectraConfig(**sizes, embedding_size=32))
        config = t.DistilBertConfig(
            vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
        )
        return tokenizer, t.DistilBertModel(config)
    if family == "mpnet":
        tokenizer = t.MPNetTokenizer(vocab=_word_pieces(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]))
        return tokenizer, t.MPNetModel(t.MPNetConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=1))
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    if family == "roberta":
        letters = [*marks, *map(chr, range(33, 127)), "Ġ", "do", "dog", "Ġd", "Ġdog"]
        merges = [("d", "o"), ("do", "g"), ("Ġ", "d")]
        tokenizer = t.RobertaTokenizer(vocab={word: number for number, word in enumerate(letters)}, merges=merges)
        return tokenizer, t.RobertaModel(t.RobertaConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=1))
    if family == "xlm-roberta":
        pieces = [(piece, -2.0) for piece in ["▁a", "▁the", "▁dog", "▁", *LETTERS, *"ABT.,!"]]
        vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces, ("<mask>", 0.0)]
        tokenizer = t.XLMRobertaTokenizer(vocab=vocab)
        return tokenizer, t.XLMRobertaModel(t.XLMRobertaConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=1))
    assert family == "t5"
    tokenizer = t.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((x, -2.0) for x in LETTERS)]
    )
    config = t.T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return tokenizer, t.T5EncoderModel(config)


def write_model(folder: Path, family: str) -> Path:
    """Write a model and its tokenizer as transformers does."""
    torch.manual_seed(0)
    tokenizer, model = _make(family)
    with torch.no_grad():  # states that differ from token to token, norms that could be dropped unseen
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tokenizer.model_max_length = 38  # RoBERTa's kind has two positions that no token can take
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def write_siglip(folder: Path, family: str) -> Path:
    """Write a SigLIP of 16 tokens with the tokenizer of its first version (a sentencepiece model) or of its second."""
    import sentencepiece
    import transformers as t

    folder.mkdir()
    if family == "siglip":
        made = folder / "spiece.model"
        sentences = iter([*TEXTS[:2], "the man and the woman", "snow on a dog", "quotes and cats"] * 20)
        with made.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences, model_writer=file, vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
                hard_vocab_limit=False, minloglevel=2,
            )  # fmt: skip
        tokenizer = t.SiglipTokenizer(str(made))
    else:
        marks = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "▁a", "▁dog"]
        letters = dict.fromkeys([*marks, *LETTERS, "do", "dog", "▁d", "▁do"])
        merges = [("d", "o"), ("do", "g"), ("▁", "a"), ("▁", "dog")]
        tokenizer = t.Siglip2Tokenizer(vocab={word: at for at, word in enumerate(letters)}, merges=merges)
    tokenizer.save_pretrained(folder)
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
    torch.manual_seed(0)
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    del vision["max_position_embeddings"]
    model = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def write_sentence(folder: Path, family: str, *layers: Any, pooling: Any = "mean", **settings: Any) -> Path:
    """Write a sentence-transformers folder; `layers` follow the pooling, `settings` are SentenceTransformer's."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    plain = write_model(folder.with_name(f"{folder.name}-plain"), family)
    include = settings.pop("include_prompt", True)
    modules = [Transformer(str(plain)), Pooling(32, pooling, include_prompt=include), *layers]
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder), create_model_card=False)
    return folder


def change_json(file: Path, **changes: Any) -> None:
    """Set entries of a JSON file; None removes one."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
