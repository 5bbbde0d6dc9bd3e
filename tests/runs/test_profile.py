"""Parts of a run's time on a clock that the test moves; a whole run's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import varalign
from varalign.options.config import TrainConfig
from varalign.runs import profile
from varalign.runs.profile import PARTS, part, profiling, read_table, table, waited_for
from varalign.runs.run_errors import RunError


def test_inner_parts_count_once_and_what_is_in_no_part_is_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])

    def items() -> list[int]:
        for item in range(3):
            now[0] += 1.0
            yield item

    with profiling(True) as counted:
        assert counted is not None
        now[0] += 0.5
        for _ in waited_for("data", items()):
            with part("looks"):
                now[0] += 4.0
                with part("saving"):
                    now[0] += 2.0
                now[0] += 1.0
        figures = counted.finish()
    assert figures == {
        "seconds": 24.5,
        "parts": {"data": [3.0, 4], "looks": [15.0, 3], "saving": [6.0, 3], "other": [0.5, 1]},
    }
    assert table(figures)[:3] == [
        "part         seconds   share    times",
        "looks          15.00   61.2%        3  evaluations on dev",
        "saving          6.00   24.5%        3  checkpoints",
    ]
    assert table(figures)[-1] == "in all         24.50"


def test_without_a_profile_nothing_is_counted() -> None:
    with profiling(False) as counted, part("towers"):
        assert counted is None
    assert part("towers") is part("loss") and list(waited_for("data", [1, 2])) == [1, 2]
    profile.step_done()


def test_a_run_writes_its_table_and_a_trace_and_has_the_same_result(features_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    runs = []
    for wanted in (False, True):
        config = TrainConfig(
            features=str(features_file),
            out=str(tmp_path / str(wanted)),
            start="random",
            epochs=3,
            batch_size=8,
            device="cpu",
            profile=wanted,
        )
        runs.append(varalign.train(config, say=said.append))
    plain, profiled = runs
    assert plain.test == profiled.test
    assert not (plain.run / "profile.json").exists() and not (plain.run / "profile_trace.json").exists()
    figures = json.loads((profiled.run / "profile.json").read_text())
    assert set(figures["parts"]) == {*PARTS, "other"}
    steps = figures["parts"]["loss"][1]
    assert steps == figures["parts"]["backward"][1] == figures["parts"]["optimiser"][1] >= 9
    assert figures["parts"]["looks"][1] == 4
    assert sum(seconds for seconds, _ in figures["parts"].values()) == pytest.approx(figures["seconds"])
    lines = table(figures)
    assert all(line in said for line in lines)
    assert lines[1] in (profiled.run / "report.html").read_text()
    names = [
        event.get("name") for event in json.loads((profiled.run / "profile_trace.json").read_text())["traceEvents"]
    ]
    assert names.count("loss") == names.count("backward") == profile.TRACED_STEPS[1]
    for damaged in ("", "[]", '{"seconds": 1, "parts": {"data": 3}}', '{"parts": {}}'):
        (profiled.run / "profile.json").write_text(damaged)
        with pytest.raises(RunError, match=r"profile.json: damaged: delete it"):
            read_table(profiled.run / "profile.json")
