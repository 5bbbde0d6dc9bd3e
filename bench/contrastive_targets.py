"""What the contrastive loss must reach, checked against the cells that were measured; and the picture of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import Row

MIB = 1 << 20
EAGER = "open_clip ClipLoss"
CHUNKED = "row chunks, checkpointed"
# Holding a whole matrix; every other peer is linear in memory.
MATRICES = (EAGER, "shared logits", "open_clip ClipLoss, compiled", "shared logits, compiled")


@dataclass
class Cell:
    """What was measured at one size: rows of forward and backward, peak bytes, errors, and who is missing and why."""

    n: int
    d: int
    dtype: str
    rows: dict[str, Row] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unit_seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"N={self.n:,} D={self.d} {self.dtype}"

    @property
    def returned(self) -> int:
        """Bytes of the two returned gradients."""
        return 2 * self.n * self.d * (4 if self.dtype == "float32" else 2)

    def fastest(self, *, linear: bool) -> Row | None:
        """The fastest peer that is not ours, of those linear in memory or of those with a matrix."""
        rows = [
            row
            for name, row in self.rows.items()
            if not name.startswith("varalign") and (name not in MATRICES) == linear and row.agrees
        ]
        return min(rows, key=lambda row: row.value, default=None)

    def public(self) -> tuple[list[str], list[str]]:
        """The public kernels that were measured and agree, and those that were not, each with the reason."""

        def known(name: str) -> bool:
            return name.startswith("varalign") or name in (*MATRICES, CHUNKED)

        measured = [name for name, row in self.rows.items() if not known(name) and row.agrees]
        differing = [f"{name}: differs" for name, row in self.rows.items() if not known(name) and not row.agrees]
        missing = [f"{name}: {reason}" for name, reason in self.missing.items() if not known(name)]
        return measured, differing + missing


@dataclass(frozen=True)
class Target:
    what: str
    value: float
    unit: str
    verdict: str


def judged(what: str, value: float, unit: str, goal: str, met: bool, against: str = "") -> Target:
    return Target(what, value, unit, f"{'PASS' if met else 'MISS'}, target {goal}{against and f'; {against}'}")


def absent(what: str, goal: str, cell: str) -> Target:
    return Target(what, 0.0, "", f"NOT MEASURED, target {goal}; needs {cell}")


def targets(cells: Sequence[Cell], cuda: bool) -> list[Target]:
    """Every target of this kind of device, each with what was measured and whether it was met."""
    return list(gpu_targets(cells) if cuda else cpu_targets(cells))


def usual_sizes(dtype: str, cuda: bool) -> list[int]:
    """The sizes measured where none are given; the targets' come first, and stay if the run is cut short.

    On a GPU float32 stops at 65,536: beyond that, no target is there and a pass takes seconds, a cell minutes.
    """
    if not cuda:
        return [8192, 1024]
    sizes = [1 << k for k in (15, 18, 10, 11, 12, 13, 14, 16, 17)]
    return [n for n in sizes if n <= 65536] if dtype == "float32" else sizes


def cell_at(cells: Sequence[Cell], n: int, d: int, dtype: str) -> Cell | None:
    return next((cell for cell in cells if (cell.n, cell.d, cell.dtype) == (n, d, dtype) and cell.rows), None)


def gpu_targets(cells: Sequence[Cell]) -> Iterator[Target]:
    place = "N=32,768 D=512 bfloat16"
    cell = cell_at(cells, 32768, 512, "bfloat16")
    what, goal = f"1a. speed-up over the fastest peer linear in memory, {place}", "at least 1.5"
    peer = cell.fastest(linear=True) if cell else None
    if cell is not None and peer is not None:
        yield speed_target(what, goal, cell, peer)
    else:
        yield absent(what, goal, place + " and such a peer")
    what, goal = f"1b. share of the measured matmul rate at 4 units, {place}", "at least 0.55"
    if cell is not None:
        share = 4e3 * cell.unit_seconds / cell.rows["varalign"].value
        yield judged(what, share, "", goal, share >= 0.55)
    else:
        yield absent(what, goal, place)

    large = "N=262,144 D=512 bfloat16"
    what, goal = f"2. memory beyond inputs and returned gradients, {large}", "at most 712 MiB"
    if (cell := cell_at(cells, 262144, 512, "bfloat16")) is not None:
        beyond = (cell.memory["varalign"] - cell.returned) / MIB
        yield judged(what, beyond, "MiB", goal, beyond <= 712, f"eager: {cell.missing.get(EAGER, 'runs')}")
    else:
        yield absent(what, goal, large)

    what, goal = f"3. what the statistics add to the time, {place}", "under 5 %"
    cell = cell_at(cells, 32768, 512, "bfloat16")
    both = [cell.rows.get(f"varalign, statistics {state}") for state in ("on", "off")] if cell else []
    if all(both) and both:
        on, off = (row.ratio for row in both if row is not None)
        yield judged(what, 100 * (off / on - 1), "%", goal, off / on < 1.05)
    else:
        yield absent(what, goal, place)

    what, goal = "4. slowest against the fastest peer with a matrix, ours / theirs, all sizes measured", "at most 1"
    pairs = [(peer.ratio, cell, peer) for cell in cells if (peer := cell.fastest(linear=False)) is not None]
    if pairs:
        ratio, cell, peer = max(pairs, key=lambda pair: pair[0])
        above = sum(pair[0] > 1 for pair in pairs)
        mine = min((row for name, row in cell.rows.items() if name.startswith("varalign")), key=lambda row: row.value)
        note = f"{cell.name}, {peer.contender}; above 1 in {above} of {len(pairs)} cells"
        note += f"; our fastest form there, {mine.contender}: {mine.value / peer.value:.3g}"
        yield judged(what, ratio, "x", goal, ratio <= 1, note)
    else:
        yield absent(what, goal, "a size where a matrix fits")
    yield error_target(cells, "5. largest error against float64, ours / eager's, all sizes measured")


def speed_target(what: str, goal: str, cell: Cell, peer: Row) -> Target:
    """1a; where no public kernel was measured, a plain loop is all that was beaten, and that proves nothing."""
    gain, (measured, missing) = 1 / peer.ratio, cell.public()
    against = f"against {peer.contender}; public kernels measured: {', '.join(measured) or 'none'}"
    against += f" ({'; '.join(missing)})" if missing else "" if measured else ", pass --peers DIR or make's PEERS=DIR"
    if gain >= 1.5 and not measured:
        return Target(what, gain, "x", f"NOT PROVEN, target {goal}; {against}")
    return judged(what, gain, "x", goal, gain >= 1.5, against)


def error_target(cells: Sequence[Cell], what: str) -> Target:
    pairs = [(cell.errors["varalign"] / max(cell.errors[EAGER], 1e-30), cell) for cell in cells if EAGER in cell.errors]
    if not pairs:
        return absent(what, "at most 1", "open_clip and a size up to --exact-up-to")
    ratio, cell = max(pairs, key=lambda pair: pair[0])
    return judged(what, ratio, "x", "at most 1", ratio <= 1, cell.name)


def cpu_targets(cells: Sequence[Cell]) -> Iterator[Target]:
    place = "N=8,192 D=512 float32"
    cell = cell_at(cells, 8192, 512, "float32")
    memory = f"reference: peak extra memory, ours / eager's, {place}"
    speed = f"reference: time forward and backward, ours / eager's, by processor time, {place}"
    if cell is None or EAGER not in cell.rows:
        yield absent(memory, "at most 0.125", f"{place} and open_clip")
        yield absent(speed, "at most 1.2", f"{place} and open_clip")
    else:
        share = cell.memory["varalign"] / max(cell.memory[EAGER], 1)
        yield judged(memory, share, "x", "at most 0.125", share <= 0.125)
        row = cell.rows[EAGER]
        ratio = row.processor_ratio or row.ratio
        yield judged(speed, ratio, "x", "at most 1.2", ratio <= 1.2, f"by the wall {row.ratio:.3g}")
    yield error_target(cells, "reference: largest error against float64, ours / eager's")


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Time and memory against N, a panel each for every dtype and D."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys((cell.dtype, cell.d) for cell in cells))
    figure = Figure(figsize=(11, 4.2 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 2, squeeze=False)
    for (left, right), (dtype, d) in zip(panels, kinds, strict=True):
        chosen = sorted((cell for cell in cells if (cell.dtype, cell.d) == (dtype, d)), key=lambda cell: cell.n)
        for name in dict.fromkeys(name for cell in chosen for name in cell.rows):
            times = [(cell.n, cell.rows[name].value) for cell in chosen if name in cell.rows]
            memory = [(cell.n, cell.memory[name] / MIB) for cell in chosen if name in cell.memory]
            style = "-" if name.startswith("varalign") else "--"
            left.loglog(*zip(*times, strict=True), style, marker="o", label=name)
            if memory:
                right.loglog(*zip(*memory, strict=True), style, marker="o", label=name)
        left.set(title=f"{dtype}, D = {d}", xlabel="N", ylabel="forward and backward, ms")
        right.set(title=f"{dtype}, D = {d}", xlabel="N", ylabel="memory beyond the inputs, MiB")
        left.legend(fontsize=7)
    figure.savefig(path, dpi=120)
