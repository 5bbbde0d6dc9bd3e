"""The store of a folder's images: what is embedded again, what is kept, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from PIL import Image
from varalign.aligner.aligner import Aligner
from varalign.aligner.folder_gallery import FolderGallery, open_folder
from varalign.data.errors import DataError
from varalign.inputs import kept
from varalign.inputs.kept import read_kept, write_kept
from varalign.runs.lock import locked
from varalign.runs.run_errors import RunError

Opened = Callable[..., FolderGallery]


@pytest.fixture
def model(searched_run: Path) -> Aligner:
    return varalign.load(searched_run, device="cpu")


@pytest.fixture
def opened(model: Aligner, pictures: Path) -> Opened:
    """Opens the folder's gallery, and counts the files that were embedded in `opened.embedded`."""

    def openly(**options: Any) -> FolderGallery:
        said: list[str] = []
        given = {"follow_links": False, "say": said.append, **options}
        found = open_folder(model, pictures, **given)
        openly.said = said  # type: ignore[attr-defined]
        return found

    return openly


def test_vectors_and_priors_are_those_of_the_model(model: Aligner, pictures: Path, opened: Opened) -> None:
    found = opened()
    assert found.names == sorted([*(f"{n:03}.jpg" for n in range(10)), "sub/010.jpg", "sub/011.jpg"])
    images = model.embed_images([pictures / name for name in found.names])
    assert found.vectors.dtype == np.float16 and np.abs(found.vectors - images).max() < 1e-3
    correction = model.hub.correction
    assert correction is not None and found.prior is not None
    stored = torch.from_numpy(found.vectors.astype(np.float32))
    assert found.prior.tolist() == pytest.approx(correction.image_prior(stored).tolist(), abs=1e-6)
    assert found.changes == {"embedded": 12, "reused": 0, "gone": 0} and not found.unreadable


def test_only_new_bytes_are_embedded(
    model: Aligner, pictures: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened()
    looked: list[str] = []
    plain = Aligner.embed_readable

    def counted(self: Aligner, files: list[Path]) -> Any:
        looked.extend(file.name for file in files)
        return plain(self, files)

    monkeypatch.setattr(Aligner, "embed_readable", counted)
    before = first.store.stat()
    assert opened().changes == {"embedded": 0, "reused": 0, "gone": 0} and not looked
    assert first.store.stat().st_mtime_ns == before.st_mtime_ns, "written only where something has changed"

    os.utime(pictures / "000.jpg")
    shutil.move(pictures / "001.jpg", pictures / "sub" / "moved.jpg")
    shutil.copy(pictures / "002.jpg", pictures / "copy.jpg")
    (pictures / "003.jpg").unlink()
    Image.new("RGB", (40, 40), "red").save(pictures / "004.jpg")
    Image.new("RGB", (40, 40), "blue").save(pictures / "new.png")
    (pictures / "bad.png").write_bytes(b"no picture")
    found = opened()
    assert sorted(looked) == ["004.jpg", "bad.png", "new.png"]
    assert found.changes == {"embedded": 2, "reused": 3, "gone": 2}
    assert list(found.unreadable) == ["bad.png"] and "1 of 14 images cannot be read" in opened.said[0]  # type: ignore[attr-defined]
    assert len(found.names) == 13 and {"copy.jpg", "sub/moved.jpg", "new.png"} <= set(found.names)
    assert [name for name, copy in zip(found.names, found.copies, strict=True) if copy] == ["copy.jpg"]
    direct = plain(model, [pictures / name for name in found.names])[1]
    assert np.abs(found.vectors - direct).max() < 1e-3
    looked.clear()
    assert opened().changes["embedded"] == 0 and not looked, "an unreadable file is not tried again"


def test_a_text_query_on_an_unchanged_folder_builds_no_image_tower(
    searched_run: Path, pictures: Path, opened: Opened
) -> None:
    opened()
    again = varalign.load(searched_run, device="cpu")
    open_folder(again, pictures, say=lambda line: None)
    assert "model" not in vars(again) and not again._one_tower


@pytest.mark.parametrize("at", ["middle", "end", "empty", "header", "json"])
def test_a_damaged_store_is_named_and_made_anew(opened: Opened, at: str) -> None:
    whole = opened()
    vectors = whole.vectors.copy()  # the file is mapped, and written to below
    content = bytearray(whole.store.read_bytes())
    if at == "middle":
        content[len(content) // 2] ^= 1
    elif at == "end":
        del content[-20:]
    elif at == "empty":
        content.clear()
    elif at == "header":
        content[:8] = (1 << 60).to_bytes(8, "little")
    else:
        content[8] = ord("[")
    whole.store.write_bytes(content)
    found = opened()
    said = opened.said[0]  # type: ignore[attr-defined]
    assert str(whole.store) in said and said.endswith("; made anew") and "damaged" in said
    assert found.changes["embedded"] == 12 and np.array_equal(found.vectors, vectors)


def test_a_store_belongs_to_one_model(model: Aligner, opened: Opened) -> None:
    opened()
    model.weights = "other"
    del model.__dict__["hub"]
    assert opened().changes["embedded"] == 12
    assert "of another model" in opened.said[0]  # type: ignore[attr-defined]


def test_priors_follow_the_correction_and_vectors_stay(model: Aligner, opened: Opened) -> None:
    first = opened()
    model.config = model.config.__class__(**{**model.config.as_dict(), "hub_correction": "off"})
    del model.__dict__["hub"]
    found = opened()
    assert found.prior is None and found.changes["embedded"] == 0 and np.array_equal(found.vectors, first.vectors)


def test_links_that_lead_out_are_left_out(pictures: Path, opened: Opened, image_folder: Path) -> None:
    (pictures / "out.jpg").symlink_to(image_folder / "Images" / "040.jpg")
    (pictures / "in.jpg").symlink_to("000.jpg")
    (pictures / "broken.jpg").symlink_to("nowhere.jpg")
    found = opened()
    assert "in.jpg" in found.names and "out.jpg" not in found.names and "'out.jpg'" in opened.said[0]  # type: ignore[attr-defined]
    assert "out.jpg" in opened(follow_links=True).names


def test_a_file_is_read_only_where_it_is_still_in_the_folder(pictures: Path, opened: Opened, tmp_path: Path) -> None:
    found = opened()
    row = found.rows["sub/010.jpg"]
    assert found.read(row) == (pictures / "sub" / "010.jpg").read_bytes()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (pictures / "sub" / "010.jpg").unlink()
    (pictures / "sub" / "010.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match="leads out of"):
        found.read(row)
    shutil.rmtree(pictures / "sub")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "010.jpg").write_bytes(b"secret")
    (pictures / "sub").symlink_to(tmp_path / "sub")
    with pytest.raises(DataError, match="leads out of"):
        found.read(row)


def test_an_image_that_changes_while_it_is_read_waits(
    pictures: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Aligner.embed_readable

    def slow(self: Aligner, files: list[Path]) -> Any:
        os.utime(pictures / "005.jpg", (1, 1))
        return plain(self, files)

    monkeypatch.setattr(Aligner, "embed_readable", slow)
    assert "005.jpg" not in opened().names
    monkeypatch.setattr(Aligner, "embed_readable", plain)
    assert opened().changes["embedded"] == 1


def test_a_folder_that_gives_nothing_is_refused(model: Aligner, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_folder(model, tmp_path / "none")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="no image in it"):
        open_folder(model, tmp_path)
    (tmp_path / "a.png").write_text("a")
    with pytest.raises(DataError, match=r"none of 1 images can be read: .*a\.png"):
        open_folder(model, tmp_path)


def test_one_process_at_a_time_writes(opened: Opened, pictures: Path) -> None:
    store = opened().store
    Image.new("RGB", (40, 40), "blue").save(pictures / "new.png")
    with locked(store.parent), pytest.raises(RunError, match="in use by process"):
        opened()
    assert opened().changes["embedded"] == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_is_embedded_is_saved_on_the_way(
    error: type[BaseException], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    from varalign.aligner import folder_gallery

    monkeypatch.setattr(folder_gallery, "_AT_ONCE", 4)
    if error is RuntimeError:  # an interruption saves too
        monkeypatch.setattr(folder_gallery, "_SAVE_EVERY", -1.0)
    plain, calls = Aligner.embed_readable, []

    def stopped(self: Aligner, files: list[Path]) -> Any:
        calls.append(len(files))
        if len(calls) == 3:
            raise error
        return plain(self, files)

    monkeypatch.setattr(Aligner, "embed_readable", stopped)
    with pytest.raises(error):
        opened()
    monkeypatch.setattr(Aligner, "embed_readable", plain)
    assert opened().changes["embedded"] == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_writer_killed_at_any_call_leaves_a_whole_store(tmp_path: Path) -> None:
    store = tmp_path / "vectors.safetensors"
    old, new = ({"vectors": np.full((3, 4), value, np.float16)} for value in (1, 2))
    write_kept(store, "key", old)
    at = 0
    while True:
        child = os.fork()
        if not child:
            left = [at]

            def counted(name: str, left: list[int] = left) -> Callable[..., Any]:
                plain = getattr(os, name)

                def call(*given: Any, **options: Any) -> Any:
                    if not left[0]:
                        if name == "write":
                            plain(given[0], given[1][: len(given[1]) // 2])
                        os._exit(9)
                    left[0] -= 1
                    return plain(*given, **options)

                return call

            for name in ("open", "write", "fsync", "close", "replace"):
                setattr(os, name, counted(name))
            kept.write_kept(store, "key", new)
            os._exit(0)
        done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = read_kept(store, "key", mapped=True)
        assert isinstance(found, dict)
        assert found["vectors"].tolist() in (old["vectors"].tolist(), new["vectors"].tolist())
        if not done:
            break
        at += 1
    assert at > 4 and found["vectors"].tolist() == new["vectors"].tolist()


def test_names_of_any_bytes(pictures: Path, opened: Opened) -> None:
    names = [b"\xff\xfe.jpg", "ملف.jpg".encode(), b"a\nb<script>.jpg", b"a\\b.jpg"]
    for name in names:
        shutil.copy(pictures / "000.jpg", os.path.join(os.fsencode(pictures), name))
    found = opened()
    assert {os.fsdecode(name) for name in names} <= set(found.names)
    assert json.loads(json.dumps(found.names)) == found.names
    assert opened().changes == {"embedded": 0, "reused": 0, "gone": 0}
