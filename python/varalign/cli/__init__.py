"""The command line: a file a command; `program` puts them together. No torch is imported before a command runs."""

from varalign.cli.program import main

__all__ = ["main"]
