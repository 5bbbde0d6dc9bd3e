"""The run folder: new, old, somebody else's, in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from varalign.data.files import write_atomically
from varalign.runs.folder import RunFolder
from varalign.runs.metrics import MetricsLog
from varalign.runs.run_errors import RunError


def made(path: Path) -> RunFolder:
    run = RunFolder.create(path)
    model = {"embedding_dim": 4, "head": "linear", "frozen": {}, "image_feature_dim": 3, "text_feature_dim": 2}
    model |= {"image_encoder": None, "text_encoder": None}
    run.write_config({"options": {}, "model": model, "data": {"fingerprint": "0"}})
    run.checkpoints.mkdir()
    return run


def test_create_refuses_what_is_there(tmp_path: Path) -> None:
    made(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already; go on with it by `--resume"):
        RunFolder.create(tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(RunError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "file")


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a varalign run, there is no config\.json"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RunError, match="of another program"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read as JSON"):
        RunFolder.open(tmp_path)


def test_newest_is_the_one_started_last(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run under"):
        RunFolder.newest(tmp_path / "runs")
    for age, name in ((30, "b"), (10, "a"), (20, "c")):
        run = made(tmp_path / "runs" / name)
        os.utime(run.path / "config.json", (1000 - age, 1000 - age))
    assert RunFolder.newest(tmp_path / "runs").path.name == "a"


def test_metrics_are_json_lines_and_cut_at_a_step(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    log = MetricsLog(run.metrics)
    log.write(
        {"kind": "step", "step": step, "epoch": 1, "loss": float("nan") if step == 2 else 1.5} for step in (1, 2, 3)
    )
    log.close()
    with open(run.metrics, "ab") as file:
        file.write(b'{"kind": "step", "st')  # cut short by a crash
    assert [line["loss"] for line in run.read_metrics()] == [1.5, None, 1.5]
    log.cut(2)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    run.metrics.write_text('{"kind": "step", "step": 1, "epoch": 1}\nnonsense\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl line 2"):
        run.read_metrics()


def test_a_second_process_is_refused_and_a_dead_one_is_not(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from varalign.runs.folder import RunFolder\n"
        f"with RunFolder(Path({str(run.path)!r})).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"in use by process {holder.pid}"), run.locked():
            pass
        holder.kill()
    with run.locked():
        assert (run.path / ".lock").read_text() == str(os.getpid())
    assert (run.path / ".lock").read_text() == ""


def test_a_refused_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, b"old")

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
