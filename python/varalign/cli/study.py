"""`varalign study`: a grid of runs, from a file or from options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from varalign.cli.arguments import add_json, add_overwrite, add_reading, answer
from varalign.data.errors import DataError
from varalign.data.outputs import check_output_folder
from varalign.data.readers.reading import READING
from varalign.study.spec import AXES, CONTROLS, TUNED, Study, StudyError, make_study, read_study

EPILOG = f"""axes: {", ".join(AXES)}, or any option of `varalign train`. The controls {", ".join(CONTROLS)} are added
({TUNED} only where fixed_weight is tuned; a loss without two directions, such as siglip, takes only the fixed ones).
To go on with an interrupted study, run the same line again."""


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "study",
        help="train a grid of starts, schedules, data fractions, noise and seeds, and compare",
        description="Train a grid of runs, resumable cell by cell; print means with intervals and differences.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "file", metavar="FILE.toml", nargs="?", type=Path, help="study file; the command line takes precedence"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the study (default: studies/<name of the file>)"
    )
    parser.add_argument("--features", metavar="FILE", help="features file of frozen encoders")
    parser.add_argument("--data", metavar="DIR", help="folder of images and captions")
    add_reading(parser)
    for name, text in (
        ("axis", "axis and its values, such as `--axis fraction 1 10 100`"),
        ("option", "option of `varalign train` for every cell, such as `--option epochs 30`"),
        ("tune", "option tuned on dev and the values tried, such as `--tune lr 3e-4 1e-3`; replaces any other tuning"),
    ):
        parser.add_argument(f"--{name}", metavar=("NAME", "VALUE"), nargs="+", action="append", default=[], help=text)
    parser.add_argument("--seeds", metavar="N", type=int, help="number of seeds of each setting (default 5)")
    parser.add_argument("--tune-seeds", metavar="N", type=int, help="number of seeds of each tuning run (default 2)")
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=0,
        help="processes, each on one thread; 0: one for each core, a single one on CUDA (default 0)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps (default cpu)", default="cpu")
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="run the I-th of N parts of the conditions and report nothing: one job of a scheduler's array; all jobs "
        "share --out, and the same line without --part reports",
    )
    parser.add_argument("--report", action="store_true", help="run nothing; report the finished cells")
    add_overwrite(parser)
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the study that the arguments describe, and print its table."""
    study = from_arguments(arguments)
    if arguments.workers < 0:
        raise DataError(f"--workers is {arguments.workers}, but must be at least 0")
    part = _part(arguments)
    out = arguments.out or Path("studies") / (arguments.file.stem if arguments.file else "study")
    check_output_folder(out, ("cells", "*"), overwrite=arguments.overwrite)
    from varalign.study.runner import run_part, run_study

    if part is not None:
        run_part(study, out, *part, workers=arguments.workers, device=arguments.device)
        done = f"{out}: part {arguments.part} is done; when all parts are, the same line without --part reports"
        return answer(arguments, {"folder": str(out), "part": part[0], "parts": part[1]}, [done])
    report = run_study(study, out, workers=arguments.workers, device=arguments.device, report_only=arguments.report)
    if report.cells:
        lines = [report.table(), f"{report.folder}: results.csv and more"]
    else:
        lines = [f"{report.folder}: no cell is done yet; run the same line without --report"]
    return answer(arguments, report.as_dict(), lines)


def _part(arguments: argparse.Namespace) -> tuple[int, int] | None:
    if arguments.part is None:
        return None
    if arguments.report:
        raise DataError("--part runs cells and --report none: pass one of them")
    found = re.fullmatch(r"0*([0-9]{1,6})/0*([0-9]{1,6})", arguments.part)
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise DataError(f"--part {arguments.part}: wanted I/N with I from 1 to N, such as 1/4")
    return part


def from_arguments(arguments: argparse.Namespace) -> Study:
    """The study of a file with options over it, or of options alone.

    Raises:
        StudyError: naming the key.
    """
    values: dict[str, Any] = {}
    for name in ("features", "data", "tune_seeds"):
        if getattr(arguments, name) is not None:
            values[name] = getattr(arguments, name)
    for kind in ("axis", "option"):
        names = [name for name, *_ in getattr(arguments, kind)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise StudyError(f"--{kind} {twice} stands twice: say it once, with all of its values")
    axes = {name: [_value(word) for word in words] for name, *words in arguments.axis}
    if arguments.seeds is not None:
        if "seed" in axes:
            raise StudyError("--axis seed and --seeds both say which seeds there are: pass one of them")
        axes["seed"] = arguments.seeds  # type: ignore[assignment]
    if axes:
        values["axes"] = axes
    options = {name: getattr(arguments, name) for name in READING if getattr(arguments, name)}
    options |= {name: _one(name, words) for name, *words in arguments.option}
    if options:
        values["options"] = options
    if arguments.tune:
        values["tune"] = [{name: [_value(word) for word in words]} for name, *words in arguments.tune]
    if arguments.file is not None:
        return read_study(arguments.file, values)
    if not values:
        raise StudyError("wanted a study file, or --features FILE with --axis NAME VALUES")
    return make_study(values)


def _one(name: str, words: Sequence[str]) -> Any:
    if len(words) != 1:
        raise StudyError(f"--option {name} takes one value, got {len(words)}")
    return _value(words[0])


def _value(word: str) -> Any:
    """A word as TOML would have it: whole number, number, truth or text."""
    if word in ("true", "false"):
        return word == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
