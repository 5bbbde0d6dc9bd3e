"""Untrusted text is shown by a terminal, not obeyed."""

from __future__ import annotations

import io

import pytest
from varalign.data.terminal import print_lines, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two dogs in the snow", "two dogs in the snow"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\r\nb\tc\x00\x7f", r"a\r\nb\tc\x00\x7f"),
        ("\x9b31m C1", r"\x9b31m C1"),
        ("\u202egpj.exe\u2066\u2069", r"\u202egpj.exe\u2066\u2069"),
        ("one\u2028two\u2029\x85", r"one\u2028two\u2029\x85"),
        ("\udce9.jpg", r"\udce9.jpg"),
        ("می‌خواهم 👩‍🚒 é \u200fשלום", "می‌خواهم 👩‍🚒 é \u200fשלום"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_stay_lines_and_what_the_encoding_lacks_is_escaped() -> None:
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_lines("\x1b[1mchien –\nété 🐕", ascii_stream)
    assert ascii_stream.buffer.getvalue() == b"\\x1b[1mchien \\u2013\n\\xe9t\\xe9 \\U0001f415\n"  # type: ignore[attr-defined]


def test_an_output_that_is_not_there_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines("nothing", None)
    assert capsys.readouterr() == ("", "")
