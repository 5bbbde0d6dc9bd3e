"""`varalign data`: check, measure or convert a data folder, or write the built-in sample."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.cli.arguments import add_json, add_option, add_overwrite, add_reading, add_seed, answer
from varalign.data.errors import DataError
from varalign.data.outputs import check_output_file
from varalign.data.readers.reading import Reading, of_hub
from varalign.data.shards.shard_list import names_shards
from varalign.runs.progress import to_stderr

FORMS = ("parquet", "imagefolder", "webdataset")


def add(commands: Any) -> None:
    """Add the commands to the program."""
    parser = commands.add_parser("data", help="check, measure or convert a data folder, or write the built-in sample")
    parts = parser.add_subparsers(metavar="WHAT", required=True, parser_class=type(parser))
    for add_part in (_add_check, _add_stats, _add_convert, _add_sample):
        add_part(parts)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", type=Path, nargs="?", help="folder of images and captions, or tar shards"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="the same, as other commands name it")


def _add_check(parts: Any) -> None:
    check = parts.add_parser("check", help="report what is there, missing, unreadable, duplicated or suspicious")
    _add_folder(check)
    add_reading(check)
    for name in ("threads", "skip_missing", "cache"):
        add_option(check, name)
    check.add_argument(
        "--near-duplicates",
        action="store_true",
        help="compare every image with every other by a perceptual hash, and count those in two splits",
    )
    check.add_argument(
        "--differing-bits",
        type=int,
        default=24,
        metavar="N",
        help="bits of 256 in which the hashes of near-duplicates differ at most (default 24)",
    )
    check.add_argument("--features", type=Path, metavar="FILE", help="features file: compare its images by cosine too")
    check.add_argument("--page", type=Path, metavar="FILE", help="write an HTML page with the pairs side by side")
    add_overwrite(check)
    add_json(check)
    check.set_defaults(handler=run_check)


def _add_stats(parts: Any) -> None:
    stats = parts.add_parser("stats", help="measure pixels, image sizes, caption lengths and the vocabulary")
    _add_folder(stats)
    stats.add_argument(
        "--draw",
        type=int,
        default=0,
        metavar="N",
        help="number of training images read, drawn by seed; 0: all (default)",
    )
    stats.add_argument("--size", type=int, default=224, metavar="S", help="side of the square of pixels (default 224)")
    stats.add_argument("--bert", type=Path, metavar="FOLDER", help="a BERT model's folder, for lengths in its tokens")
    add_seed(stats, "the choice of images and of the split")
    add_reading(stats)
    for name in ("threads", "skip_missing", "cache"):
        add_option(stats, name)
    add_json(stats)
    stats.set_defaults(handler=run_stats)


def _add_convert(parts: Any) -> None:
    convert = parts.add_parser(
        "convert",
        help="write a data set, in whatever form it is, as one Parquet file, as a folder that `datasets` reads, or as "
        "tar shards",
        description="Write a data set, in whatever form it is, as one Parquet file (extra `parquet`), as a folder of "
        "the form `imagefolder` of the library `datasets`, or as a folder of tar shards of the form of `webdataset`, "
        "each with its index. Images keep their bytes.",
    )
    _add_folder(convert)
    convert.add_argument(
        "--to", required=True, choices=FORMS, help="one file; a folder with train, validation, test; a folder of shards"
    )
    convert.add_argument("--out", type=Path, required=True, metavar="PATH", help="the file or folder to write")
    convert.add_argument(
        "--shard-size",
        type=int,
        default=10_000,
        metavar="N",
        help="with --to webdataset: images in a shard, at most (default 10000)",
    )
    add_overwrite(convert)
    add_seed(convert, "splits that are drawn")
    add_reading(convert)
    for name in ("skip_missing", "cache"):
        add_option(convert, name)
    add_json(convert)
    convert.set_defaults(handler=run_convert)


def _add_sample(parts: Any) -> None:
    sample = parts.add_parser("sample", help="write the built-in data set: drawn scenes with five captions each")
    sample.add_argument("folder", metavar="DIR", type=Path)
    add_seed(sample, "the scenes")
    sample.set_defaults(handler=run_sample)


def run_check(arguments: argparse.Namespace) -> int:
    """Print what is at fault; exit code 1 where something is."""
    from varalign.data.checks.dataset_check import check_dataset

    folder, page = _folder(arguments), arguments.page
    if not arguments.near_duplicates and (page is not None or arguments.features is not None):
        raise DataError("--page and --features belong to --near-duplicates")
    if page is not None:
        check_output_file(page, overwrite=arguments.overwrite)
    options = {
        name: getattr(arguments, name) for name in ("near_duplicates", "differing_bits", "features", "skip_missing")
    }
    report = check_dataset(folder, reading=Reading.of(arguments), threads=arguments.threads or None, **options)
    if page is not None and report.near_duplicates is not None:
        from varalign.pictures.near_duplicates_page import write_near_duplicates_page

        write_near_duplicates_page(page, folder.resolve().name, report.near_duplicates)
    answer(arguments, report.as_dict(), report.lines())
    return 1 if report.faults else 0


def run_stats(arguments: argparse.Namespace) -> int:
    """Print the measurements."""
    from varalign.data.checks.summary import summarise

    options = {name: getattr(arguments, name) for name in ("size", "bert", "seed", "threads", "skip_missing")}
    summary = summarise(_folder(arguments), images=arguments.draw, reading=Reading.of(arguments), **options)
    return answer(arguments, summary.as_dict(), summary.lines())


def run_convert(arguments: argparse.Namespace) -> int:
    """Convert, and print what was written."""
    from varalign.data.converted import check_target, convert_dataset
    from varalign.data.datasets import load_dataset

    folder, form, out = _folder(arguments), arguments.to, arguments.out
    if arguments.shard_size < 1:
        raise DataError(f"--shard-size {arguments.shard_size}: wanted at least 1")
    check_target(form, out, overwrite=arguments.overwrite)
    options = {"seed": arguments.seed, "skip_missing": arguments.skip_missing, "reading": Reading.of(arguments)}
    dataset = load_dataset(folder, **options)
    for note in dataset.notes:
        to_stderr(note)
    written = convert_dataset(dataset, form, out, shard_size=arguments.shard_size)
    lines = [f"{out}: {written['images']:,} images, {written['captions']:,} captions"]
    if written["left_out"]:
        lines.append(f"{written['left_out']:,} images in no split left out; --to parquet or webdataset keeps them")
    return answer(arguments, {"out": str(out), **written}, lines)


def run_sample(arguments: argparse.Namespace) -> int:
    """Write the sample, and print where."""
    from varalign.data.sample import write_sample

    return answer(arguments, None, [str(write_sample(arguments.folder, seed=arguments.seed))])


def _folder(arguments: argparse.Namespace) -> Path:
    if (arguments.folder is None) == (arguments.data is None):
        raise DataError("data takes one folder: DIR, or --data DIR")
    folder: Path = arguments.folder or arguments.data
    if names_shards(folder):
        return folder
    if folder.is_file():
        raise DataError(f"{folder}: a file; pass its folder instead, and --captions {folder.name}")
    if not folder.is_dir() and not of_hub(folder):
        raise DataError(f"{folder}: no such folder; wanted one with captions.txt and Images/")
    return folder
