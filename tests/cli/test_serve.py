"""`varalign serve` as a process: it says where it is, answers there, and ends by a signal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import varalign
from varalign import TrainConfig
from varalign.cli import main

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serve") / "run"
    options = {"image_size": 32, "epochs": 1, "batch_size": 16, "embedding_dim": 16, "start": "random"}
    places = {"data": str(image_folder), "out": str(out), "device": "cpu", "threads": 1}
    varalign.train(TrainConfig(**options, **places), say=lambda _: None)  # type: ignore[arg-type]
    return out


def test_it_serves_until_it_is_stopped(run: Path, image_folder: Path) -> None:
    words = [sys.executable, "-m", "varalign", "serve", str(run), "--images", str(image_folder / "Images")]
    environment = {**os.environ, "PYTHONPATH": str(Path(varalign.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*words, "--port", "0", "--device", "cpu"], env=environment, **pipes)  # type: ignore[call-overload]
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        request = urllib.request.Request(address + "knn-service", b'{"text": "a red square", "num_images": 2}')
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert len(json.load(answer)) == 2 and "server" not in answer.headers
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in error, error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "name the folder of images"),
        (["--images", "DIR", "--port", "70000"], "--port 70000: wanted a number"),
        (["--images", "DIR", "--port", "TAKEN"], "cannot be listened at"),
        (["--images", "DIR", "--host", "no such host", "--port", "0"], "cannot be listened at"),
        (["--images", "nowhere", "--port", "0"], "--images nowhere: there is no such folder"),
    ],
)
def test_errors(
    run: Path, image_folder: Path, words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"DIR": str(image_folder / "Images"), "TAKEN": str(taken.getsockname()[1])}
        assert main(["serve", str(run), *(values.get(word, word) for word in words)]) == 2
    assert error in capsys.readouterr().err


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio turns Nagle's algorithm off for connections whose protocol is known to be TCP."""
    from varalign.aligner.serve.server import listen

    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.proto == socket.IPPROTO_TCP
