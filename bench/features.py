"""Features of texts by a model of sentence-transformers: ours in float32 and bf16, beside the library itself.

    python bench/features.py --model FOLDER [--data DIR]

Ours is what `train` and `embed` run once for a frozen text encoder: texts in the order of their lengths, 64 at a
time, with packed weights. The library's is `SentenceTransformer(folder).encode` with its own order and batches of 32,
and with batches of 64. All in one process on one thread, tokenizers included. The captions are those of `--data`, else
made up with lengths as in Flickr8k.
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


def least_cosine(a: Tensor, b: Tensor) -> float:
    """Between the rows of two matrices."""
    return float(torch.cosine_similarity(a, b).min())


def subjects(options: argparse.Namespace) -> Iterator[list[Row]]:
    """One row a contender."""
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    captions = captions_of(options)
    encoder = HfTextEncoder(parse_text_spec(f"hf:{options.model}"), TextOptions())
    towers = Towers(None, encoder, image_feature_dim=1)
    towers.freeze("text")
    peer = SentenceTransformer(options.model, device="cpu")

    def ours(precision: Precision) -> Callable[[], Tensor]:
        def run() -> Tensor:
            source = LiveCaptions(captions, encoder.tokenizer, torch.device("cpu"))
            with tempfile.TemporaryDirectory() as cache:
                return text_rows(towers, source, captions, Path(cache), lambda line: None, precision).matrix

        return run

    def theirs(batch: int) -> Callable[[], Tensor]:
        return lambda: peer.encode(captions, batch_size=batch, convert_to_tensor=True, show_progress_bar=False)

    near = least_cosine(ours("fp32")(), ours("bf16")())
    yield compare(
        f"features of {len(captions):,} captions, {Path(options.model).name}",
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
    if near < LEAST_COSINE:
        raise SystemExit(f"bf16: a least cosine of {near:.5f} with fp32, wanted {LEAST_COSINE}")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--model", required=True, help="folder of a model of sentence-transformers")
    parser.add_argument("--data", type=Path, help="data folder whose captions are taken")
    parser.add_argument("--texts", type=int, default=2000, help="number of captions (default: 2,000)")


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
