"""The report on a data folder: what it names, and when it says that training would fail."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from varalign.cli import main
from varalign.data.checks.dataset_check import Report, check_dataset
from varalign.data.datasets import load_dataset
from varalign.data.readers.reading import Reading
from varalign.data.sample import write_sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sample(tmp_path / "data", images=120, size=32)
    return tmp_path / "data"


def add_captions(folder: Path, *lines: str) -> None:
    with (folder / "captions.txt").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def image(folder: Path, number: int) -> Path:
    return folder / "Images" / f"scene_{number:05d}.jpg"


def test_a_good_folder(folder: Path) -> None:
    report = check_dataset(folder)
    assert not report.faults
    assert (report.images, report.captions) == (120, 600)
    assert report.splits == {"train": 60, "dev": 30, "test": 30, "none": 0}
    assert report.captions_per_image == {"least": 5, "mean": 5.0, "most": 5}
    assert report.lines()[-1] == "fit for training"
    assert "missing images: none" in report.lines()
    assert json.loads(json.dumps(report.as_dict()))["faults"] is False


def test_suspicious_and_repeated_captions_are_no_fault(folder: Path) -> None:
    add_captions(
        folder,
        "scene_00000.jpg,A",
        "scene_00001.jpg,broken image",
        "scene_00002.jpg,. . .",
        "scene_00003.jpg,A bell\x07 rings",
        "scene_00004.jpg,see https://example.org/x",
        "scene_00005.jpg,Two dogs run .",
        "scene_00006.jpg,two dogs  run .",
        "scene_00006.jpg,two dogs run .",
    )
    report = check_dataset(folder)
    assert not report.faults
    assert report.suspicious == [
        "'scene_00000.jpg': 'A': a word or less",
        "'scene_00001.jpg': 'broken image': says that something went wrong",
        "'scene_00002.jpg': '. . .': a word or less",
        "'scene_00003.jpg': 'A bell\\x07 rings': holds control characters",
        "'scene_00004.jpg': 'see https://example.org/x': holds a web address",
    ]
    assert report.repeated == {"two dogs run": 2}
    assert report.captions_per_image["most"] == 7


def test_copies_and_images_without_captions_are_no_fault(folder: Path) -> None:
    image(folder, 1).write_bytes(image(folder, 0).read_bytes())
    (folder / "Images" / "new.jpg").write_bytes(image(folder, 2).read_bytes())
    report = check_dataset(folder)
    assert not report.faults
    assert report.copies == [["scene_00000.jpg", "scene_00001.jpg"]]
    assert report.without_captions == ["new.jpg"]


def test_missing_images_are_a_fault(folder: Path) -> None:
    for number in range(3):
        image(folder, number).unlink()
    report = check_dataset(folder)
    assert len(report.missing) == 15
    assert "'scene_00000.jpg' (line 2)" in report.missing
    assert "15 captions name images not in" in report.problems[0]
    assert report.images == 117, "the rest is looked at all the same"
    assert report.lines()[-1] == "training would fail"
    assert "  and 5 more" in report.lines()


def test_empty_captions_are_a_fault(folder: Path) -> None:
    add_captions(folder, "scene_00000.jpg,")
    assert check_dataset(folder).problems == [
        "1 captions are empty: captions.txt line 602; write them, remove the lines, or pass "
        "--skip-missing to leave them out"
    ]


def test_unreadable_images_are_a_fault_above_the_limit(folder: Path) -> None:
    image(folder, 4).write_bytes(b"this is text")
    image(folder, 5).write_bytes(image(folder, 5).read_bytes()[:200])
    report = check_dataset(folder)
    assert list(report.unreadable) == ["scene_00004.jpg", "scene_00005.jpg"]
    assert all(report.unreadable.values())
    assert report.problems == [
        "2 of 120 images are unreadable, more than the 1 % that `train --max-bad` allows: mend or remove them"
    ]
    assert not check_dataset(folder, max_bad=0.05).faults


def test_what_is_too_little_to_learn_from_is_not_called_fit(tmp_path: Path) -> None:
    write_sample(tmp_path, images=12, size=32)
    report = check_dataset(tmp_path)
    assert not report.faults
    assert report.few == [
        "6 train images, wanted at least 50",
        "3 dev images, wanted at least 30",
        "3 test images, wanted at least 30",
    ]
    assert "too few: 3 dev images, wanted at least 30" in report.lines()
    assert report.lines()[-1] == (
        "training would run, but its figures would say little; wanted at least 50 train, 30 dev, 30 test images"
    )


def test_file_handles_that_ran_out_are_no_fault_of_an_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("varalign.data.files.open_user_file", refuse)
    monkeypatch.setattr("varalign.data.readers.text_file.read_bytes", lambda path, limit: path.read_bytes())
    monkeypatch.setattr("varalign.data.splits.read_bytes", Path.read_bytes)
    monkeypatch.setattr("varalign.data.datasets.identical_files", lambda images: np.arange(len(images)))
    with pytest.raises(OSError, match="open files"):
        check_dataset(folder)


def test_an_empty_split_is_a_fault(folder: Path) -> None:
    (folder / "Flickr_8k.devImages.txt").write_text("")
    assert check_dataset(folder).problems == [
        "the dev split has 0 images; training needs at least 1; add images; where the splits are given, "
        "--split-by seed draws all three anew"
    ]
    report = check_dataset(folder, reading=Reading(split_by="seed"))
    assert report.problems == [] and report.splits == {"train": 96, "dev": 12, "test": 12, "none": 0}


def test_what_cannot_be_read_is_the_fault(tmp_path: Path, folder: Path) -> None:
    assert "there is no such folder" in check_dataset(tmp_path / "absent").problems[0]
    (folder / "captions.txt").write_bytes(b"image;dog\n1;2\n")
    report = check_dataset(folder)
    assert "say which of them holds the captions" in report.problems[0]
    assert isinstance(report, Report)
    assert report.lines()[-1] == "training would fail"


def photo(seed: int) -> Image.Image:
    """A picture of random soft blobs: two seeds have nothing in common."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC)


def test_near_duplicates_are_listed_with_their_splits_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Images").mkdir()
    names = [f"{number:02}.jpg" for number in range(12)]
    for number, name in enumerate(names):
        photo(number).save(tmp_path / "Images" / name, quality=90)
    photo(0).resize((80, 60)).save(tmp_path / "Images" / names[11], quality=60)  # 11 is 0 again
    (tmp_path / "captions.txt").write_text("image,caption\n" + "".join(f"{name},text {name}\n" for name in names))
    for split, part in (("train", names[:6]), ("dev", names[6:9]), ("test", names[9:])):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part) + "\n")
    assert check_dataset(tmp_path).near_duplicates is None
    assert (
        main(["data", "check", str(tmp_path), "--near-duplicates", "--page", str(tmp_path / "p.html"), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    (pair,) = found["near_duplicates"]
    assert pair["images"] == ["00.jpg", "11.jpg"] and pair["splits"] == ["train", "test"]
    assert 0 <= pair["bits"] <= 24 and pair["cosine"] is None
    assert found["near_across"] == {"train and test": 1}
    page = (tmp_path / "p.html").read_text()
    assert page.count("<img") == 2 and "00.jpg, train" in page and "1 pairs, 1 of them in two splits" in page
    assert main(["data", "check", str(tmp_path), "--near-duplicates", "--page", str(tmp_path / "p.html")]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "--page", "q.html"]) == 2
    report = check_dataset(tmp_path, near_duplicates=True)
    assert "near-duplicates (in train and test 1): 1" in report.lines()

    together = load_dataset(tmp_path, reading=Reading(split_by="near-duplicates"))
    assert together.split[[0, 11]].tolist() == [-1, 2], "the test image stays where it is"
    assert any("1 images taken out of their split, near-duplicates of" in note for note in together.notes)
    assert len(np.unique(together.image_ids)) == 12, "they remain two images"


def test_flickr8k(shared_data: Path) -> None:
    report = check_dataset(shared_data / "flickr8k_128")
    assert not report.faults
    assert report.unreadable == {}
    assert report.copies == [["2851198725_37b6027625.jpg", "3050606344_af711c726c.jpg"]]
    assert [line.split(":")[0].strip("'") for line in report.suspicious] == [
        "2428275562_4bde2bc5ea.jpg",
        "2755314937_1e974bf2b5.jpg",
        "3640443200_b8066f37f6.jpg",
    ]
