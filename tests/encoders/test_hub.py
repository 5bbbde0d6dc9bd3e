"""Downloads: the cache first, one announced try, and a message that says what to do. The hubs are on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import are_progress_bars_disabled
from varalign.encoders.hub import download_url, hub_file, hub_folder
from varalign.encoders.specs import WeightsUnavailable

FILES = {"weights.bin": b"weights", "config.json": b"{}"}
COMMIT = "1" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as a hub does for one repository `o/r`: files with their commit and tag, and its list of files."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        content = FILES.get(name)
        if self.path.startswith("/api/models/o/r"):
            siblings = ", ".join(f'{{"rfilename": "{name}"}}' for name in FILES)
            content = f'{{"id": "o/r", "sha": "{COMMIT}", "siblings": [{siblings}]}}'.encode()
        if "/tree/" in self.path:
            files = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in FILES.items()]
            content = json.dumps(files).encode()
        missing = content is None or ("/o/r/" not in self.path and not self.path.endswith("-0123abcd.bin"))
        self.send_response(404 if missing else 200)
        if missing:
            self.send_header("X-Error-Code", "EntryNotFound")
        content = b"" if missing or content is None else content
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(nothing_local: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on this machine, as the only one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for place in (constants, file_download):  # huggingface_hub before 1.0 keeps a copy in the second
        monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_announced_downloaded_and_then_cached(
    hub: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING, logger="varalign"):
        path = hub_file("o/r", ["absent.safetensors", "weights.bin"], spec="s", instead="i")
    assert path.read_bytes() == b"weights"
    assert f"downloading absent.safetensors or weights.bin of o/r from {hub}" in caplog.messages
    caplog.clear()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_file("o/r", ["absent.safetensors", "weights.bin"], spec="s", instead="i") == path
    assert not [message for message in caplog.messages if "downloading" in message]


def test_a_repository_without_the_file(hub: str) -> None:
    with pytest.raises(WeightsUnavailable, match=r"\(the repository has no such file\); .* download absent from .*o/r"):
        hub_file("o/r", ["absent"], spec="s", instead="i")


def test_no_answer_is_one_message_without_retries(nothing_local: Path, caplog: pytest.LogCaptureFixture) -> None:
    for ask in (
        lambda: hub_file("o/r", ["weights.bin"], spec="s", instead="--option x"),
        lambda: hub_folder("o/r", [["*"]], [("weights.bin",)], spec="s", instead="--option x"),
    ):
        with pytest.raises(WeightsUnavailable) as caught:
            ask()
        message = str(caught.value)
        assert message.startswith(
            "'s': its weights are not on this machine and cannot be downloaded (http://127.0.0.1:9 "
        )
        assert message.endswith(
            "download weights.bin from https://huggingface.co/o/r to this machine and pass --option x"
        )
    assert not [record for record in caplog.records if "Retry" in record.getMessage()]


def test_offline_is_honoured(hub: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match="HF_HUB_OFFLINE is set"):
        hub_file("o/r", ["weights.bin"], spec="s", instead="i")
    with pytest.raises(WeightsUnavailable, match="HF_HUB_OFFLINE is set"):
        download_url(f"{hub}/weights.bin", spec="s", instead="i")
    assert not caplog.records


def test_an_address_is_downloaded_once(hub: str, nothing_local: Path) -> None:
    path = download_url(f"{hub}/o/r/weights.bin", spec="s", instead="i")
    assert path == nothing_local / "torch" / "hub" / "checkpoints" / "weights.bin"
    assert path.read_bytes() == b"weights"
    path.write_bytes(b"mine")
    assert download_url(f"{hub}/o/r/weights.bin", spec="s", instead="i").read_bytes() == b"mine"


def test_a_wrong_hash_is_refused(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "weights-0123abcd.bin", b"other")
    with pytest.raises(WeightsUnavailable, match="invalid hash value"):
        download_url(f"{hub}/weights-0123abcd.bin", spec="s", instead="i")
    monkeypatch.setitem(FILES, f"weights-{hashlib.sha256(b'right').hexdigest()[:8]}.bin", b"right")
    right = download_url(f"{hub}/o/r/weights-{hashlib.sha256(b'right').hexdigest()[:8]}.bin", spec="s", instead="i")
    assert right.read_bytes() == b"right"


def test_an_address_that_gives_no_answer(nothing_local: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        download_url("http://127.0.0.1:9/w.bin", spec="s", instead="--image-encoder x@FILE")
    path = nothing_local / "torch" / "hub" / "checkpoints" / "w.bin"
    assert "the download failed (" in str(caught.value)
    assert str(caught.value).endswith(
        f"download http://127.0.0.1:9/w.bin, put it at {path} (or anywhere, and pass --image-encoder x@FILE)"
    )
    assert list(path.parent.iterdir()) == []


def test_a_description_that_the_cache_lacks_is_looked_for(
    hub: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program left a model without `modules.json` in the cache, which would say how its states are pooled."""

    def found() -> Path:
        place = {"spec": "s", "instead": "i", "described": "modules.json"}
        return hub_folder("o/r", [["*.json", "*.bin"]], [["config.json"]], **place)

    hub_folder("o/r", [["*.bin", "config.json"]], [["config.json"]], spec="s", instead="i")
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not (found() / "modules.json").exists()
    assert "its copy in the cache has no modules.json, and the hub gives no answer" in caplog.text
    monkeypatch.setitem(FILES, "modules.json", b"[]")
    assert (found() / "modules.json").read_bytes() == b"[]"


def test_a_description_that_does_not_exist_is_asked_for_once(
    hub: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"spec": "s", "instead": "i", "described": "modules.json"}
    folder = hub_folder("o/r", [["*.json", "*.bin"]], [["config.json"]], **place)
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_folder("o/r", [["*.json", "*.bin"]], [["config.json"]], **place) == folder
    assert caplog.text == ""


def test_no_bar_of_a_library_is_shown(hub: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"spec": "clip:X@tag", "instead": "clip:X@FILE"}
    hub_file("o/r", ["weights.bin"], **said)
    hub_folder("o/r", [["*.json"]], [["config.json"]], **said)
    download_url(f"{hub}/o/r/weights.bin", **said)
    assert capsys.readouterr() == ("", "") and not are_progress_bars_disabled()
