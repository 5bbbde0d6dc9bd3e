"""What becomes of an error: one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress

from varalign.data.errors import DataError
from varalign.data.terminal import print_lines, printable, without_colours

WRONG_USE = (DataError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


class OutputError(RuntimeError):
    """Standard output is closed, or what it leads to is full."""

    exit_code = 1


def exit_code(error: BaseException, argv: Sequence[str]) -> int:
    """Print what happened and return the program's exit code.

    Args:
        error: what ended the command.
        argv: the command line, for the report of a fault of varalign.

    Returns:
        2 for wrong use or input; 130 or 143 for an interruption; 1 for everything else.
    """
    if getattr(error, "told", False):  # by another process of this command
        return getattr(error, "exit_code", 2 if isinstance(error, WRONG_USE) else 1)
    if isinstance(error, KeyboardInterrupt):  # `Interrupted` knows its signal; in training it says what is saved
        message = str(error) or f"{getattr(error, 'name', 'SIGINT')}: stopped before the command was done"
        print_lines(f"varalign: {printable(message)}", sys.stderr)
        return getattr(error, "exit_code", 130)
    if isinstance(error, (BrokenPipeError, OutputError)):
        _drop_output()
        return 1 if isinstance(error, BrokenPipeError) else fail(str(error), 1)  # the pipe's reader has seen enough
    if isinstance(error, WRONG_USE):
        return fail(str(error), 2)
    if type(error).__module__.startswith("varalign."):  # an error of ours: its message says what to mend
        return fail(str(error), getattr(error, "exit_code", 2))
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error):
        return fail(f"memory ran out; fewer images in a step, smaller images or fewer threads need less: {error}", 1)
    if isinstance(error, UnicodeEncodeError):
        return fail(_encoding(error), 2)
    if isinstance(error, RecursionError):
        return fail(f"an input is nested too deeply: {error}", 2)
    if type(error).__name__ == "SafetensorError":
        return fail(f"a safetensors file is damaged: {error}", 2)
    if isinstance(error, OSError):
        return fail(without_colours(str(error)), 1)
    return fail(
        f"{type(error).__name__}: {without_colours(str(error))}. This is a fault of varalign: {_report(error, argv)}", 1
    )


def fail(message: str, code: int) -> int:
    """Print the one line of an error; returns `code`."""
    print_lines(f"varalign: error: {printable(message)}", sys.stderr)
    return code


def _encoding(error: UnicodeEncodeError) -> str:
    text = error.object[:80]
    if error.encoding.startswith("utf"):
        return f"{text!r}: a name or text that is not valid Unicode; rename it"
    return (
        f"{text!r} cannot be written in this environment's encoding, {error.encoding}: set PYTHONUTF8=1, or a locale "
        "with UTF-8 such as LC_ALL=C.UTF-8"
    )


def _report(error: BaseException, argv: Sequence[str]) -> str:
    """Put the traceback into a file, and say where it is."""
    versions = f"Python {platform.python_version()}, {platform.platform()}"
    for name in ("varalign", "torch"):
        versions += f", {name} {getattr(sys.modules.get(name), '__version__', 'not imported')}"
    text = f"varalign {' '.join(argv)}\n{versions}\n\n{''.join(traceback.format_exception(error))}"
    try:
        with tempfile.NamedTemporaryFile("wb", prefix="varalign-", suffix=".txt", delete=False) as file:
            file.write(text.encode(errors="backslashreplace"))
    except OSError:
        print_lines(text, sys.stderr)
        return "please report it with the lines above"
    return f"please report it with the file {file.name}"


def _drop_output() -> None:
    """Lead standard output nowhere, so that Python does not try again at its end to write what could not be written."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
