"""Disturbs runs in every way that real runs are disturbed, feeds them hostile files, and prints what became of it.

    python tests/faults/run.py                                       # everything, in its long form: about half an hour
    python tests/faults/run.py --kills 100 --path frozen             # one figure
    python tests/faults/run.py --images 10000 --data ../shared/data  # mutations of real pictures

Each figure is a number of cases and how many ended as they should; the process leaves with 1 where one did not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIGURES = ("kills", "reruns", "signals", "damage", "images", "caption_noise", "combinations")
FULL = {
    "kills": 100,
    "reruns": 100,
    "signals": 50,
    "damage": 1000,
    "images": 10_000,
    "caption_noise": 20_000,
    "combinations": 1000,
}


def main() -> int:
    """Run the figures that were asked for, all of them where none was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in FIGURES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    parser.add_argument("--disk", action="store_true", help="one refused call after another")
    parser.add_argument("--sizes", action="store_true", help="limits of file sizes in every command that writes")
    parser.add_argument("--captions", action="store_true", help="the table of captions files in hostile forms")
    parser.add_argument("--path", choices=["frozen", "scratch", "both"], default="both")
    parser.add_argument("--data", type=Path, help="folder of real pictures for --images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    counts = {name: getattr(arguments, name) for name in FIGURES}
    if not any(counts.values()) and not arguments.disk and not arguments.captions and not arguments.sizes:
        counts, arguments.disk, arguments.captions, arguments.sizes = FULL, True, True, True

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="varalign-faults-") as scratch:
        folder = Path(scratch)
        import inputs  # before torch: a process for each picture is cheap as long as the program is small

        if counts["images"]:
            _tell(found, "images", inputs.pictures, folder / "i", counts["images"], arguments.seed, arguments.data)
        if arguments.captions:
            _tell(found, "captions", inputs.captions, folder / "c")
        if counts["caption_noise"]:
            _tell(found, "caption noise", inputs.caption_noise, folder / "n", counts["caption_noise"], arguments.seed)
        runs = ("kills", "reruns", "signals", "damage", "combinations")
        if any(counts[name] for name in runs) or arguments.disk or arguments.sizes:
            _runs(found, counts, arguments, folder)
    if arguments.json:
        print(json.dumps(found))
    return int(any(part.get("failures") for part in found.values()))


def _runs(found: dict[str, Any], counts: dict[str, int | None], arguments: argparse.Namespace, folder: Path) -> None:
    import combinations
    import commands
    import disk
    import harness
    import kills
    import reruns

    harness.warm()
    jobs = {}
    if arguments.path != "scratch" or arguments.disk or counts["damage"]:
        jobs["frozen"] = harness.frozen_job(folder)
    if arguments.path != "frozen":
        jobs["scratch"] = harness.scratch_job(folder)
    for key, job in jobs.items():
        if arguments.path not in (key, "both"):
            continue
        if counts["kills"]:
            _tell(found, f"kills, {key}", kills.kill, job, folder / f"k-{key}", counts["kills"], arguments.seed)
        if counts["signals"]:
            _tell(found, f"signals, {key}", kills.ask, job, folder / f"s-{key}", counts["signals"], arguments.seed)
    if counts["reruns"]:
        _tell(found, "reruns", reruns.kill_and_rerun, folder / "r", counts["reruns"], arguments.seed)
    if arguments.disk:
        _tell(found, "disk", disk.refuse, jobs["frozen"], folder / "d")
        _tell(found, "disk, every command", disk.refuse_commands, folder / "e")
    if arguments.sizes:
        _tell(found, "file sizes", commands.small_files, folder / "f")
    if counts["combinations"]:
        _tell(found, "combinations", combinations.killed, folder / "o", counts["combinations"], arguments.seed)
    if counts["damage"]:
        _tell(found, "damage", disk.damage, jobs["frozen"], folder / "g", counts["damage"], arguments.seed)


def _tell(found: dict[str, Any], name: str, figure: Callable[..., dict[str, Any]], *given: Any) -> None:
    begin = time.monotonic()
    part = figure(*given)
    part["took"] = f"{time.monotonic() - begin:.0f} s"
    found[name] = part
    print(f"== {name}", file=sys.stderr)
    for key, value in part.items():
        if isinstance(value, list):
            print(f"  {key}: {len(value)}", file=sys.stderr)
            for row in value:
                print(f"    {row}", file=sys.stderr)
        else:
            print(f"  {key}: {value}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
