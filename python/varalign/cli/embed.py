"""`varalign embed`: embeddings, or the encoders' features, as a file; or those of a folder, for `search`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.cli.arguments import (
    add_json,
    add_option,
    add_overwrite,
    add_run,
    add_split,
    answer,
    gallery_of,
    load,
)
from varalign.data.errors import DataError
from varalign.data.outputs import check_output_file, marker_of
from varalign.data.readers.reading import Reading


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("embed", help="write embeddings, or the encoders' features, with ids")
    add_run(parser, gallery=True)
    add_split(parser, "all", every=True)
    parser.add_argument(
        "--features", action="store_true", help="write the encoders' output as a features file for `train --features`"
    )
    add_option(parser, "unpaired_images").help = "with --features: the features of these images instead of the run's"
    add_option(parser, "unpaired_texts").help = "with --features: the features of these texts instead of the run's"
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write: .safetensors or .npz, or .parquet for a map (id, text, x, y, split, rank, thumbnail) that "
        "embedding-atlas opens; with --images the run keeps the embeddings",
    )
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and print what it holds."""
    gallery = gallery_of(arguments)
    if gallery is not None:
        return _embed_folder(arguments, *gallery)
    if arguments.out is None:
        raise DataError("embed: name the file to write (--out FILE), or a folder of images to search (--images DIR)")
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


def _embed_folder(arguments: argparse.Namespace, folder: Path, reading: Reading) -> int:
    """Bring the store of a folder's images up to date, and print what was done."""
    for name in ("out", "features", "unpaired_images", "unpaired_texts"):
        if getattr(arguments, name):
            raise DataError(f"--{name.replace('_', '-')} does not go with --images, whose embeddings the run keeps")
    if arguments.split != "all":
        raise DataError("--split: the images of a folder have no splits; leave it out, or leave out --images")
    from varalign.aligner.folder_search import open_search
    from varalign.runs.progress import to_stderr

    model = load(arguments)
    found = open_search(model, folder, reading, to_stderr, own=False)
    gallery, captions = found.gallery, found.captions
    if captions is not None:
        captions.embedded  # noqa: B018  (kept at the first call)
    counts = {"images": len(gallery.names), **gallery.changes, "unreadable": len(gallery.unreadable)}
    counts |= {} if captions is None else {"captions": len(captions.texts)}
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return answer(arguments, {"store": str(gallery.store), **counts}, [f"{gallery.store}: {told}"])
