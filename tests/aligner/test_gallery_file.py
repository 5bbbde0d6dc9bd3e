"""A gallery file: what is in it, what it finds, and which files are refused, on the command line too."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from safetensors.numpy import load_file
from varalign.aligner.folder_search import FolderSearch, Query, open_file_search, open_search
from varalign.aligner.gallery_file import Names, open_gallery_file, read_gallery, write_gallery
from varalign.cli import main
from varalign.data.errors import DataError
from varalign.data.readers.reading import Reading

Said = Callable[..., Any]


@pytest.fixture
def said(searched_run: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs `varalign COMMAND RUN …`; returns the exit code and the JSON, or what is on standard error."""

    def run(command: str, *words: object) -> Any:
        code = main([command, str(searched_run), *map(str, words), "--device", "cpu", "--json"])
        out, error = capsys.readouterr()
        return code, json.loads(out) if not code else error

    return run


@pytest.fixture
def folder(pictures: Path) -> Path:
    """The pictures with a copy of one, and a name that is no UTF-8."""
    shutil.copy(pictures / "003.jpg", pictures / "zz copy.jpg")
    shutil.copy(pictures / "004.jpg", os.path.join(os.fsencode(pictures), b"\xff.jpg"))
    return pictures


@pytest.fixture
def file(said: Said, folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "new" / "gallery.safetensors"
    code, written = said("embed", "--images", folder, "--out", path)
    assert not code and written["gallery"] == str(path) and written["images"] == 14
    return path


def test_it_finds_what_the_folder_finds(searched_run: Path, folder: Path, file: Path) -> None:
    model = varalign.load(searched_run, device="cpu")
    of_folder = open_search(model, folder, Reading(), lambda line: None, own=False)
    of_file = open_file_search(model, file, None, lambda line: None, own=False)
    for query in (Query(model.encode("a red square"), "text"), of_file.like(4), of_file.like(3)):
        for copies in (False, True):
            assert of_file.images(query, 14, copies=copies) == of_folder.images(query, 14, copies=copies)
    assert "zz copy.jpg" not in {hit.name for hit in of_file.images(of_file.like(3), 14)}
    assert [of_file.gallery.read(row) for row in range(14)] == [of_folder.gallery.read(row) for row in range(14)]


def test_other_programs_read_it(file: Path, folder: Path, searched_run: Path) -> None:
    arrays, found = load_file(file), read_gallery(file)
    assert arrays["image_embeddings"].dtype == np.float16 and arrays["image_prior"].shape == (14,)
    names = arrays["names"].tobytes()
    ends = arrays["name_ends"].tolist()
    assert [names[a:b] for a, b in zip([0, *ends], ends, strict=False)] == [os.fsencode(name) for name in found.names]
    assert found.folder == folder and found.names[-2:] == ["zz copy.jpg", "\udcff.jpg"]


def test_the_command_line_searches_it(said: Said, file: Path, folder: Path, tmp_path: Path) -> None:
    code, found = said("search", "a red square", "--gallery", file, "--top", 3)
    assert not code and found == said("search", "a red square", "--images", folder, "--top", 3)[1]
    moved = folder.rename(tmp_path / "moved")
    code, found = said("search", "a red square", "--gallery", file, "--images", moved, "--top", 3)
    assert not code and all(Path(hit["file"]).is_file() for hit in found)
    code, found = said("search", "red", "--gallery", file, "--find", "captions", "--top", 1)
    assert not code and found[0]["caption"]


def test_damaged_files_are_refused(file: Path) -> None:
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for what, content in {
        "empty": b"",
        "no gallery, or a damaged one": b"not a gallery at all",
        "cut off, or something added": whole[:-1],
        "damaged (its checksums differ)": whole[: header + 99]
        + bytes([whole[header + 99] ^ 1])
        + whole[header + 100 :],
        "no gallery that this version": whole.replace(b"varalign gallery 1", b"varalign gallery 0"),
        "checksums differ": whole.replace(b'"folder": "/', b'"folder": "x'),
    }.items():
        file.write_bytes(content)
        with pytest.raises(DataError) as error:
            read_gallery(file)
        assert what in str(error.value) and str(error.value).startswith(f"{file}: ")
        assert "varalign embed RUN --images DIR --out" in str(error.value)


def test_another_models_file_is_refused(file: Path, searched_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = varalign.load(searched_run, device="cpu")
    monkeypatch.setattr(model, "weights", "others")
    with pytest.raises(DataError, match="written with other weights than .*run has now; name the run"):
        open_gallery_file(model, file)
    model = varalign.load(searched_run, device="cpu")
    monkeypatch.setattr("varalign.aligner.gallery_file.correction_key", lambda correction: "another")
    with pytest.raises(DataError, match="written with another hub correction"):
        open_gallery_file(model, file)


def test_a_write_that_fails_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()

    def vectors() -> Any:
        yield np.ones((1, 4), np.float16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gallery(file, ["a"], vectors(), 4, first_copies=np.zeros(1, np.int64), prior=None, about={})
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["search", "red", "--gallery", "nowhere"], "nowhere: cannot be read"),
        (["search", "red", "--gallery", "FILE", "--images", "nowhere"], "--images nowhere: there is no such folder"),
        (["search", "red", "--gallery", "FILE", "--captions", "x.csv"], "--captions does not go with --gallery"),
        (["search", "red", "--gallery", "FILE", "--split", "dev"], "--split: the images of a folder have no splits"),
        (["search", "red", "--images", "DIR", "--index", "faiss"], "--index faiss goes with a gallery file"),
        (["embed", "--images", "DIR", "--out", "FILE"], "is there already"),
        (["embed", "--gallery", "FILE"], "name its kind (--index faiss)"),
        (["embed", "--gallery", "FILE", "--index", "faiss", "--out", "x.safetensors"], "and no --out"),
        (["embed", "--images", "DIR", "--index", "faiss"], "--index faiss goes with a gallery file"),
        (["embed", "--out", "x.safetensors", "--index", "faiss"], "--index faiss goes with a gallery file"),
    ],
)
def test_errors_say_what_to_do(said: Said, file: Path, folder: Path, words: list[str], error: str) -> None:
    code, told = said(*({"FILE": str(file), "DIR": str(folder)}.get(word, word) for word in words))
    assert code == 2 and error in told


def test_names_are_a_sequence() -> None:
    names = Names(np.frombuffer("aé".encode() + b"\xff", np.uint8), np.array([1, 3, 3, 4]))
    assert list(names) == ["a", "é", "", "\udcff"] and names[-1] == "\udcff" and names[:2] == ["a", "é"]
    with pytest.raises(IndexError):
        names[4]


def test_a_query_of_another_width_is_refused(searched_run: Path, file: Path) -> None:
    search = FolderSearch(varalign.load(searched_run, device="cpu"), read_gallery(file))
    with pytest.raises(ValueError, match="queries of 5 dimensions, and vectors of 16"):
        search.images(Query(np.ones(5, np.float32), "text"), 1)
