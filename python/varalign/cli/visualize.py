"""`varalign visualize`: the shared space, drawn by t-SNE."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.cli.arguments import add_json, add_overwrite, add_run, add_seed, add_split, answer, load
from varalign.data.outputs import check_output_folder
from varalign.data.ranks import world
from varalign.pictures.style import PICTURE_FORMS


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("visualize", help="draw the shared space by t-SNE at several perplexities")
    add_run(parser)
    add_split(parser, "test", every=True)
    parser.add_argument(
        "--perplexities", type=float, nargs="+", default=[5, 10, 30, 50], metavar="P", help="default 5 10 30 50"
    )
    parser.add_argument(
        "--pairs", type=int, default=1000, metavar="N", help="most pairs drawn, chosen by seed (default 1000)"
    )
    add_seed(parser, "the choice of pairs and of t-SNE")
    parser.add_argument(
        "--format", default="png", choices=PICTURE_FORMS, dest="form", help="of the files (default png)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the pictures (default: RUN/pictures)")
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, and print the files."""
    model = load(arguments)
    if arguments.out is not None and not (model.run and arguments.out.resolve() == model.run.pictures.resolve()):
        names = ("tsne*.png", "tsne*.pdf", "tsne*.svg")
        world().by_writer(lambda: check_output_folder(arguments.out, names, overwrite=arguments.overwrite))
    options = {name: getattr(arguments, name) for name in ("split", "pairs", "seed", "out", "form")}
    files = [str(file) for file in model.visualize(arguments.perplexities, **options)]
    return answer(arguments, files, files)
