"""Cells of CSV files: what a spreadsheet would run is text, numbers are numbers."""

from __future__ import annotations

import csv
import io

import pytest
from varalign.runs.csv_table import csv_table


@pytest.mark.parametrize(
    ("cell", "kept"),
    [
        ('=HYPERLINK("http://x")', '\'=HYPERLINK("http://x")'),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\n=1", "'\n=1"),
        ("- a dog", "'- a dog"),
        ("-0.1234", "-0.1234"),
        ("-inf", "-inf"),
        (-3, "-3"),
        ('a = b, "c"\nd', 'a = b, "c"\nd'),
        ("", ""),
        (None, ""),
    ],
)
def test_cells(cell: object, kept: str) -> None:
    text = csv_table(["caption", "row"], [[cell, 7]]).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [["caption", "row"], [kept, "7"]]


def test_bytes_that_are_no_utf_8_stay() -> None:
    assert csv_table(["a"], [[b"\xff.jpg".decode("utf-8", "surrogateescape")]]) == b"a\n\xff.jpg\n"
