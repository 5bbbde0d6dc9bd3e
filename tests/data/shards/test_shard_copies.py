"""Remote shards: the same data set, batches and errors as from files, with copies that come and go."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from varalign.cli import main
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.errors import DataError
from varalign.data.files import content_key, read_bytes
from varalign.data.images import Augment, Preprocess
from varalign.data.pipeline import ImagePipeline
from varalign.data.readers.reading import Reading
from varalign.data.sample import write_sample
from varalign.data.sampler import epoch_batches
from varalign.data.shards import shard_copies

pytest.importorskip("webdataset")
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset fetches by curl")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and keeps the names that were asked for."""

    asked: list[str]

    def log_message(self, *_: object) -> None:
        self.asked.append(self.path.rpartition("/")[2])


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path, list[str]]]:
    """The address of five shards of 30 drawn scenes, their folder, and the names that were asked for."""
    write_sample(tmp_path / "files", images=30, size=32)
    convert = ["data", "convert", str(tmp_path / "files"), "--to", "webdataset", "--out", str(tmp_path / "shards")]
    assert main([*convert, "--shard-size", "6"]) == 0
    asked: list[str] = []
    handler = type("Asked", (Handler,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "shards")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(shard_copies, "_PAUSE", 0.0)
    yield f"http://127.0.0.1:{server.server_address[1]}/shard-{{000000..000004}}.tar", tmp_path / "shards", asked
    server.shutdown()
    server.server_close()


def loaded(place: Path | str, cache: Path) -> ImageCaptions:
    return load_dataset(place, reading=Reading(cache=str(cache)))


def test_batches_from_remote_shards_are_those_of_the_files(
    host: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two shards at most: whatever comes and goes, every pixel and the order are the same."""
    address, shards, asked = host
    files, data = loaded(tmp_path / "files", tmp_path), loaded(address, tmp_path / "cache")
    assert data.fingerprint == files.fingerprint and not any(name.endswith(".tar") for name in asked)
    np.testing.assert_array_equal(data.split, files.split)
    monkeypatch.setenv(shard_copies.LIMIT, str(2.5 * (shards / "shard-000000.tar").stat().st_size / 1e9))
    pixels = []
    for one, numbers in ((files, data.image_shards), (data, data.image_shards)):
        order = epoch_batches(np.arange(30), 4, seed=1, epoch=2, shards=numbers, buffer=5)[2:]
        pipeline = ImagePipeline(one.image_paths, Preprocess(size=24), augment=Augment(), seed=1, threads=2)
        pixels.append(np.concatenate([batch.pixels for batch in pipeline.batches(order, epoch=2)]))
    np.testing.assert_array_equal(*pixels)
    assert len(list((tmp_path / "cache" / "shards").glob("*.remote.tar"))) < 5
    key = content_key(data.image_paths)
    assert [read_bytes(path) for path in data.image_paths] == [path.read_bytes() for path in files.image_paths]
    assert content_key(data.image_paths) == key


def test_a_copy_that_one_process_holds_keeps_no_other_waiting(
    host: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    """Two processes ask for one shard at once; it is fetched once, and the second has it while the first holds it."""
    address, _, asked = host
    data = loaded(address, tmp_path / "cache")
    code = (
        "import sys\nfrom varalign.data.shards.shard_copies import held\n"
        "from varalign.data.shards.shard_members import member_of\n"
        "with held([member_of(sys.argv[1]).shard]):\n    print('there', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(data.image_paths[0])]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        assert first.stdout is not None and second.stdout is not None
        assert [process.stdout.readline() for process in (first, second)] == ["there\n", "there\n"]
        first.communicate()
        second.communicate()
    assert asked.count("shard-000000.tar") == 1


def test_without_an_index_beside_them_shards_are_fetched_and_indexed_once(
    host: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, shards, asked = host
    for index in shards.glob("*.index.jsonl"):
        index.unlink()
    first = loaded(address, tmp_path / "cache")
    assert sorted(name for name in asked if name.endswith(".tar")) == [f"shard-00000{k}.tar" for k in range(5)]
    asked.clear()
    assert loaded(address, tmp_path / "cache").fingerprint == first.fingerprint and asked == []
    assert (first.image_ids == loaded(tmp_path / "files", tmp_path).image_ids).all()


def test_errors_name_the_address_and_the_mend(
    host: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, shards, _ = host
    data = loaded(address, tmp_path / "cache")
    (shards / "shard-000003.tar").write_bytes((shards / "shard-000002.tar").read_bytes())
    row = int(np.flatnonzero(data.image_shards == 3)[0])
    with pytest.raises(DataError, match=r"^http://127.*shard-000003.tar: the shard is not the one that was indexed"):
        list(ImagePipeline(data.image_paths, Preprocess(size=24)).batches([np.array([0, row])]))
    (shards / "shard-000003.tar").unlink()
    with pytest.raises(DataError, match=r"^http://127.*shard-000003.tar: cannot be fetched: it is not there, or may"):
        read_bytes(data.image_paths[row])
    with pytest.raises(DataError, match=r"^http://127\..*/\*.tar: an address cannot be searched; write the numbers"):
        loaded(address.replace("shard-{000000..000004}", "*"), tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "aws").write_text("#!/bin/sh\necho 'Unable to locate credentials' >&2\nexit 253\n")
    (tools / "aws").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(DataError, match=r"^s3://b/a.tar: cannot be fetched: Unable to locate credentials; .*AWS comm"):
        loaded("s3://b/a.tar", tmp_path)
    (tools / "aws").unlink()
    with pytest.raises(DataError, match=r"^s3://b/a.tar: aws is not there; install the AWS command line"):
        loaded("s3://b/a.tar", tmp_path)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setitem(sys.modules, "webdataset.gopen", None)
    with pytest.raises(DataError, match=r"^s3://b/a.tar: read by the library webdataset: pip install"):
        loaded("s3://b/a.tar", tmp_path)


def test_an_index_that_was_changed_is_not_believed(host: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    """One beside a shard whose names lead elsewhere, or that is damaged, is passed over, and the shard is read."""
    address, shards, asked = host
    for number, old, new in ((0, '["', '["../'), (1, "A ", "B "), (2, "varalign_shard_index", "other")):
        place = shards / f"shard-00000{number}.tar.index.jsonl"
        place.write_text(place.read_text().replace(old, new))
    wanted = loaded(tmp_path / "files", tmp_path).fingerprint
    assert loaded(address, tmp_path / "cache").fingerprint == wanted
    assert sorted(name for name in asked if name.endswith(".tar")) == [f"shard-00000{k}.tar" for k in range(3)]
    assert json.loads(next((tmp_path / "cache" / "shards").glob("*-*.tar.json")).read_text()).keys() >= {"digest"}
    assert os.listdir(tmp_path / "cache") == ["shards"]
