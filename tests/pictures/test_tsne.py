"""t-SNE pictures: files, repeatability, and the faults that are named before anything is computed."""

from __future__ import annotations

import os

import numpy as np
import pytest
from varalign.pictures import tsne
from varalign.pictures.tsne import Collapsed, choose_pairs, draw_layouts, fitting_perplexities, layouts, pair_points


def pairs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.standard_normal((count, 8)).astype(np.float32)
    return images, images + 0.1 * generator.standard_normal((count, 8)).astype(np.float32)


def draw_tsne(images, texts, perplexities, out, jobs=None, **options):
    points = pair_points(images, texts)
    wanted = fitting_perplexities(perplexities, len(points))
    return draw_layouts(dict(zip(wanted, layouts(points, wanted, jobs=jobs), strict=True)), out, **options)


def test_writes_one_picture_a_perplexity_and_a_sheet(tmp_path):
    from PIL import Image

    files = draw_tsne(*pairs(12), [5, 7.5, 5.0], tmp_path / "pictures", jobs=1)
    assert [file.name for file in files] == ["tsne_perplexity_5.png", "tsne_perplexity_7.5.png", "tsne.png"]
    with Image.open(files[0]) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
        assert picture.size[0] > 1000
    assert any(red > 200 and blue < 100 for red, _, blue in colours)
    assert any(blue > 190 and red < 80 for red, _, blue in colours)


def test_the_same_seed_gives_the_same_coordinates_in_processes_and_here():
    points = np.concatenate(pairs(15))
    here = layouts(points, [3.0, 8.0], seed=4, jobs=1)
    beside = layouts(points, [3.0, 8.0], seed=4, jobs=2)
    assert all(np.array_equal(a, b) for a, b in zip(here, beside, strict=True))
    assert here[0].shape == (30, 2) and not np.array_equal(here[0], here[1])


def test_close_pairs_are_drawn_close():
    layout = layouts(np.concatenate(pairs(40)), [5.0], jobs=1)[0]
    images, texts = np.split(layout, 2)
    apart = np.linalg.norm(images[:, None] - texts[None], axis=2)
    assert np.median(np.diag(apart)) < 0.3 * np.median(apart)


def test_one_pair_and_one_dimension(tmp_path):
    assert len(draw_tsne([[0.0, 1.0]], [[1.0, 0.0]], [1], tmp_path)) == 2
    assert len(draw_tsne([[0.0], [2.0]], [[1.0], [3.0]], [2], tmp_path)) == 2


@pytest.mark.parametrize(
    ("perplexities", "message"),
    [
        ([24], r"perplexity 24: wanted at least 1 and less than the number of points, which is 24 \(12 pairs"),
        ([5, 0.5], "perplexity 0.5: wanted at least 1"),
        ([30.5], "perplexity 30.5: wanted"),
        ([0], "perplexity 0: wanted at least 1"),
        ([float("nan")], "perplexity nan"),
        ([], "wanted at least one, got none"),
    ],
)
def test_perplexities_that_do_not_fit(tmp_path, perplexities, message):
    with pytest.raises(ValueError, match=message):
        draw_tsne(*pairs(12), perplexities, tmp_path / "none")
    assert not os.listdir(tmp_path)


def test_perplexities_that_are_too_large_are_left_out_with_a_remark():
    remarks: list[str] = []
    assert fitting_perplexities([5, 50, 30, 5], 24, remarks.append) == [5]
    assert remarks == ["perplexity 50, 30: left out, there are only 24 points (12 pairs)"]


def test_forms_of_files(tmp_path):
    for form, head in (("pdf", b"%PDF"), ("svg", b"<?xml")):
        files = draw_tsne(*pairs(12), [5], tmp_path / form, jobs=1, form=form, about="$a$ <b>, test split")
        assert [file.name for file in files] == [f"tsne_perplexity_5.{form}", f"tsne.{form}"]
        assert all(file.read_bytes().startswith(head) for file in files)
        again = draw_tsne(*pairs(12), [5], tmp_path / "again", jobs=1, form=form, about="$a$ <b>, test split")
        assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again] or form == "svg"


def test_embeddings_that_cannot_be_drawn(tmp_path):
    images, texts = pairs(12)
    with pytest.raises(ValueError, match=r"one width \(n, D\), got \(12, 8\), \(11, 8\)"):
        draw_tsne(images, texts[:11], [5], tmp_path)
    texts[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"text embeddings: 1 of 12 rows hold NaN or infinity \(first: row 3\)"):
        draw_tsne(images, texts, [5], tmp_path)
    noise = np.random.default_rng(0).standard_normal((2, 12, 8))
    apart = noise / np.linalg.norm(noise, axis=2, keepdims=True)
    one = np.ones((12, 8)) / 8**0.5
    for given, name in (((one, one), "image"), ((one + 1e-7 * noise[0], apart[1]), "image"), ((apart[0], one), "text")):
        with pytest.raises(Collapsed, match=f"all {name} embeddings are one point"):
            draw_tsne(*given, [5], tmp_path / "none")
    assert not os.listdir(tmp_path)


def test_choose_pairs():
    assert choose_pairs(3).tolist() == [0, 1, 2]
    chosen = choose_pairs(5000, 1000, seed=1)
    assert len(set(chosen.tolist())) == 1000 and (np.diff(chosen) > 0).all() and chosen.max() < 5000
    assert np.array_equal(chosen, choose_pairs(5000, 1000, seed=1))
    assert not np.array_equal(chosen, choose_pairs(5000, 1000, seed=2))
    with pytest.raises(ValueError, match="limit"):
        choose_pairs(3, 0)


def test_leaves_pyplot_alone(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from pathlib import Path; from varalign.pictures.tsne import draw_layouts; "
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules; "
        f"draw_layouts({{2.0: np.eye(4)[:, :2]}}, Path({str(tmp_path)!r})); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_points_are_drawn_by_pca_without_opentsne_which_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tsne, "MOST_POINTS", 40)
    monkeypatch.setattr(tsne, "find_spec", lambda name: None)
    points = np.concatenate(pairs(30))
    found = layouts(points, [5.0, 8.0])
    said = capsys.readouterr().err
    assert said.count("60 points: drawn by PCA") == 1 and "pip install 'varalign[tsne]', or fewer --pairs" in said
    centred = points - points.mean(0)
    places = np.linalg.svd(centred, full_matrices=False)
    expected = np.abs(places[0][:, :2] * places[1][:2])
    assert all(np.allclose(np.abs(layout), expected, atol=1e-4) for layout in found)
    assert draw_layouts(dict(zip([5.0], found, strict=False)), tmp_path)[0].is_file()
    assert tsne.plane(np.arange(60, dtype=np.float32)[:, None])[:, 1].tolist() == [0.0] * 60
    assert not capsys.readouterr().err and layouts(points[:40], [5.0], jobs=1)[0].shape == (40, 2)
    assert not capsys.readouterr().err


def test_many_points_are_drawn_by_opentsne(monkeypatch):
    pytest.importorskip("openTSNE", reason="openTSNE (extra tsne) is not installed")
    monkeypatch.setattr(tsne, "MOST_POINTS", 40)
    points = np.concatenate([np.random.default_rng(0).normal(6 * (k // 30), 1, (1, 8)) for k in range(60)])
    first, second = (layouts(points.astype(np.float32), [5.0], seed=3, jobs=1)[0] for _ in range(2))
    assert first.shape == (60, 2) and np.array_equal(first, second)
    nearest = (((first[:, None] - first[None]) ** 2).sum(2) + np.eye(60) * 1e9).argmin(1)
    assert ((nearest < 30) == (np.arange(60) < 30)).all(), "every point stands beside one of its own group"
