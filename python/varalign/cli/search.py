"""`varalign search`: the images or the captions that fit a text or an image best."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from varalign.cli.arguments import (
    Searched,
    add_checkpoint,
    add_json,
    add_overwrite,
    add_split,
    answer,
    gallery_of,
    load,
    refuse_split,
)
from varalign.data.errors import DataError
from varalign.data.outputs import check_output_file
from varalign.data.terminal import printable


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("search", help="find the best images, or captions, for a text or an image")
    words = parser.add_argument(
        "words", nargs="+", metavar="[RUN] TEXT", help="run folder (default: the newest under runs/) and the text"
    )
    words.nargs = "*"  # with --image there may be none; nargs="*" from the start would show the usage twice in brackets
    parser.add_argument("--image", type=Path, metavar="FILE", help="search by this image instead of a text")
    parser.add_argument(
        "--find",
        choices=("images", "captions"),
        help="what is searched (default: images; with --image and without --images, captions)",
    )
    parser.add_argument("--top", type=int, default=5, metavar="K", help="number of results (default 5)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw the images found into this PNG too")
    add_checkpoint(parser, gallery=True)
    add_split(parser, "all", every=True)
    add_overwrite(parser)
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
    gallery = gallery_of(arguments)
    if gallery is not None:
        refuse_split(arguments)
    find = arguments.find or ("images" if with_text or gallery is not None else "captions")
    if arguments.sheet is not None:
        _check_sheet(arguments, find)
    query = text if with_text else arguments.image
    found = _search(arguments, gallery, query, find)
    if arguments.sheet is not None:
        from varalign.pictures.contact_sheet import write_sheet

        shown = [(Path(item["file"]), [f"{item['score']:.4f}  {item['image']}", item["caption"]]) for item in found]
        write_sheet(arguments.sheet, str(query), shown)
    lines = [printable(f"{item['score']:7.4f}  {item['image']}  {item['caption']}") for item in found]
    return answer(arguments, found, lines)


def _check_sheet(arguments: argparse.Namespace, find: str) -> None:
    if find != "images":
        raise DataError("--sheet shows images: it goes with --find images")
    if arguments.sheet.suffix.lower() != ".png":
        raise DataError(f"--sheet {arguments.sheet}: wanted a name ending in .png")
    if not arguments.sheet.parent.is_dir():
        raise DataError(f"--sheet {arguments.sheet}: there is no folder {arguments.sheet.parent}")
    check_output_file(arguments.sheet, overwrite=arguments.overwrite)


def _search(
    arguments: argparse.Namespace, gallery: Searched | None, query: str | Path, find: str
) -> list[dict[str, Any]]:
    """The results: `score`, `image` and `caption` of each, and the `file` of an image."""
    model = load(arguments)
    if gallery is None:
        search = model.search_images if find == "images" else model.search_captions
        return list(search(query, top=arguments.top, split=arguments.split))
    from varalign.aligner.folder_search import query_of

    vector = query_of(model, query)  # first: a file that is none is known before minutes of embedding
    opened = gallery.open(model, own=find == "captions")
    hits = opened.images(vector, arguments.top) if find == "images" else opened.texts(vector, arguments.top)
    return [
        {"score": round(hit.score, 4), "image": hit.name, "caption": hit.caption}
        | ({} if hit.image is None else {"file": str(opened.gallery.file(hit.image))})
        for hit in hits
    ]
