"""The harness that every benchmark shares: contenders side by side in one process, and no row without agreement.

A script makes its contenders with one set-up function, hands them to `compare`, and lets `main` print the rows:

    from harness import Contender, compare, main

    def subjects(options):
        texts = ["two dogs play in the snow"] * 1000
        yield compare(
            "upper case, 1,000 captions",
            [
                Contender("varalign", lambda: [text.upper() for text in texts], ours=True),
                Contender("a loop", lambda: slow_upper(texts)),
            ],
            work=len(texts), unit="captions/s", agree=lambda ours, theirs: ours == theirs, packages=["numpy"],
        )

    if __name__ == "__main__":
        main(__doc__, subjects)

Every round runs every contender once, in turn and in an order that rotates, so that a noisy second hits all of them.
A row holds the median with the 20th and 80th percentile of the rounds. `ratio` is ours / theirs, of the median over the
rounds of the quotient within a round. On a shared machine wall time measures the neighbours too: a row has both figures
by processor time as well (all threads of the process together), and the quickest round. Contenders whose results do not
agree with ours are rows with `agrees` false, and `main` ends with exit code 1 where there is one, unless the contender
says that it is known to differ (`differs`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One implementation: what runs, whether it is ours, and what must happen before and after the clock.

    `run` does the measured work and returns its result, which the equality check gets. `prepare` runs before each
    measurement, unmeasured. `synchronize` runs inside the measurement (a GPU's queue must be empty at both ends).
    `differs` explains a contender that is known not to compute the same thing; its row stays, marked so.
    `reference` marks the truth that the others are compared with; without one, that is ours.
    """

    name: str
    run: Callable[[], Any]
    ours: bool = False
    prepare: Callable[[], object] | None = None
    synchronize: Callable[[], object] | None = None
    differs: str = ""
    reference: bool = False


@dataclass(frozen=True)
class Row:
    """One measured figure; `low` and `high` are the 20th and 80th percentile; `ratio` is ours / theirs (ours: 1).

    `processor` and `processor_ratio` are `value` and `ratio` by processor time, `best` the figure of the quickest round
    by wall time; None where nothing was timed.
    """

    subject: str
    contender: str
    value: float
    unit: str
    ratio: float
    agrees: bool
    low: float
    high: float
    rounds: int
    note: str = ""
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    processor: float | None = None
    processor_ratio: float | None = None
    best: float | None = None


def machine() -> str:
    """The processor, the cores this process may use, the memory and, where torch is loaded and sees one, the GPU."""
    cpu, memory = platform.processor() or platform.machine(), ""
    info, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    if meminfo.is_file():
        memory = f", {int(meminfo.read_text().split()[1]) / (1 << 20):.0f} GiB"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{cpu}, {cores} cores{memory}{gpu}, {platform.system()} {platform.machine()}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python, varalign and the named packages (distribution names); absent ones are left out."""
    found = {"python": platform.python_version()}
    if (core := sys.modules.get("varalign._core")) is not None:
        found["varalign"] = str(core.__version__)
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, linear between neighbours."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)


def seconds_of(contender: Contender) -> tuple[float, float]:
    """The wall time and the processor time of one run, queues drained at both ends."""
    if contender.prepare is not None:
        contender.prepare()
    if contender.synchronize is not None:
        contender.synchronize()
    start, processor = time.perf_counter(), time.process_time()
    contender.run()
    if contender.synchronize is not None:
        contender.synchronize()
    return time.perf_counter() - start, time.process_time() - processor


def compare(
    subject: str,
    contenders: Sequence[Contender],
    *,
    work: float,
    unit: str,
    agree: Callable[[Any, Any], bool],
    rounds: int = 7,
    warm_up: int = 1,
    packages: Iterable[str] = (),
) -> list[Row]:
    """Measure the contenders in interleaved rounds.

    `work` is what one run does, in the numerator of `unit` ("captions/s": captions a run); a unit without "/s" is taken
    as a time, and `value` is then seconds / `work`. `agree(truth, result)` says whether two results are the same; the
    truth is the result of the contender marked `reference`, else of ours. Exactly one contender is `ours`.
    """
    mine = [index for index, contender in enumerate(contenders) if contender.ours]
    if len(mine) != 1:
        raise ValueError(f"{subject}: exactly one contender must be ours, got {len(mine)}")
    truths = [index for index, contender in enumerate(contenders) if contender.reference] or mine
    results = []
    for contender in contenders:
        if contender.prepare is not None:
            contender.prepare()
        results.append(contender.run())
    truth = results[truths[0]]
    agrees = [bool(index == truths[0] or agree(truth, result)) for index, result in enumerate(results)]
    del results, truth
    for contender in contenders:
        for _ in range(warm_up):
            seconds_of(contender)
    times: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for round_number in range(rounds):
        for turn in range(len(contenders)):
            index = (turn + round_number) % len(contenders)
            times[index].append(seconds_of(contenders[index]))

    def figure(seconds: float) -> float:
        return work / max(seconds, 1e-9) if "/s" in unit else seconds / work

    def figures_of(index: int, clock: int) -> list[float]:
        return [figure(both[clock]) for both in times[index]]

    def quotient(index: int, clock: int) -> float:
        """Ours / theirs within a round, the median over the rounds."""
        pairs = zip(figures_of(mine[0], clock), figures_of(index, clock), strict=True)
        return statistics.median(own / max(other, 1e-12) for own, other in pairs)

    rows = []
    for index, contender in enumerate(contenders):
        figures = figures_of(index, 0)
        rows.append(
            Row(
                subject,
                contender.name,
                statistics.median(figures),
                unit,
                quotient(index, 0),
                agrees[index],
                percentile(figures, 0.2),
                percentile(figures, 0.8),
                rounds,
                contender.differs,
                machine(),
                versions(packages),
                statistics.median(figures_of(index, 1)),
                quotient(index, 1),
                max(figures) if "/s" in unit else min(figures),
            )
        )
    return rows


def single(
    subject: str,
    contender: str,
    value: float,
    unit: str,
    *,
    ratio: float = 1.0,
    agrees: bool = True,
    note: str = "",
    packages: Iterable[str] = (),
) -> Row:
    """A row for a figure that was measured in another way (bytes, counted instructions, a share)."""
    return Row(subject, contender, value, unit, ratio, agrees, value, value, 1, note, machine(), versions(packages))


def peak_memory(*, anew: bool = False) -> int:
    """Largest resident set of this process in bytes; `anew`: Linux forgets it first, and starts from what is there."""
    forget = Path("/proc/self/clear_refs")
    if anew and forget.exists():
        forget.write_text("5")
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def judged(subject: str, what: str, value: float, target: float, packages: Iterable[str] = ()) -> Row:
    """A row for a quotient that should reach a target, whose note says whether it does."""
    verdict = "pass" if value >= target else "MISS"
    return single(subject, what, value, "times", note=f"target {target:g}: {verdict}", packages=packages)


def print_json(rows: Iterable[Row]) -> None:
    """Print rows as one JSON list, as `--json` of every script does."""
    print(json.dumps([asdict(row) for row in rows], indent=1))


def table(rows: Sequence[Row]) -> str:
    """The rows of one subject as aligned text: by the wall, then by processor time."""
    name_width = max(len(row.contender) for row in rows)
    lines = [rows[0].subject]
    for row in rows:
        note = ("" if row.agrees else "  DIFFERS") + (f"  ({row.note})" if row.note else "")
        processor = ""
        if row.processor is not None and row.processor_ratio is not None:
            processor = f"  processor {row.processor:,.6g} ({row.processor_ratio:.3g})"
        lines.append(
            f"  {row.contender:<{name_width}}  {row.value:>14,.6g} {row.unit}"
            f"  [{row.low:,.6g} to {row.high:,.6g}]  ours/theirs {row.ratio:.3g}{processor}{note}"
        )
    return "\n".join(lines)


def main(
    description: str | None,
    subjects: Callable[[argparse.Namespace], Iterable[Sequence[Row]]],
    options: Callable[[argparse.ArgumentParser], object] | None = None,
) -> None:
    """Run a benchmark script: `--json` prints one JSON list of rows, `--rounds N` sets the rounds.

    `options` adds the script's own arguments to the parser. Tables go to standard error under `--json`, else to
    standard output. Exit code 1 where a row that should agree does not.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: 7)")
    parser.add_argument("--out", type=Path, help="write the rows as JSON here, after every subject anew")
    if options is not None:
        options(parser)
    arguments = parser.parse_args()
    rows: list[Row] = []
    out = sys.stderr if arguments.json else sys.stdout
    for group in subjects(arguments):
        rows.extend(group)
        print(table(group), file=out, flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if rows and not arguments.json:
        print(f"{rows[0].machine}\n{', '.join(f'{name} {number}' for name, number in rows[0].versions.items())}")
    if arguments.json:
        print_json(rows)
    wrong = [f"{row.subject}: {row.contender}" for row in rows if not row.agrees and not row.note]
    if wrong:
        print(f"{parser.prog}: error: results do not agree: {'; '.join(wrong)}", file=sys.stderr)
        raise SystemExit(1)
