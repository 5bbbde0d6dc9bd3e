"""`varalign search`: the images of a run's data that are nearest a text, or the captions nearest an image."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from varalign.cli.arguments import add_checkpoint, add_json, add_split, answer, load
from varalign.data.errors import DataError
from varalign.data.terminal import printable


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("search", help="find the best images for a text, or the best captions for an image")
    words = parser.add_argument(
        "words", nargs="+", metavar="[RUN] TEXT", help="run folder (default: the newest under runs/) and the text"
    )
    words.nargs = "*"  # with --image there may be none; nargs="*" from the start would show the usage twice in brackets
    parser.add_argument("--image", type=Path, metavar="FILE", help="find captions for this image instead")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="number of results (default 5)")
    add_checkpoint(parser)
    add_split(parser, "all", every=True)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Search, and print a line for each result."""
    words, with_text = arguments.words, arguments.image is None
    if (with_text and not words) or (len(words) > 1 and not with_text):
        raise DataError("search takes [RUN] TEXT, or [RUN] --image FILE")
    named = not with_text or (Path(words[0]) / "config.json").is_file() or (len(words) > 1 and os.sep in words[0])
    arguments.run = Path(words[0]) if words and named else None
    text = " ".join(words[1:] if named else words)
    if with_text and named and len(words) == 1:
        raise DataError(f"search {words[0]}: a run, but no text to look for: search {words[0]} TEXT")
    if with_text and not text.strip():
        raise DataError("search TEXT: the text is empty; describe the picture to look for")
    if arguments.top < 1:
        raise DataError(f"--top is {arguments.top}, but must be at least 1")
    model = load(arguments)
    search, query = (model.search_images, text) if with_text else (model.search_captions, arguments.image)
    found = search(query, top=arguments.top, split=arguments.split)
    lines = [printable(f"{item['score']:7.4f}  {item['image']}  {item['caption']}") for item in found]
    return answer(arguments, found, lines)
