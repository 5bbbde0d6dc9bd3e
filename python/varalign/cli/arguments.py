"""The arguments that several commands share, and how a command answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from varalign.cli.exit_codes import OutputError
from varalign.data.errors import DataError
from varalign.data.ranks import world
from varalign.data.readers.reading import READING, Reading
from varalign.data.terminal import print_lines
from varalign.data.waiting import waiting
from varalign.options.fields import OPTIONS
from varalign.options.recipe import described
from varalign.runs.json_text import json_text
from varalign.runs.progress import to_stderr


def truth(text: str) -> bool:
    """`True`, `yes`, `1`, … or `False`, `no`, `0`, …

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if text.lower() in {"true", "yes", "on", "1"}:
        return True
    if text.lower() in {"false", "no", "off", "0"}:
        return False
    raise argparse.ArgumentTypeError(f"takes True or False, not {text!r}")


def truth_or_word(text: str) -> bool | str:
    """`truth` of the words that it knows; any other word as it is."""
    try:
        return truth(text)
    except argparse.ArgumentTypeError:
        return text


def add_option(parser: Any, name: str) -> argparse.Action:
    """Add an option of `varalign train`, with its own type, help and default, to that command or to another."""
    option = OPTIONS[name]
    words = "{" + ",".join(option.choices) + "}" if option.choices else ""
    given: dict[str, Any] = {"dest": name, "help": help_of(name)}
    if parser.argument_default is None:  # another command: `train` takes only what is said from the command line
        given["default"] = option.default
        if option.type is bool:  # without a value, which could be a word of `search`
            return parser.add_argument(option.flag, action="store_true", **given)
    if option.type is not bool and option.bare is None:
        return parser.add_argument(option.flag, type=option.type, metavar=words or option.metavar, **given)
    parser.add_argument("--no-" + option.flag[2:], dest=name, action="store_false", help=argparse.SUPPRESS)
    const, kind = (True, truth) if option.bare is None else (option.bare, truth_or_word)
    return parser.add_argument(option.flag, nargs="?", const=const, type=kind, metavar=words or "BOOL", **given)


def help_of(name: str) -> str:
    """An option's help text with its default."""
    option = OPTIONS[name]
    default: Any = described(name) if option.recipe else option.default
    if default is not None and default is not False:
        shown = f"{default:g}" if isinstance(default, float) else default
        return f"{option.help} (default {shown})".replace("%", "%%")
    return option.help.replace("%", "%%")


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add where a command computes and what it does with a data folder."""
    for name in ("skip_missing", "device", "threads", "cache"):
        add_option(parser, name)


def add_reading(parser: Any, *, gallery: bool = False) -> None:
    """Add how a data folder is read; or, where the command takes one, a gallery (see `gallery_of`)."""
    for name in READING:
        action = add_option(parser, name)
        if gallery and name in _GALLERY:
            action.help = _GALLERY[name]


_GALLERY = {
    "images": "any folder of images, with or without captions, instead of the run's own",
    "captions": "with --images: file with captions of these images (relative to here, else to their folder)",
}


@dataclass(frozen=True)
class Searched:
    """What a command searches instead of the run's own data: a folder of images, or a gallery file.

    Attributes:
        folder: of the images; with a file, None: where they lay when it was written.
        reading: how the folder and its captions are read.
        file: the gallery file; None: the folder's store is brought up to date. indexed: whether its index is used.
    """

    folder: Path | None
    reading: Reading
    file: Path | None
    indexed: bool

    def open(self, model: Any, *, own: bool) -> Any:
        """The search over it (`FolderSearch`); `own`: over captions of the run's own data too."""
        from varalign.aligner.folder_search import open_file_search, open_search

        if self.file is None:
            assert self.folder is not None
            return open_search(model, self.folder, self.reading, to_stderr, own=own)
        links = self.reading.follow_links
        return open_file_search(
            model, self.file, self.folder, to_stderr, own=own, follow_links=links, index=self.indexed
        )


def gallery_of(arguments: argparse.Namespace) -> Searched | None:
    """What `--images` or `--gallery` names; the run's own data are then read as in training."""
    if arguments.index and not arguments.gallery and not (arguments.images and getattr(arguments, "out", None)):
        raise DataError(f"--index {arguments.index} goes with a gallery file: name it by --gallery FILE")
    if arguments.images is None and arguments.gallery is None:
        return None
    reading = Reading.of(arguments)
    if arguments.gallery is not None and reading.captions is not None:
        raise DataError("--captions does not go with --gallery, whose images have none: leave one of them out")
    for name in READING:
        setattr(arguments, name, getattr(Reading(), name))
    folder = None if reading.images is None else Path(reading.images)
    return Searched(folder, replace(reading, images=None), arguments.gallery, arguments.index is not None)


def refuse_split(arguments: argparse.Namespace) -> None:
    """Refuse `--split` where what is searched has none."""
    if arguments.split != "all":
        raise DataError("--split: the images of a folder have no splits; leave it out, or leave out --images")


INDEXES = ("faiss",)
"""Kinds of approximate index that a gallery file may have."""


def add_gallery(parser: argparse.ArgumentParser) -> None:
    """Add a gallery file, and its index."""
    parser.add_argument(
        "--gallery",
        type=Path,
        metavar="FILE",
        help="gallery file, written by `embed --images DIR --out FILE`, instead of a folder; --images then says where "
        "its images lie now",
    )
    parser.add_argument(
        "--index",
        choices=INDEXES,
        help="with a gallery file: its approximate index, which `embed` makes, for millions of images (extra `index`)",
    )


def add_run(parser: argparse.ArgumentParser, *, gallery: bool = False) -> None:
    """Add the run that a command works on, and its places."""
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="run folder (default: the newest under runs/)")
    add_checkpoint(parser, gallery=gallery)


def add_checkpoint(parser: argparse.ArgumentParser, *, gallery: bool = False) -> None:
    """Add which weights of a run are taken, on which data, and where."""
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best, last or step-N (default best)")
    parser.add_argument("--data", metavar="DIR", type=Path, help="another data folder than the run's own")
    add_reading(parser, gallery=gallery)
    if gallery:
        add_gallery(parser)
    add_places(parser)


def add_split(parser: argparse.ArgumentParser, default: str, *, every: bool = False) -> None:
    """Add which part of the data is used."""
    names = ["train", "dev", "test", *(["all"] if every else [])]
    parser.add_argument("--split", default=default, choices=names, help=f"part of the data (default {default})")


def add_seed(parser: argparse.ArgumentParser, of: str) -> None:
    """Add a seed, 0 by default."""
    parser.add_argument("--seed", type=int, default=0, metavar="S", help=f"seed of {of} (default 0)")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")


def add_json(parser: Any) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON value")


def places(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_reading` and `add_places` added, as keyword arguments."""
    found = {name: getattr(arguments, name) for name in ("skip_missing", "device", "threads", "cache")}
    return {**found, "reading": replace(Reading.of(arguments), cache=None)}


def load(arguments: argparse.Namespace) -> Any:
    """The trained model of a run, the newest if none is named."""
    from varalign.runs.folder import RunFolder

    path = arguments.run
    if path is None:
        path = RunFolder.newest().path
        to_stderr(f"run: {path} (the newest)")
    with waiting("loading the model"):
        from varalign.aligner import load as loading

        same = getattr(arguments, "same_caption", None)
        return loading.load(
            path, checkpoint=arguments.checkpoint, data=arguments.data, same_caption=same, **places(arguments)
        )


def answer(arguments: argparse.Namespace, value: Any, lines: Iterable[str]) -> int:
    """Print a command's result on standard output, as JSON or in lines; returns exit code 0.

    Of several processes only the writer prints.
    """
    if not world().is_writer:
        return 0
    text = json_text(value) if getattr(arguments, "json", False) else "\n".join(lines)
    try:
        print_lines(text, sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from None
    return 0
