"""`varalign data stats` against plain NumPy and plain Python on a small folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from varalign.cli import main
from varalign.data.checks import summary as summary_room
from varalign.data.checks.summary import summarise
from varalign.data.datasets import load_dataset
from varalign.data.errors import DataError
from varalign.data.images import decode_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty square images of noise, two captions each; the sizes and the words vary."""
    rng = np.random.default_rng(0)
    (tmp_path / "Images").mkdir()
    lines = ["image,caption"]
    for row in range(40):
        side = 8 * (2 + row % 5)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / f"Images/{row}.png")
        lines += [f"{row}.png,A dog runs!", f"{row}.png,{'the snow ' * (row % 4)}thing{row}"]
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_captions_are_counted_some_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = summarise(folder, images=2, size=16, threads=1)
    monkeypatch.setattr(summary_room, "CAPTIONS_AT_A_TIME", 7)
    assert summarise(folder, images=2, size=16, threads=1) == whole


def test_figures_are_those_of_plain_numpy(folder: Path) -> None:
    summary = summarise(folder, images=0, size=16, threads=1)
    dataset = load_dataset(folder)
    training = dataset.rows("train")
    assert (summary.images, summary.captions, summary.pixels["images"]) == (40, 80, len(training))
    sides = [decode_image(dataset.image_paths[row].read_bytes()).shape[0] for row in training]
    assert summary.image_sizes["width"]["mean"] == pytest.approx(np.mean(sides), rel=1e-12)
    assert summary.image_sizes["height"]["quantiles"]["1.0"] == max(sides)  # type: ignore[index]
    squares = [
        np.asarray(Image.open(dataset.image_paths[row]).resize((16, 16), Image.Resampling.BICUBIC)) for row in training
    ]
    levels = np.stack(squares).reshape(-1, 3) / 255
    np.testing.assert_allclose(summary.pixels["mean"], levels.mean(0), atol=1e-3)
    np.testing.assert_allclose(summary.pixels["std"], levels.std(0), atol=1e-3)
    lengths = [len(caption.replace("!", "").split()) for caption in dataset.captions]
    assert summary.lengths["words"]["mean"] == pytest.approx(np.mean(lengths), rel=1e-12)
    assert summary.lengths["words"]["quantiles"]["0.5"] == pytest.approx(np.median(lengths), abs=0.5)

    def words(split: str) -> list[list[str]]:
        rows = dataset.caption_rows(dataset.rows(split))
        return [dataset.captions[row].lower().replace("!", "").split() for row in rows]

    known = Counter(word for caption in words("train") for word in caption)
    assert summary.vocabulary["words"] == len(known)
    assert summary.vocabulary["words_seen_once"] == sum(count == 1 for count in known.values())
    for split in ("dev", "test"):
        covered = summary.vocabulary["coverage"][split]
        running = [word in known for caption in words(split) for word in caption]
        assert covered["words"] == pytest.approx(np.mean(running), rel=1e-12)
        assert covered["captions"] == pytest.approx(
            np.mean([all(word in known for word in caption) for caption in words(split)]), rel=1e-12
        )


def test_the_command_prints_one_json_value_or_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(folder), "--draw", "5", "--size", "16", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pixels"]["images"] == 5 and printed["splits"]["train"] > 5
    assert main(["data", "stats", str(folder), "--draw", "5", "--size", "16"]) == 0
    text = capsys.readouterr().out
    assert "40 images, 80 captions" in text and "words in the training captions" in text


def test_unreadable_images_are_counted_and_none_at_all_is_an_error(folder: Path) -> None:
    row = load_dataset(folder).rows("train")[0]
    load_dataset(folder).image_paths[row].write_bytes(b"no image")
    assert summarise(folder, images=0, size=16).pixels["unreadable"] == 1
    for path in (folder / "Images").iterdir():
        path.write_bytes(b"no image " + path.name.encode())
    with pytest.raises(DataError, match="none of .* training images can be read"):
        summarise(folder, size=16)


def test_wrong_use_says_what_was_wanted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(folder / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["data", "stats", str(folder), "--size", "0"]) == 2
    assert "a size of 1 to 8192" in capsys.readouterr().err
    assert main(["data", "stats", str(folder), "--size", "16", "--bert", str(folder)]) == 2
    assert "neither vocab.txt nor tokenizer.json" in capsys.readouterr().err
