"""`varalign diagnose`: which pairs are wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.cli.arguments import (
    add_json,
    add_option,
    add_overwrite,
    add_places,
    add_reading,
    add_seed,
    add_split,
    answer,
)
from varalign.data.waiting import waiting


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "diagnose",
        help="estimate the share of wrong pairs and list them, before any training or after it",
        description="Estimate what share of the pairs is wrong, list all pairs with scores (pairs.csv), and write a "
        "page of the worst beside the captions that would fit better (diagnosis.html).",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="run: its data and its pair statistics")
    parser.add_argument(
        "--features", metavar="FILE", type=Path, help="features file; with --data too, its pictures are shown"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="data folder, whose features pretrained encoders make")
    parser.add_argument("--image-encoder", metavar="SPEC", help="pretrained encoder of --data (default: CLIP ViT-B/32)")
    parser.add_argument("--text-encoder", metavar="SPEC", help="pretrained encoder of --data (default: BERT)")
    add_reading(parser)
    add_split(parser, "train", every=True)
    parser.add_argument(
        "--by",
        default="auto",
        choices=["auto", "image", "pair"],
        help="whether the captions of an image are wrong together or each by itself (default auto: estimated)",
    )
    add_option(parser, "dataset_size")
    parser.add_argument(
        "--noise", metavar="SPEC", help="inject wrong pairs on purpose, such as swap-images=0.4, to see them found"
    )
    parser.add_argument("--worst", type=int, default=50, metavar="N", help="pairs on the page (default 50)")
    add_seed(parser, "folds, intervals, splits and noise")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the files (default: RUN/diagnosis, or diagnosis)"
    )
    add_overwrite(parser)
    add_places(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Diagnose, and print the estimate and the files."""
    with waiting("starting"):
        from varalign.aligner.diagnosis.diagnosis import diagnose
        from varalign.aligner.diagnosis.gather import Settings

    found = diagnose(Settings(**{name: getattr(arguments, name) for name in Settings.__dataclass_fields__}))
    lines = [*found.lines(), f"{found.csv}: every pair with its scores, worst first", str(found.page)]
    return answer(arguments, found.as_dict(), lines)
