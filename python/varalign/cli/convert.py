"""`varalign convert`: other people's weights as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.cli.arguments import add_overwrite, answer


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "convert", help="copy the tensors of a .pt file or TorchScript archive to safetensors, running none of its code"
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT.safetensors", type=Path)
    add_overwrite(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print what was written."""
    from varalign.encoders.conversion import convert

    return answer(arguments, None, [str(convert(arguments.source, arguments.target, overwrite=arguments.overwrite))])
