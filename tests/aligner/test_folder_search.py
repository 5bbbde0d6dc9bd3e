"""Search over a folder and over captions, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import varalign
from varalign.cli import main
from varalign.data.images import decode_image


@pytest.fixture
def said(searched_run: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `varalign COMMAND RUN …`; returns the exit code and the JSON, or what is on standard error."""

    def run(command: str, *words: object) -> Any:
        code = main([command, str(searched_run), *map(str, words), "--device", "cpu", "--json"])
        out, error = capsys.readouterr()
        return code, json.loads(out) if not code else error

    return run


def test_a_text_finds_images_less_their_priors(said: Any, searched_run: Path, pictures: Path) -> None:
    code, found = said("search", "a", "red", "square", "--images", pictures, "--top", 3)
    model = varalign.load(searched_run, device="cpu")
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.jpg"))
    images = model.embed_images([pictures / name for name in names])
    assert model.hub.correction is not None
    import torch

    prior = model.hub.correction.image_prior(torch.from_numpy(images)).numpy()
    scores, rows = model.rank(model.embed_texts(["a red square"]), images, 3, prior=prior)
    assert not code and [hit["score"] for hit in found] == pytest.approx(scores[0].tolist(), abs=2e-3)
    assert {hit["image"] for hit in found} == {names[row] for row in rows[0]}
    assert [hit["file"] for hit in found] == [str(pictures / hit["image"]) for hit in found]


def test_an_image_finds_images_without_a_prior(said: Any, pictures: Path, searched_run: Path) -> None:
    file = pictures / "004.jpg"
    for words in (("--images", pictures), ("--find", "images")):
        code, found = said("search", "--image", file, *words, "--top", 2)
        assert not code and found[0]["image"] == "004.jpg" and found[0]["score"] == pytest.approx(1, abs=1e-3)
    assert found[0]["caption"] and Path(found[0]["file"]).is_file()


def test_a_text_finds_texts(said: Any, pictures: Path, image_folder: Path) -> None:
    caption = (image_folder / "captions.txt").read_text().splitlines()[1].partition(",")[2].strip('"')
    for words in ((), ("--images", pictures), ("--images", pictures, "--captions", image_folder / "captions.txt")):
        code, found = said("search", caption, "--find", "captions", *words, "--top", 1)
        assert not code and found[0]["caption"] == caption and found[0]["score"] == pytest.approx(1, abs=1e-4)
    assert found[0]["image"] == "000.jpg" and found[0]["file"] == str(pictures / "000.jpg")


def test_captions_stand_beside_the_images(said: Any, pictures: Path, image_folder: Path) -> None:
    captions = image_folder / "captions.txt"
    code, found = said("search", "red", "--images", pictures, "--captions", captions, "--top", 12)
    lines = captions.read_text()
    assert not code and len(found) == 12
    assert all(f"{Path(hit['image']).name}," in lines and hit["caption"] in lines for hit in found)
    code, kept = said("embed", "--images", pictures, "--captions", captions)
    assert not code and kept["captions"] == 24 and kept["images"] == 12
    assert Path(kept["store"]).with_name("captions.safetensors").is_file()


def test_the_sheet_shows_what_was_found(said: Any, pictures: Path, tmp_path: Path) -> None:
    (pictures / "\u0645\u0644\u0641 $x$ \u202e.jpg").write_bytes((pictures / "000.jpg").read_bytes())
    sheet = tmp_path / "out.png"
    code, found = said("search", "red", "--images", pictures, "--top", 7, "--sheet", sheet)
    pixels = decode_image(sheet.read_bytes())
    assert not code and len(found) == 7 and pixels.shape[1] > 5 * 240 and pixels.shape[0] > 2 * 240
    first = decode_image(Path(found[0]["file"]).read_bytes())
    assert np.abs(pixels[42 + 120, 12 + 120].astype(int) - first[24, 24]).max() < 40, "its middle is the image's"
    code, error = said("search", "red", "--images", pictures, "--sheet", sheet)
    assert code == 2 and "is there already" in error
    assert not said("search", "red", "--images", pictures, "--sheet", sheet, "--overwrite")[0]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["search", "red", "--images", "nowhere"], "--images nowhere: there is no such folder"),
        (["search", "red", "--images", "DIR", "--split", "test"], "--split: the images of a folder have no splits"),
        (["search", "red", "--find", "captions", "--sheet", "a.png"], "--sheet shows images"),
        (["search", "red", "--sheet", "a.jpg"], "wanted a name ending in .png"),
        (["search", "red", "--sheet", "nowhere/a.png"], "there is no folder nowhere"),
        (["search", "red", "--images", "DIR", "--captions", "CSV"], "no caption names an image of"),
        (["embed", "--images", "DIR", "--out", "a.npz"], "wanted a name ending in .safetensors, for the gallery"),
        (["embed", "--images", "DIR", "--split", "dev"], "--split: the images of a folder have no splits"),
        (["embed", "--images", "DIR", "--features"], "--features does not go with --images"),
        (["embed"], "name the file to write (--out FILE)"),
    ],
)
def test_errors_say_what_to_do(said: Any, pictures: Path, tmp_path: Path, words: list[str], error: str) -> None:
    (tmp_path / "a.csv").write_text("image,caption\nother.jpg,a dog\n../../x.jpg,a cat\n")
    given = [{"DIR": str(pictures), "CSV": str(tmp_path / "a.csv")}.get(word, word) for word in words]
    code, told = said(*given)
    assert code == 2 and error in told
