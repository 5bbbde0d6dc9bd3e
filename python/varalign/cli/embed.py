"""`varalign embed`: embeddings, or the encoders' features, as a file; or those of a folder, for `search`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from varalign.cli.arguments import (
    Searched,
    add_json,
    add_option,
    add_overwrite,
    add_run,
    add_split,
    answer,
    gallery_of,
    load,
    refuse_split,
)
from varalign.data.errors import DataError
from varalign.data.outputs import check_output_file, marker_of
from varalign.data.ranks import world


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
        "embedding-atlas opens; with --images, whose embeddings the run keeps, a gallery file for `search --gallery`",
    )
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file, and print what it holds."""
    gallery = gallery_of(arguments)
    if gallery is not None:
        return _embed_folder(arguments, gallery)
    if arguments.out is None:
        raise DataError("embed: name the file to write (--out FILE), or a folder of images to search (--images DIR)")
    if arguments.features and arguments.split != "all":
        raise DataError("--features writes all splits into one file, as `train --features` wants: leave out --split")
    unpaired = {name: getattr(arguments, name) for name in ("unpaired_images", "unpaired_texts")}
    if any(unpaired.values()) and not arguments.features:
        raise DataError("--unpaired-images and --unpaired-texts go with --features: they have no place among the run's")
    world().by_writer(lambda: _check_files(arguments.out, overwrite=arguments.overwrite))
    model = load(arguments)
    if arguments.features:
        written = model.write_features(arguments.out, **unpaired)
    else:
        written = model.write_embeddings(arguments.out, split=arguments.split)
    return answer(arguments, written, [f"{arguments.out}: {written['images']} images, {written['texts']} texts"])


def _check_files(file: Path, *, overwrite: bool) -> None:
    """Refuse to write over files that are not the unfinished ones of this command."""
    unfinished = marker_of(file).is_file()
    for ending in (file.suffix, ".names.jsonl", ".texts.jsonl"):
        check_output_file(file.with_suffix(ending), overwrite=overwrite or unfinished)


def _embed_folder(arguments: argparse.Namespace, searched: Searched) -> int:
    """Bring the store of a folder's images up to date, write it as a gallery file or index one; print what was done."""
    for name in ("features", "unpaired_images", "unpaired_texts"):
        if getattr(arguments, name):
            raise DataError(f"--{name.replace('_', '-')} does not go with --images, whose embeddings the run keeps")
    if world().size > 1:
        raise DataError("embed --images DIR runs in one process: start it without torchrun")
    refuse_split(arguments)
    _check_gallery(arguments)
    from varalign.aligner.gallery_file import index_gallery, write_folder

    model = load(arguments)
    found = replace(searched, indexed=False).open(model, own=False)
    gallery, captions = found.gallery, found.captions
    if arguments.gallery is not None:
        return _indexed(arguments, index_gallery(model, gallery), {"gallery": str(gallery.store)})
    if captions is not None:
        captions.embedded  # noqa: B018  (kept at the first call)
    counts = {"images": len(gallery.names), **gallery.changes, "unreadable": len(gallery.unreadable)}
    counts |= {} if captions is None else {"captions": len(captions.texts)}
    told = f"{gallery.store}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items())
    said: dict[str, Any] = {"store": str(gallery.store), **counts}
    if arguments.out is None:
        return answer(arguments, said, [told])
    written = write_folder(model, gallery, arguments.out)
    said["gallery"] = str(arguments.out)
    lines = [told, f"{arguments.out}: {len(written.names):,} images, {arguments.out.stat().st_size:,} bytes"]
    if arguments.index is None:
        return answer(arguments, said, lines)
    return _indexed(arguments, index_gallery(model, written), said, lines)


def _check_gallery(arguments: argparse.Namespace) -> None:
    """Refuse a gallery file, or its index, that is not asked for in full, or is there already."""
    out = arguments.out
    if arguments.gallery is not None:
        if out is not None or arguments.index is None:
            raise DataError(
                "embed --gallery FILE makes the index of that file: name its kind (--index faiss), and no --out"
            )
        out = arguments.gallery
    elif out is None:
        return
    else:
        if out.suffix != ".safetensors":
            raise DataError(f"--out {out}: wanted a name ending in .safetensors, for the gallery of --images")
        check_output_file(out, overwrite=arguments.overwrite)
    if arguments.index is not None:
        check_output_file(out.with_suffix(".faiss"), overwrite=arguments.overwrite)


def _indexed(
    arguments: argparse.Namespace, made: dict[str, Any], said: dict[str, Any], lines: Sequence[str] = ()
) -> int:
    """Print what was done, and the index's recall."""
    from varalign.aligner.index_file import WANTED

    recalls = ", ".join(f"{value:.3f} by its {name}" for name, value in made["recall@10"].items())
    line = f"{made['index']}: recall@10 {recalls}; {made['lists_read']:,} of {made['lists']:,} lists are read"
    if min(made["recall@10"].values()) < WANTED:
        line += f" (below {WANTED}: the exact search, without --index, is as quick)"
    return answer(arguments, said | made, [*lines, line])
