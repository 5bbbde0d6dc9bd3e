"""No error leaves the program as a traceback: every one is a line, with the exit code of its kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from varalign.cli import main
from varalign.cli.exit_codes import exit_code
from varalign.data.errors import DataError
from varalign.runs.run_errors import RunFailed
from varalign.runs.signals import Interrupted

NO_LATIN = UnicodeEncodeError("ascii", "né.jpg", 1, 2, "ordinal not in range(128)")
HALF = UnicodeEncodeError("utf-8", "n\udce9.jpg", 1, 2, "surrogates not allowed")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("a.csv\x1b[2J: bad\nnext"), 2, r"error: a.csv\x1b[2J: bad\nnext"),
        (FileNotFoundError(2, "No such file or directory", "a"), 2, "error: [Errno 2] No such file or directory: 'a'"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (RunFailed("no step was sound"), 1, "error: no step was sound"),
        (MemoryError("48 GB"), 1, "error: memory ran out; fewer images in a step, smaller images or fewer threads"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 1, "error: memory ran out; fewer images in a step"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 1, "error: memory ran out;"),
        (NO_LATIN, 2, "error: 'né.jpg' cannot be written in this environment's encoding, ascii: set PYTHONUTF8=1"),
        (HALF, 2, r"error: 'n\udce9.jpg': a name or text that is not valid Unicode"),
        (RecursionError("maximum recursion depth exceeded"), 2, "error: an input is nested too deeply"),
        (SafetensorError("HeaderTooLarge"), 2, "error: a safetensors file is damaged: HeaderTooLarge"),
        (KeyboardInterrupt(), 130, "SIGINT: stopped before the command was done"),
        (Interrupted(15), 143, "SIGTERM: stopped before the command was done"),
        (Interrupted(2, "SIGINT: step 3 is saved"), 130, "SIGINT: step 3 is saved"),
    ],
)
def test_every_kind_of_error_is_a_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert exit_code(error, []) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"varalign: {line}") and said.err.count("\n") == 1


def test_what_nobody_foresaw_asks_for_a_report_and_names_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a\x1bb")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("varalign.data.checks.dataset_check.check_dataset", broken)
    assert main(["data", "check", str(tmp_path)]) == 1
    (file,) = tmp_path.iterdir()
    assert capsys.readouterr().err == (
        rf"varalign: error: KeyError: 'a\x1bb'. This is a fault of varalign: please report it with the file {file}"
        "\n"
    )
    text = file.read_text()
    assert text.startswith(f"varalign data check {tmp_path}\nPython 3.") and "in broken" in text
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert main(["data", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and said.endswith("please report it with the lines above\n")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = f'"{sys.executable}" -X utf8=0 -m varalign {line}'
    return subprocess.run(
        words, shell=True, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_a_closed_standard_output_is_an_error(tmp_path: Path) -> None:
    for line in ("--version", "data sample small", "eval"):
        done = shell(f"{line} >&-", tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert (
            done.stderr
            == "varalign: error: standard output is closed, so no result could be printed: lead it to a file\n"
        )
    assert not any(tmp_path.iterdir()), "refused before anything was done"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_output_is_an_error(tmp_path: Path) -> None:
    done = shell("data check . > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "varalign: error: standard output cannot be written: No space left on device\n"


def test_closed_standard_error_and_a_reader_that_is_gone(tmp_path: Path) -> None:
    done = shell("eval nowhere 2>&-", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert shell("train --help-all | head -1", tmp_path).stderr == ""


def test_an_ascii_locale_shows_escapes(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("eval né", tmp_path, **locale)
    assert done.returncode == 2 and "no such run folder" in done.stderr and "Traceback" not in done.stderr
    done = shell("train --help-all", tmp_path, **locale)
    assert (done.returncode, done.stderr) == (0, "")
