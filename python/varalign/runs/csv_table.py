"""CSV files whose cells no spreadsheet runs as formulas."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = frozenset("=+-@\t\r\n")


def csv_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A table as UTF-8, lines ending in a newline; bytes of names that are no UTF-8 are kept.

    A spreadsheet runs a cell that begins with = + - @ or a control character: `=HYPERLINK(…)` in a caption. Such a
    text gets a leading apostrophe, which spreadsheets do not show. Numbers stay as they are.

    Source: OWASP, CSV Injection.
    """
    lines: list[str] = []
    # With "\r\n" as its line end, the writer quotes a cell that holds either character; with "\n", only that one.
    writer = csv.writer(_Lines(lines), lineterminator="\r\n")
    for row in (header, *rows):
        writer.writerow([_safe(cell) if isinstance(cell, str) and cell[:1] in _FORMULA else cell for cell in row])
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode("utf-8", "surrogateescape")


class _Lines:
    """Takes the lines of a CSV writer."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _safe(cell: str) -> str:
    """A text that begins like a formula: as it is where it is a number, else behind an apostrophe."""
    try:
        float(cell)
    except ValueError:
        return "'" + cell
    return cell
