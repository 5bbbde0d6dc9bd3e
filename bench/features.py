"""Features of texts by a model of sentence-transformers: ours in float32 and bf16, beside the library itself.

    python bench/features.py [--model FOLDER] [--data DIR]

Ours is what `train` and `embed` run once for a frozen text encoder: texts in the order of their lengths, 64 at a
time, with packed weights. The library's is `SentenceTransformer(folder).encode` with its own order and batches of 32,
and with batches of 64. All in one process on one thread, tokenizers included. The captions are those of `--data`, else
made up with lengths as in Flickr8k. Without a folder the model has MiniLM-L6's sizes and random weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from harness import Contender, Row, compare, main
from torch import Tensor
from varalign.data.datasets import load_dataset
from varalign.encoders.base import TextOptions
from varalign.encoders.hf_text import HfTextEncoder
from varalign.encoders.specs import parse_text_spec
from varalign.encoders.towers import Towers
from varalign.inputs.feature_cache import LEAST_COSINE, Precision, text_rows
from varalign.inputs.live import LiveCaptions

WORDS = [
    "a",
    "the",
    "dog",
    "child",
    "man",
    "woman",
    "runs",
    "sits",
    "on",
    "near",
    "grass",
    "water",
    "snow",
    "red",
    "blue",
    "small",
    "two",
    "young",
    "playing",
]


def captions_of(options: argparse.Namespace) -> list[str]:
    """As many captions as wanted."""
    if options.data is not None:
        return load_dataset(options.data, skip_missing=True).captions[: options.texts]
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(11.8, 3.9, options.texts).astype(int), 2, 35)
    return [" ".join(WORDS[word] for word in rng.integers(0, len(WORDS), length)) for length in lengths]


def write_model(folder: Path) -> None:
    """A BERT of MiniLM-L6's sizes with random weights, whose vocabulary has a token for each of `WORDS`."""
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"[unused{number}]" for number in range(30_000))]
    BertTokenizer(vocab={token: row for row, token in enumerate(tokens)}).save_pretrained(folder)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(vocab_size=len(tokens), **sizes)).save_pretrained(folder)


def least_cosine(a: Tensor, b: Tensor) -> float:
    """Between the rows of two matrices."""
    return float(torch.cosine_similarity(a, b).min())


def subjects(options: argparse.Namespace) -> Iterator[list[Row]]:
    """One row a contender."""
    with tempfile.TemporaryDirectory() as made:
        if options.model is None:
            write_model(Path(made) / "model of MiniLM-L6's sizes")
        yield rows_of(options, Path(options.model or f"{made}/model of MiniLM-L6's sizes"))


def rows_of(options: argparse.Namespace, model: Path) -> list[Row]:
    """The contenders on a model's folder."""
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    captions = captions_of(options)
    encoder = HfTextEncoder(parse_text_spec(f"hf:{model}"), TextOptions())
    towers = Towers(None, encoder, image_feature_dim=1)
    towers.freeze("text")
    peer = SentenceTransformer(str(model), device="cpu")

    def ours(precision: Precision) -> Callable[[], Tensor]:
        def run() -> Tensor:
            source = LiveCaptions(captions, encoder.tokenizer, torch.device("cpu"))
            with tempfile.TemporaryDirectory() as cache:
                return text_rows(towers, source, captions, Path(cache), lambda line: None, precision).matrix

        return run

    def theirs(batch: int) -> Callable[[], Tensor]:
        return lambda: peer.encode(captions, batch_size=batch, convert_to_tensor=True, show_progress_bar=False)

    near = least_cosine(ours("fp32")(), ours("bf16")())
    if near < LEAST_COSINE:
        raise SystemExit(f"bf16: a least cosine of {near:.5f} with fp32, wanted {LEAST_COSINE}")
    return compare(
        f"features of {len(captions):,} captions, {model.name}",
        [
            Contender("varalign, fp32", ours("fp32"), ours=True),
            Contender("varalign, bf16", ours("bf16"), differs=f"least cosine with fp32 {near:.5f}"),
            Contender("sentence-transformers", theirs(32)),
            Contender("sentence-transformers, batches of 64", theirs(64)),
        ],
        work=len(captions),
        unit="captions/s",
        agree=lambda truth, found: least_cosine(truth, found) > 1 - 1e-5,
        rounds=options.rounds,
        warm_up=0,
        packages=["torch", "transformers", "sentence-transformers"],
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--model", help="folder of a model of sentence-transformers")
    parser.add_argument("--data", type=Path, help="data folder whose captions are taken")
    parser.add_argument("--texts", type=int, default=2000, help="number of captions (default: 2,000)")


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
