"""`varalign export`: a trained model in a format that can be given away."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.aligner.exports import TARGETS
from varalign.cli.arguments import add_checkpoint, add_json, answer, load


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("export", help="write a trained model in a format that can be given away")
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write: new, empty, or an earlier export")
    parser.add_argument(
        "--to",
        default="varalign",
        choices=tuple(TARGETS),
        help="format: varalign (loads anywhere by varalign.load), sentence-transformers and open_clip (load by these "
        "libraries), onnx and torch (a graph for images and one for texts) (default varalign)",
    )
    parser.add_argument(
        "--with-bank",
        action="store_true",
        help="with a hub correction: keep the embeddings of training data that it reads, instead of their mean and "
        "covariance",
    )
    add_checkpoint(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, and print what was written and how near its vectors are to the run's."""
    made = load(arguments).export(arguments.out, to=arguments.to, with_bank=arguments.with_bank)
    far = ", ".join(f"{what} {value:.1e}" for what, value in made["differences"].items())
    lines = [f"{made['folder']}: {made['target']}, {made['bytes'] / 1e6:,.1f} MB"]
    lines += [f"largest differences from varalign's own vectors: {far}"] if far else []
    return answer(arguments, made, [*lines, *made["notes"]])
