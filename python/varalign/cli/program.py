"""The program: the parser of all commands, and `main`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from varalign.cli import completion, convert, data, diagnose, embed, export, search, serve, study, train, visualize
from varalign.cli import eval as evaluate
from varalign.cli.exit_codes import OutputError, exit_code, fail
from varalign.data.ranks import joined, said_by_launcher
from varalign.data.terminal import print_lines
from varalign.runs.signals import StopSignals

COMMANDS = (train, evaluate, visualize, embed, search, serve, export, diagnose, data, convert, study, completion)
"""A command is a file: its `add` adds the parser, whose handler runs the command and returns the exit code."""

OVER_RANKS = {command.run for command in (train, evaluate, embed, diagnose, visualize)}
"""Handlers that several processes, started by torchrun, work on together."""


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and whose errors look like every other error of the program."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with code 2; of several processes only the first one prints."""
        if said_by_launcher() > 1 and os.environ["RANK"] != "0":
            raise SystemExit(2)
        fail(message, 2)
        print_lines(f"  (`{self.prog} --help` lists the options)", sys.stderr)
        raise SystemExit(2)


class Version(argparse.Action):
    """Print the version and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from varalign import __version__

        print_lines(f"varalign {__version__}", sys.stdout)
        parser.exit()


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="varalign",
        description="Image-text alignment from few pairs, with a loss that is re-scheduled at every step.",
    )
    parser.add_argument("--version", action=Version, nargs=0, default=argparse.SUPPRESS, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the words after the program's name; the process's own if None.

    Returns:
        The exit code: 0 done; 1 it ran and failed, or a check found faults; 2 wrong use or input; 130 or 143
        interrupted.
    """
    # Idle threads of OpenMP sleep. By default they spin for each other, which doubles the time of a run beside another
    # program that uses the cores. Results are the same; the setting counts before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--"]:  # `torchrun -m varalign -- train`: some launchers pass it on
        words = words[1:]
    if sys.stderr is None:  # started with `2>&-`: libraries write to it, and the next file opened would take its place
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        with StopSignals():
            if sys.stdout is None:  # started with `>&-`
                raise OutputError("standard output is closed, so no result could be printed: lead it to a file")
            return run(words)
    except (Exception, KeyboardInterrupt) as error:
        return exit_code(error, words)


def run(words: Sequence[str]) -> int:
    """Parse a command line and run its command; returns the exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(dashed(words))
    if rest and hasattr(arguments, "words") and not any(word.startswith("-") for word in rest):
        arguments.words += rest  # `search RUN --top 3 "text"`: argparse takes positionals in one place only
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.program = parser  # which `completion` reads
    handler: Callable[[argparse.Namespace], int] = arguments.handler
    if said_by_launcher() == 1:
        return handler(arguments)
    if handler not in OVER_RANKS:
        parser.error("this command runs in one process: start it without torchrun, or without the variable WORLD_SIZE")
    with joined():
        return handler(arguments)


def dashed(argv: Sequence[str]) -> list[str]:
    """Option names with dashes, whichever way they were written: `--use_pretrained=True` → `--use-pretrained=True`."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
    return words
