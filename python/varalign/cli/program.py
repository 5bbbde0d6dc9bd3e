"""The program: the parser of all commands, and what becomes of an error."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from varalign.cli import convert, data, diagnose, embed, evaluate, search, study, train, visualize
from varalign.data.errors import DataError

COMMANDS = (train, evaluate, visualize, embed, search, diagnose, data, convert, study)
"""A command is a file: its `add` adds the parser, whose handler runs the command and returns the exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like every other error of the program."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with code 2."""
        print(f"varalign: error: {message}\n  (`{self.prog} --help` lists the options)", file=sys.stderr)
        raise SystemExit(2)


class Version(argparse.Action):
    """Print the version and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from varalign import __version__

        print(f"varalign {__version__}")
        parser.exit()


class Terminated(BaseException):
    """SIGTERM came while no command handled it."""


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
    parser = build_parser()
    arguments, rest = parser.parse_known_args(dashed(sys.argv[1:] if argv is None else argv))
    if rest and hasattr(arguments, "words") and not any(word.startswith("-") for word in rest):
        arguments.words += rest  # `search RUN --top 3 "text"`: argparse takes positionals in one place only
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    handler: Callable[[argparse.Namespace], int] = arguments.handler
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return handler(arguments)
    except (DataError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        return _fail(error, 2)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt as error:  # training raises `Interrupted`, which knows the signal and what is saved
        print(f"varalign: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except Terminated:
        print("varalign: terminated", file=sys.stderr)
        return 143
    except Exception as error:
        if type(error).__module__.startswith("varalign."):  # its message says what to mend
            return _fail(error, getattr(error, "exit_code", 2))
        if isinstance(error, OSError):
            return _fail(error, 1)
        raise


def dashed(argv: Sequence[str]) -> list[str]:
    """Option names with dashes, whichever way they were written: `--use_pretrained=True` → `--use-pretrained=True`."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
    return words


def _terminated(*_: object) -> None:
    raise Terminated


def _fail(error: BaseException, code: int) -> int:
    print(f"varalign: error: {error}", file=sys.stderr)
    return code
