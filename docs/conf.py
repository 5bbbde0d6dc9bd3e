"""Sphinx: the pages of this folder, with the API from the docstrings. `make docs` builds them, warnings as errors."""

from __future__ import annotations

import argparse

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from varalign import __version__
from varalign.cli.program import build_parser

project = "varalign"
author = copyright = "The varalign maintainers"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
default_role = "code"  # docstrings put names between single backticks, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"varalign {release}"
html_copy_source = False


class CommandHelp(Directive):
    """The help of every command, all options of `train` included, as the program prints it."""

    def run(self) -> list[nodes.Node]:
        """One section a command."""
        found: list[nodes.Node] = []
        (commands,) = (action.choices for action in build_parser()._actions if action.choices)
        for name, parser in commands.items():
            for words, one in (parts(name, parser)).items():
                section = nodes.section(ids=[nodes.make_id(f"varalign-{words}")])
                section += nodes.title(text=f"varalign {words}")
                section += nodes.literal_block(text=one.format_help(), language="text")
                found.append(section)
        return found


def parts(name: str, parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A command by its words; for one that has commands of its own, such as `data`, those."""
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    for action in parser._actions:
        if action.dest == "help_all":
            for rare, text in action.const:
                rare.help = text
            parser.epilog = None
    own = next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)
    return {name: parser} if own is None else {k: v for n, p in own.items() for k, v in parts(f"{name} {n}", p).items()}


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("command-help", CommandHelp)
