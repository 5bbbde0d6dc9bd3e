"""Runs a study: chooses the next pack, distributes packs over processes, and estimates the remaining time."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varalign.data.bar import duration
from varalign.data.features import FeatureSet, load_features
from varalign.data.waiting import waiting
from varalign.inputs.open_data import checked
from varalign.losses.others import is_directed
from varalign.options.device import pick_device
from varalign.options.fields import OPTIONS
from varalign.runs.folder import RunFolder
from varalign.runs.progress import to_stderr
from varalign.runs.run_errors import RunFailed
from varalign.study import singles
from varalign.study.check_cells import check_cells
from varalign.study.grid import Condition, Pack, conditions
from varalign.study.packs import Bench, run_pack
from varalign.study.report import StudyReport, write_report
from varalign.study.spec import FIXED, TUNED, Study, at_fraction
from varalign.study.store import Store

Say = Callable[[str], None]
# Options that batched training supports; a run with any other option set uses the ordinary trainer.
BATCHED = {
    *("start", "ridge", "text_ridge", "power", "map_lr", "embedding_dim", "head", "hidden_dim", "members", "dropout"),
    *("schedule", "schedule_floor", "schedule_beta", "schedule_gamma", "fixed_weight", "epochs", "batch_size", "lr"),
    *("weight_decay", "input_noise", "captions_per_step", "warmup", "lr_schedule", "clip_grad", "noise", "seed"),
    "pair_weighting",
}
PARTS = "parts"  # holds a folder, with its lock, for each part of a study that processes run together
_worker: Worker | None = None


def run_study(
    study: Study,
    out: Path,
    *,
    workers: int = 0,
    device: str | None = None,
    report_only: bool = False,
    say: Say | None = None,
) -> StudyReport:
    """Run the missing cells of a study, and write its tables and plots.

    Args:
        study: the study.
        out: its folder; cells that have a result there are not run again.
        workers: number of processes, each with one thread; 0: one for each core (on CUDA: one).
        device: as for `varalign train`.
        report_only: run nothing, and report the cells that have a result.
        say: called with each remark; standard error if None.

    Raises:
        DataError: data or study that cannot be used.
        StudyError: a cell's options contradict each other; raised before the first cell runs.
        RunFailed: a worker process was killed.
    """
    say = say or to_stderr
    work = _Work(study, out, device)
    tracks = [Track(condition, work.store) for condition in work.plan]
    if not report_only:
        work.run(tracks, out, workers, say)
    return write_report(study, work.store, [track.finish() for track in tracks], say)


def run_part(
    study: Study,
    out: Path,
    part: int,
    parts: int,
    *,
    workers: int = 0,
    device: str | None = None,
    say: Say | None = None,
) -> None:
    """Run the missing cells of every `parts`-th condition, from the `part`-th (from 1), and report nothing.

    Processes on machines that share `out` run a study together, a part each; `run_study` reports it. Arguments and
    errors are those of `run_study`.
    """
    work = _Work(study, out, device)
    tracks = [Track(condition, work.store) for condition in work.plan[part - 1 :: parts]]
    own = out / PARTS / f"{part}-of-{parts}"
    own.mkdir(parents=True, exist_ok=True)
    work.run(tracks, own, workers, say or to_stderr)


class _Work:
    """A study's data, its conditions and the folder of its results."""

    def __init__(self, study: Study, out: Path, device: str | None) -> None:
        self.study, self.store, self.device = study, Store(out), pick_device(device)
        self.features = load_features(study.source[1]) if study.source[0] == "features" else None
        self.data = singles.open_images(study) if self.features is None else self.features
        self.train_images = len(checked(self.data, study.source[1]).rows("train"))
        is_features = self.features is not None
        self.plan = conditions(study, self.data.fingerprint, lambda axes: is_features and batches(study, axes))

    def run(self, tracks: Sequence[Track], folder: Path, workers: int, say: Say) -> None:
        """Run the missing cells of conditions; `folder` is locked meanwhile."""
        check_cells(self.plan, self.train_images, self.device)
        if not any(track.left() for track in tracks):
            return
        for remark in left_out(self.study, [track.condition for track in tracks]):
            say(remark)
        workers = workers or (1 if self.device.type == "cuda" else os.cpu_count() or 1)
        given = (workers, self.study, self.features, str(self.device), self.store.folder)
        with RunFolder(folder).locked(), _executor(*given) as executor:
            _drive(tracks, self.store, executor, workers, say)


def batches(study: Study, axes: Mapping[str, Any]) -> bool:
    """Whether the runs of a condition can be trained as one batched product; others use the ordinary trainer."""
    if any(name not in BATCHED for stage in study.tune for name in stage):
        return False
    options = {name: value for name, value in {**study.options, **axes}.items() if name in OPTIONS}
    trials = [trial for stage in study.tune for trial in study.tune_grid(stage, axes)]
    weightings = {at_fraction(one.get("pair_weighting"), axes["fraction"]) for one in (options, *trials)}
    if "moments" in weightings:  # these weights change during the run
        return False
    return all(name in BATCHED or value == OPTIONS[name].default for name, value in options.items())


class Track:
    """The progress of one condition through its stages."""

    def __init__(self, condition: Condition, store: Store) -> None:
        self.condition, self.store = condition, store
        self.stages = condition.stages(store.result)
        self.packs: list[Pack] = []
        self.cells: list[Pack] = []
        self.ended = False
        self.advance()

    def advance(self) -> None:
        """Go on to the first stage with a missing result."""
        while not self.ended and all(self.store.has(pack) for pack in self.packs):
            found = next(self.stages, None)
            if found is None:
                self.ended = True
                return
            self.packs = found
            self.cells += [pack for pack in found if pack.cells[0].kind == "run"]

    def finish(self) -> tuple[Condition, list[Pack]]:
        """The condition and the finished packs of its runs."""
        return self.condition, [pack for pack in self.cells if self.store.has(pack)]

    def left(self) -> int:
        """Number of cells without a result, those of later stages included."""
        study = self.condition.study
        return max(0, cell_count(study, self.condition.axes) - self.done())

    def done(self) -> int:
        """Number of cells that have a result, counted as in `cell_count`."""
        return self._past() + sum(len(pack.cells) for pack in self.packs if self.store.has(pack)) if self.packs else 0

    def _past(self) -> int:
        tune = len(self.condition.tuned) * self.condition.study.tune_seeds
        before = [pack for pack in self.cells if pack not in self.packs]
        return tune + sum(len(pack.cells) for pack in before)


def cell_count(study: Study, axes: Mapping[str, Any]) -> int:
    """Number of cells of one condition: those of its tuning and those that are reported."""
    trials = [len(study.tune_grid(stage, axes)) for stage in study.tune]
    tune = sum(count * study.tune_seeds for count in trials if count > 1)
    return tune + len(study.schedules(axes)) * len(study.seeds_at(axes["fraction"]))


def left_out(study: Study, plan: Sequence[Condition]) -> list[str]:
    """Remarks on the controls and schedules that a study leaves out."""
    ran = [study.schedules(condition.axes) for condition in plan]
    losses = dict.fromkeys(study.loss(condition.axes) for condition in plan)
    found = [
        f"loss {loss} has no two directions to weight: only {' and '.join(FIXED)} are trained with it"
        for loss in losses
        if not is_directed(loss)
    ]
    untuned = sum(TUNED not in names for names in ran)
    if untuned:
        found.append(
            f"{untuned} of {len(ran)} conditions tune no fixed_weight: they have no {TUNED}, and fixed is the baseline"
        )
    return found


def _drive(tracks: Sequence[Track], store: Store, executor: Executor, workers: int, say: Say) -> None:
    """Give packs to the workers, those of earlier conditions first, until every cell has its result."""
    total = sum(track.done() + track.left() for track in tracks)
    running: dict[Future[float], tuple[Track, Pack]] = {}
    pace: dict[float, list[float]] = {}  # seconds per cell by data fraction
    with waiting("runs", total, sum(track.done() for track in tracks)) as bar:
        while True:
            started = {pack.names for _, pack in running.values()}
            for track in tracks:
                track.advance()
                for pack in track.packs:
                    if len(running) < workers and pack.names not in started and not store.has(pack):
                        running[executor.submit(_run, pack)] = (track, pack)
                        started.add(pack.names)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                track, pack = running.pop(future)
                seconds = future.result()
                track.advance()
                bar.advance(len(pack.cells))
                pace.setdefault(track.condition.axes["fraction"], []).append(seconds / len(pack.cells))
                done = sum(one.done() for one in tracks)
                rest = sum(one.left() * _seconds(pace, one.condition.axes["fraction"]) for one in tracks) / workers
                say(f"[{done}/{total}] {_label(pack)}  {seconds:.1f} s; {duration(rest)} left")


def _seconds(pace: Mapping[float, Sequence[float]], fraction: float) -> float:
    """Estimated seconds per cell, scaled from the nearest fraction with finished cells."""
    near = min(pace, key=lambda seen: abs(seen - fraction))
    return float(np.mean(pace[near])) * max(1.0, fraction) / max(1.0, near)


def _label(pack: Pack) -> str:
    first = pack.cells[0]
    names = list(dict.fromkeys(str(cell.axes["schedule"]) for cell in pack.cells))
    seeds = list(dict.fromkeys(cell.seed for cell in pack.cells))
    values = [f"{v:g} %" if k == "fraction" else str(v) for k, v in first.axes.items() if k not in ("schedule", "seed")]
    what = f"tuning, {len(pack.cells)} runs" if first.kind == "tune" else f"{', '.join(names)} × {len(seeds)} seed(s)"
    return f"{', '.join(values)}: {what}"


@dataclasses.dataclass
class Worker:
    """What a process needs to run packs."""

    study: Study
    store: Store
    device: str
    bench: Bench | None

    def run(self, pack: Pack) -> float:
        """Run a pack and write the results of its cells; returns the seconds that training took."""
        started = time.perf_counter()
        replayed = {cell.replays: self.store.result(cell.replays)["w_i2t"] for cell in pack.cells if cell.replays}
        if self.bench is not None and batches(self.study, pack.cells[0].axes):
            results = run_pack(pack, self.bench, replayed)
        else:
            results = [
                singles.run_cell(cell, name, self.study, self.store.folder, self.device)
                for name, cell in zip(pack.names, pack.cells, strict=True)
            ]
        seconds = time.perf_counter() - started
        self.store.write(pack, results, seconds)
        return seconds


def _open(study: Study, out: Path, device: str, tensors: Mapping[str, torch.Tensor] | None, rest: Any) -> None:
    """Make this process a worker with one thread and the features in shared memory."""
    global _worker
    torch.set_num_threads(1)
    features = None
    if tensors is not None:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        features = FeatureSet(**arrays, **rest)
    bench = None if features is None else Bench(features, torch.device(device), study.evaluations)
    _worker = Worker(study, Store(out), device, bench)


def _open_process(*given: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent process ends its workers
    _open(*given)


def _run(pack: Pack) -> float:
    assert _worker is not None
    return _worker.run(pack)


class _Here(Executor):
    """Runs each task in this process when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def _executor(workers: int, study: Study, features: FeatureSet | None, device: str, out: Path) -> Iterator[Executor]:
    tensors, rest = None, None
    if features is not None:
        names = ("image_features", "text_features", "text_image_ids", "split", "image_ids")
        tensors = {name: torch.from_numpy(getattr(features, name)) for name in names}
        rest = {"image_names": features.image_names, "texts": features.texts}
    threads = torch.get_num_threads()
    if workers == 1:
        try:
            _open(study, out, device, tensors, rest)
            yield _Here()
        finally:
            torch.set_num_threads(threads)
        return
    for tensor in (tensors or {}).values():
        tensor.share_memory_()
    before = set(multiprocessing.active_children())
    context = torch.multiprocessing.get_context("spawn")
    given = (study, out, device, tensors, rest)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_open_process, initargs=given)
    try:
        yield executor
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        if type(error).__name__ == "BrokenProcessPool":
            raise RunFailed(
                f"a worker was killed, perhaps for memory: run the same line again with fewer --workers ({error})"
            ) from None
        raise
    executor.shutdown()
