"""The approximate index of a gallery file: recall, exact scores, and indices that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from varalign.aligner.gallery_file import FileGallery, index_gallery, open_gallery_file, read_gallery, write_gallery
from varalign.aligner.index_file import Sample, index_path, make_index, open_index
from varalign.cli import main
from varalign.data.errors import DataError
from varalign.evaluation.nearest import nearest

pytest.importorskip("faiss", reason="the extra `index` is not installed")


def unit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> FileGallery:
    """5,000 vectors in 50 clusters, with priors, and its index."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(50, 24))
    vectors = unit(centres[random.integers(0, 50, 5000)] + random.normal(size=(5000, 24))).astype(np.float16)
    prior = (0.1 * random.normal(size=5000)).astype(np.float32)
    file = tmp_path_factory.mktemp("index") / "g.safetensors"
    about = {"weights": "w", "correction": "", "folder": "/", "model": "m"}
    names = [f"{row}.jpg" for row in range(5000)]
    write_gallery(file, names, [vectors], 24, first_copies=np.arange(5000), prior=prior, about=about)
    return read_gallery(file)


def indexed(gallery: FileGallery) -> FileGallery:
    fields = {name: getattr(gallery, name) for name in gallery.__dataclass_fields__}
    return FileGallery(**fields | {"index": open_index(gallery.store, gallery.key, gallery.vectors.shape)})


def test_recall_is_reached_and_scores_are_exact(gallery: FileGallery) -> None:
    random = np.random.default_rng(1)
    rows = random.integers(0, 5000, 60)
    asked = unit(gallery.vectors[rows] + 0.1 * random.normal(size=(60, 24)))
    samples = [Sample("images", asked, False, rows), Sample("texts", asked, True)]
    made = make_index(gallery.store, gallery.key, gallery.vectors, gallery.prior, samples)
    assert made["recall@10"].keys() == {"images", "texts"} and min(made["recall@10"].values()) >= 0.95
    assert made["lists"] == 64 and 1 <= made["lists_read"] < 64
    found, skip = indexed(gallery), np.arange(5000) % 2 == 0
    hits = 0
    for corrected in (False, True):
        for query in asked:
            scores, near = found.nearest(query, 10, corrected=corrected, skip=skip)
            prior = gallery.prior if corrected else None
            right, exact = nearest(query, gallery.vectors, 10, prior=prior, skip=skip)
            same = dict(zip(exact.tolist(), right.tolist(), strict=True))
            both = [(row, score) for row, score in zip(near.tolist(), scores.tolist(), strict=True) if row in same]
            assert all(same[row] == score for row, score in both) and not skip[near].any() and len(near) == 10
            hits += len(both)
    assert hits >= 0.9 * 1200


def test_where_most_are_skipped_more_candidates_are_asked_for(gallery: FileGallery) -> None:
    if not index_path(gallery.store).exists():
        make_index(
            gallery.store, gallery.key, gallery.vectors, gallery.prior, [Sample("x", gallery.vectors[:9], False)]
        )
    found = indexed(gallery)
    found.index.index.nprobe = 64  # type: ignore[union-attr]
    skip = np.arange(5000) % 500 != 0
    query = gallery.vectors[1].astype(np.float32)
    exact = nearest(query, gallery.vectors, 10, skip=skip)[1]
    assert found.nearest(query, 10, corrected=False, skip=skip)[1].tolist() == exact.tolist()


def test_indices_that_do_not_fit_are_refused(gallery: FileGallery, tmp_path: Path) -> None:
    file = tmp_path / "g.safetensors"
    file.write_bytes(gallery.store.read_bytes())
    sample = [Sample("x", gallery.vectors[:9].astype(np.float32), False)]
    with pytest.raises(DataError, match=r"g\.faiss: cannot be read"):
        open_index(file, gallery.key, (5000, 24))
    make_index(file, gallery.key, gallery.vectors, gallery.prior, sample)
    path = index_path(file)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[1000] ^= 1
    for key, content, what in (
        ("another", whole, "older than"),
        (gallery.key, b"", "cut off"),
        (gallery.key, whole[:-9], "cut off"),
        (gallery.key, bytes(changed), "checksums differ"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=what) as error:
            open_index(file, key, (5000, 24))
        assert f"varalign embed RUN --gallery {file} --index faiss --overwrite" in str(error.value)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="of 5,000 vectors of 24 dimensions"):
        open_index(file, gallery.key, (5000, 25))


def test_the_command_line_makes_and_uses_it(
    searched_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "g.safetensors", str(searched_run)
    words = ["--gallery", str(file), "--device", "cpu"]
    made = ["--images", str(pictures), "--out", str(file), "--index", "faiss", "--device", "cpu"]
    assert not main(["embed", run, *made])
    out = capsys.readouterr().out
    assert "recall@10 1.000 by its images, 1.000 by its captions" in out and "lists are read" in out
    assert main(["embed", run, *words, "--index", "faiss"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not main(["search", run, "red", *words, "--top", "12"])
    exact = capsys.readouterr().out
    assert not main(["search", run, "red", *words, "--top", "12", "--index", "faiss"])
    assert capsys.readouterr().out == exact
    assert not main(["embed", run, *made[:-4], "--overwrite", "--device", "cpu"])
    (pictures / "000.jpg").unlink()
    assert not main(["embed", run, *made[:-4], "--overwrite", "--device", "cpu"])
    assert main(["search", run, "red", *words, "--index", "faiss"]) == 2
    assert f"{file.with_suffix('.faiss')}: older than {file}" in capsys.readouterr().err
    assert not main(["embed", run, *words, "--index", "faiss", "--overwrite"])
    assert not main(["search", run, "red", *words, "--index", "faiss"])
    model = varalign.load(searched_run, device="cpu")
    assert index_gallery(model, open_gallery_file(model, file))["recall@10"] == {"images": 1.0, "captions": 1.0}
