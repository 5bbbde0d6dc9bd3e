"""SIGKILL and the signals that ask: a run is stopped somewhere, resumed, and must end as the one never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import FileCalls, Job, clock, differences, finish, result, run, start, wait


def reference(job: Job, folder: Path) -> tuple[dict[str, Any], float]:
    """What the run comes to when nobody disturbs it, and its seconds; made twice, which must agree."""
    out = folder / "whole"
    seconds = 0.0
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        begin = clock()
        code = run(job.train(out), folder / "log")
        seconds = clock() - begin
        assert code == 0, (folder / "log").read_text()
    return result(out), seconds


def _in_saves(out: Path, at: int, number: Path | None = None) -> Callable[[], None]:
    """In a forked process: SIGKILL at file call `at` within the saves of a run, half of a write done; counts them."""

    def before() -> None:
        from varalign.training.state import Saver

        def hook(_: int, __: str, ___: str) -> None:
            if saving and inside[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            inside[0] += bool(saving)

        inside, saving = [0], []
        calls = FileCalls(out, hook)
        plain = Saver.save

        def save(self: Saver, *arguments: Any) -> None:
            saving.append(1)
            calls.half_at = calls.count + at - inside[0]
            plain(self, *arguments)
            saving.clear()
            calls.half_at = -1
            if number is not None:
                number.write_text(str(inside[0]))

        calls.install()
        Saver.save = save  # type: ignore[method-assign]

    return before


def kill(job: Job, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGKILL at random moments, a quarter of them inside a save, and what the resumed runs come to."""
    folder.mkdir()
    whole, seconds = reference(job, folder)
    draw = random.Random(seed)
    counter = folder / "calls"
    run(job.train(folder / "counted"), folder / "log", _in_saves(folder / "counted", -1, counter))
    calls = int(counter.read_text())
    same, killed, inside, failures = 0, 0, 0, []
    for number in range(count):
        out = folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        in_save = number % 4 == 0
        if in_save:
            at = draw.randrange(calls)
            code = run(job.train(out), folder / "log", _in_saves(out, at))
            where = f"file call {at} of the saves"
        else:
            moment = draw.uniform(0, seconds)
            process = start(job.train(out), folder / "log")
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)  # a process that has ended waits for us, so its number is its own
            code = wait(process)
            where = f"{moment:.3f} s"
        killed += code == -signal.SIGKILL
        inside += in_save and code == -signal.SIGKILL
        code = finish(job, out, folder / "log")
        wrong = differences(out, whole) if code == 0 else [f"exit code {code}: {(folder / 'log').read_text()[-300:]}"]
        same += not wrong
        if wrong:
            failures.append(f"{where}: {', '.join(wrong[:3])}")
    return {
        "path": job.name,
        "runs": count,
        "killed": killed,
        "inside a save": inside,
        "identical": same,
        "seconds of a run": round(seconds, 2),
        "file calls of its saves": calls,
        "failures": failures[:5],
    }


PLACES: dict[str, tuple[str, str]] = {
    "first step": ("varalign.training.steps.step.TrainingStep", "__call__"),
    "training": ("varalign.training.steps.step.TrainingStep", "__call__"),
    "evaluation": ("varalign.training.trainer", "evaluate"),
    "saving": ("varalign.runs.checkpoint", "save_checkpoint"),
}


def _signal_at(place: str, call: int, number: int, note: Path) -> Callable[[], None]:
    """In a forked process: a signal within a call of the place, and a note of the moment and the step it met."""

    def before() -> None:
        import importlib

        from varalign.runs.signals import StopSignals
        from varalign.training import trainer

        parts, name = PLACES[place]
        module, _, attribute = parts.rpartition(".")
        try:
            owner = importlib.import_module(parts)
        except ModuleNotFoundError:
            owner = getattr(importlib.import_module(module), attribute)
        plain, seen, trainers = getattr(owner, name), [0], []
        built = trainer.Trainer.__init__

        def init(self: Any, *arguments: Any, **options: Any) -> None:
            built(self, *arguments, **options)
            trainers.append(self)

        def calling(*arguments: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] == call + 1:
                # An alarm lands in the middle of the call, wherever that is by then.
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + 2e-3 * (call % 3))
            return plain(*arguments, **options)

        handle = StopSignals._handle

        def noted(self: StopSignals, *arguments: Any) -> None:
            step = trainers[-1].position.step if trainers else -1
            note.write_text(json.dumps({"at": clock(), "step": step}))
            handle(self, *arguments)

        trainer.Trainer.__init__ = init  # type: ignore[method-assign]
        setattr(owner, name, calling)
        StopSignals._handle = noted  # type: ignore[method-assign]

    return before


def ask(job: Job, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """SIGTERM and SIGINT in turn, place by place: code, words, the checkpoint, how late, and the resumed run."""
    from varalign.runs.checkpoint import newest_checkpoint

    folder.mkdir()
    whole, _ = reference(job, folder)
    draw = random.Random(seed)
    valid, same, late, places, failures = 0, 0, [], Counter[str](), []
    steps = []
    for index in range(count):
        place = list(PLACES)[index % len(PLACES)]
        number = (signal.SIGINT, signal.SIGTERM)[index // len(PLACES) % 2]
        out, note = folder / "run", folder / "note"
        shutil.rmtree(out, ignore_errors=True)
        note.unlink(missing_ok=True)
        call = 0 if place == "first step" else draw.randrange(job.calls)
        code = run(job.train(out), folder / "log", _signal_at(place, call, number, note))
        ended = clock()
        said = (folder / "log").read_text()
        found = newest_checkpoint(out / "checkpoints", lambda text: None)
        noted = json.loads(note.read_text()) if note.exists() else {"at": ended, "step": -9}
        late.append(ended - noted["at"])
        behind = found.state["step"] - noted["step"] if found else 99
        steps.append(behind)
        good = code == 128 + number and f"varalign train --resume {out}" in said and 0 <= behind <= 1
        valid += good
        places[place] += 1
        code = finish(job, out, folder / "log")
        wrong = differences(out, whole) if code == 0 else [f"exit code {code}"]
        same += not wrong
        if not good or wrong:
            failures.append(f"{place}, call {call}, signal {number}: {behind} steps, {wrong[:3]}: {said[-300:]}")
    return {
        "path": job.name,
        "signals": count,
        "places": dict(places),
        "valid checkpoints": valid,
        "resumed identical": same,
        "most steps after the signal": max(steps),
        "median ms to the end": round(1000 * sorted(late)[len(late) // 2], 1),
        "most ms to the end": round(1000 * max(late), 1),
        "failures": failures[:5],
    }
