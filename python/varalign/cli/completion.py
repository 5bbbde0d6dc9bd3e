"""`varalign completion`: a script that lets a shell complete commands, options, their choices, files and folders."""

from __future__ import annotations

import argparse
from typing import Any

from varalign.cli.arguments import answer

SHELLS = ("bash", "zsh", "tcsh")


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "completion",
        help="print a script with which a shell completes commands and options",
        description="Print a script with which a shell completes commands, options and their choices. "
        'For bash: eval "$(varalign completion bash)" in ~/.bashrc.',
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    places = {"FILE": shtab.FILE, "PATH": shtab.FILE, **dict.fromkeys(("DIR", "FOLDER", "RUN"), shtab.DIRECTORY)}

    def complete(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for one in action.choices.values():
                    complete(one)
            elif action.metavar in places:
                action.complete = places[action.metavar]  # type: ignore[attr-defined]
            elif isinstance(action.metavar, str) and action.metavar.startswith("{"):  # checked later, by the option
                action.choices = action.metavar.strip("{}").split(",")

    complete(arguments.program)
    return answer(arguments, None, [shtab.complete(arguments.program, arguments.shell)])
