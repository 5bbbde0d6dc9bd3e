"""`varalign embed`: embeddings, or the encoders' features, as a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.cli.arguments import add_json, add_option, add_overwrite, add_run, add_split, answer, load
from varalign.data.errors import DataError
from varalign.data.outputs import check_output_file, marker_of


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("embed", help="write embeddings, or the encoders' features, with ids")
    add_run(parser)
    add_split(parser, "all", every=True)
    parser.add_argument(
        "--features", action="store_true", help="write the encoders' output as a features file for `train --features`"
    )
    add_option(parser, "unpaired_images").help = "with --features: the features of these images instead of the run's"
    add_option(parser, "unpaired_texts").help = "with --features: the features of these texts instead of the run's"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write, .safetensors or .npz")
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and print what it holds."""
    if arguments.features and arguments.split != "all":
        raise DataError("--features writes all splits into one file, as `train --features` wants: leave out --split")
    unpaired = {name: getattr(arguments, name) for name in ("unpaired_images", "unpaired_texts")}
    if any(unpaired.values()) and not arguments.features:
        raise DataError("--unpaired-images and --unpaired-texts go with --features: they have no place among the run's")
    unfinished = marker_of(arguments.out).is_file()
    for ending in (arguments.out.suffix, ".names.jsonl", ".texts.jsonl"):
        check_output_file(arguments.out.with_suffix(ending), overwrite=arguments.overwrite or unfinished)
    model = load(arguments)
    if arguments.features:
        written = model.write_features(arguments.out, **unpaired)
    else:
        written = model.write_embeddings(arguments.out, split=arguments.split)
    return answer(arguments, written, [f"{arguments.out}: {written['images']} images, {written['texts']} texts"])
