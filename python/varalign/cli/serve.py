"""`varalign serve`: a page and an HTTP interface that search a folder of images."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Any

from varalign.cli.arguments import add_run, gallery_of, load
from varalign.data.errors import DataError, how_to_install
from varalign.data.terminal import print_lines
from varalign.runs.progress import to_stderr

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ANY = ("", "0.0.0.0", "::")


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("serve", help="a page, and an HTTP interface, that search a folder of images")
    add_run(parser, gallery=True)
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0: any that is free (default 8000)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: for other machines too (default 127.0.0.1)"
    )
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    for name in ("fastapi", "uvicorn", "multipart"):
        if importlib.util.find_spec(name) is None:
            raise DataError(f"serve needs {name}: {how_to_install('serve')}")
    gallery = gallery_of(arguments)
    if gallery is None:
        raise DataError(
            "serve: name the folder of images that is searched (--images DIR), or a gallery (--gallery FILE)"
        )
    from varalign.aligner.folder_search import query_of
    from varalign.aligner.serve.app import build_app
    from varalign.aligner.serve.server import listen, server_of

    with listen(arguments.host, arguments.port) as listening:  # before the images are opened, which takes longer
        model = load(arguments)
        query_of(model, "a picture")  # builds the text tower, so that the first query need not wait
        search = gallery.open(model, own=True)
        if arguments.host not in (*LOCAL, "::1"):
            to_stderr(f"--host {arguments.host}: whoever reaches this machine can search these images and see them")
        name = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        app = build_app(search, None if arguments.host in _ANY else LOCAL | {name.lower()})
        port = listening.getsockname()[1]
        print_lines(f"http://{'localhost' if arguments.host in _ANY else name}:{port}/", sys.stdout)
        to_stderr(f"{len(search.gallery.names):,} images of {search.gallery.folder}; Ctrl-C ends it")
        server_of(app).run([listening])
    return 0
