"""A folder of images and captions becomes a data set: every layout, every fault, and what must never happen."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.errors import DataError
from varalign.data.readers.image_folder import ImageFile, identical_files
from varalign.data.readers.reading import Reading


def image_bytes(number: int) -> bytes:
    """Bytes that stand for an image: loading a data set looks at size and equality only."""
    return b"\xff\xd8" + number.to_bytes(4, "little") + bytes(number % 7)


def lay_out(folder: Path, names: list[str], images: str = "Images", captions: int = 2) -> Path:
    (folder / images).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / images / name).write_bytes(image_bytes(number))
    rows = [f"{name},Caption {k} of {name} ." for name in names for k in range(captions)]
    (folder / "captions.txt").write_text("\n".join(["image,caption", *rows]) + "\n", encoding="utf-8")
    return folder


NAMES = [f"{number}.jpg" for number in range(20)]


@pytest.mark.parametrize("images", ["Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "."])
def test_image_folders(tmp_path: Path, images: str) -> None:
    dataset = load_dataset(lay_out(tmp_path, NAMES, images))
    assert dataset.image_names == NAMES
    assert all(path.is_file() for path in dataset.image_paths)
    assert len(dataset.captions) == 40
    assert dataset.caption_image_ids.tolist() == [i // 2 for i in range(40)]
    assert dataset.caption_file == tmp_path / "captions.txt"
    assert (dataset.split.dtype, dataset.image_ids.dtype, dataset.caption_image_ids.dtype) == ("int8", "int64", "int64")
    assert dataset.notes[1:] == ["splits drawn by seed 0, as no list is there: 16 train, 2 dev, 2 test"]


def test_an_empty_folder_of_images_does_not_hide_the_full_one(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES, "Flicker8k_Dataset")
    (tmp_path / "Images").mkdir()
    assert load_dataset(tmp_path).image_paths[0] == tmp_path / "Flicker8k_Dataset" / "0.jpg"


def test_captions_files_have_an_order_of_precedence(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    (tmp_path / "Flickr8k.token.txt").write_text("0.jpg#0\tOther .\n1.jpg#0\tOther .\n2.jpg#0\tOther .\n")
    dataset = load_dataset(tmp_path)
    assert dataset.notes[1] == "captions from captions.txt; also there and not read: Flickr8k.token.txt"
    assert len(dataset.captions) == 40
    for place in ("Flickr8k.token.txt", tmp_path / "Flickr8k.token.txt"):
        dataset = load_dataset(tmp_path, reading=Reading(captions=str(place)))
        assert dataset.captions == ["Other ."] * 3
        assert (
            dataset.notes[1] == "17 images have no caption and are left out: '10.jpg', '11.jpg', '12.jpg' and 14 more"
        )
    (tmp_path / "captions.txt").unlink()
    (tmp_path / "Flickr8k_text").mkdir()
    (tmp_path / "Flickr8k.token.txt").rename(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt")
    assert load_dataset(tmp_path).captions == ["Other ."] * 3


def test_karpathy_brings_its_splits(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    (tmp_path / "captions.txt").unlink()
    splits = ["train", "restval", "val", "test"]
    images = [
        {"filename": name, "split": splits[i % 4], "sentences": [{"raw": f"Caption of {name}"}]}
        for i, name in enumerate(NAMES)
    ]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    dataset = load_dataset(tmp_path)
    assert dataset.split.tolist() == [0, 0, 1, 2] * 5
    assert dataset.notes[1:] == ["splits from dataset_flickr8k.json: 10 train, 5 dev, 5 test"]


def test_coco_is_two_files_and_two_folders(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for part, numbers in (("train2017", range(4)), ("val2017", range(4, 6))):
        (tmp_path / part).mkdir()
        for number in numbers:
            (tmp_path / part / f"{number:012}.jpg").write_bytes(image_bytes(number))
        value = {
            "images": [{"id": number, "file_name": f"{number:012}.jpg"} for number in numbers],
            "annotations": [{"image_id": number, "caption": f"Caption {number}"} for number in numbers],
        }
        (tmp_path / "annotations" / f"captions_{part}.json").write_text(json.dumps(value))
    dataset = load_dataset(tmp_path)
    assert dataset.image_names[3:5] == ["train2017/000000000003.jpg", "val2017/000000000004.jpg"]
    assert dataset.image_paths[4] == tmp_path / "val2017" / "000000000004.jpg"
    assert dataset.split.tolist()[:4] == [0] * 4
    assert sorted(dataset.split.tolist()[4:]) == [1, 2], "val is dev, and half of it test"
    assert dataset.notes[2] == "there is no test split: half of the dev images, drawn by seed 0, are test"
    assert dataset.captions[5] == "Caption 5"
    alone = load_dataset(tmp_path, reading=Reading(captions="annotations/captions_train2017.json"))
    assert sorted(set(alone.split.tolist())) == [0, 1, 2], "one COCO file alone is split by the seed"


def test_names_match_in_either_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))
    for number, (on_disk, in_file) in enumerate([(composed, decomposed), (decomposed, composed)]):
        folder = lay_out(tmp_path / str(number), [*NAMES[:3], on_disk])
        text = (folder / "captions.txt").read_text(encoding="utf-8").replace(on_disk, in_file)
        (folder / "captions.txt").write_text(text + f"{on_disk},Both spellings are one image .\n", encoding="utf-8")
        dataset = load_dataset(folder)
        assert dataset.image_names == [*NAMES[:3], on_disk]
        assert dataset.caption_rows([3]).tolist() == [6, 7, 8]


def renamed(folder: Path, new: Callable[[str], str]) -> Path:
    """The folder with other names in its captions file than on disk."""
    text = (folder / "captions.txt").read_text()
    for name in NAMES:
        text = text.replace(f"\n{name},", f"\n{new(name)},")
    (folder / "captions.txt").write_text(text)
    return folder


def test_names_in_another_case_are_found_with_a_note(tmp_path: Path) -> None:
    dataset = load_dataset(renamed(lay_out(tmp_path, NAMES), str.upper))
    assert dataset.image_names == NAMES
    assert dataset.notes[1] == (
        "captions.txt: 20 image names are in another case than their files: "
        "'0.JPG' is '0.jpg', '1.JPG' is '1.jpg', '2.JPG' is '2.jpg' and 17 more"
    )
    for split, names in (("train", NAMES[2:]), ("dev", NAMES[:1]), ("test", NAMES[1:2])):
        lines = "".join(f"{name.upper()}\n" for name in names)
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text(lines)
    assert [len(load_dataset(tmp_path).rows(split)) for split in ("train", "dev", "test")] == [18, 1, 1]


def test_a_name_that_fits_two_files_in_another_case_is_missing(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    for name in ("x.jpg", "X.jpg"):
        (tmp_path / "Images" / name).write_bytes(image_bytes(50))
    if len(list((tmp_path / "Images").iterdir())) < 22:
        pytest.skip("this file system does not tell upper and lower case apart")
    with (tmp_path / "captions.txt").open("a") as file:
        file.write("x.JPG,A caption .\n")
    with pytest.raises(DataError, match="names an image not in .*'x.JPG'"):
        load_dataset(tmp_path)


def test_names_with_backslashes_and_the_folder_before_them(tmp_path: Path) -> None:
    dataset = load_dataset(renamed(lay_out(tmp_path, NAMES), lambda name: f"Images\\{name}"))
    assert dataset.image_names == [f"Images/{name}" for name in NAMES]
    assert dataset.image_paths[3] == tmp_path / "Images" / "3.jpg"


def test_companions_that_macos_writes_are_no_images(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    for name in NAMES:
        (tmp_path / "Images" / f"._{name}").write_bytes(b"\0\5\x16\7")
    dataset = load_dataset(tmp_path)
    assert dataset.image_names == NAMES and not any("no caption" in note for note in dataset.notes)


CASES = [
    "csv_space_before_quote",
    "csv_20_line_quoted_caption",
    "csv_backslash_names",
    "flickr30k_results_bars",
    "chinese_captions_called_a_word_or_less",
    "names_in_other_case",
    "appledouble",
]


@pytest.mark.parametrize("case", CASES)
def test_cases_from_bug_reports(shared_data: Path, case: str) -> None:
    dataset = load_dataset(shared_data / "cases" / case)
    assert (len(dataset.image_names), len(dataset.captions)) == (4, 4)
    assert not any('"' in caption or "|" in caption or caption[0].isdigit() for caption in dataset.captions)


@pytest.mark.parametrize("examples", [100, pytest.param(10_000, marks=pytest.mark.long)])
def test_any_folder_gives_a_data_set_or_a_data_error(tmp_path: Path, examples: int) -> None:
    """Names, captions and lists of every kind, in every file that is looked for."""
    lay_out(tmp_path, NAMES[:6])
    (tmp_path / "captions.txt").unlink()
    (tmp_path / "Images" / "sub").mkdir()
    (tmp_path / "Images" / "é 狗.jpg").write_bytes(image_bytes(60))
    odd = ["", ".", "..", "/", "a" * 300, "sub", "sub/x.jpg", "nul\0", "\u2028", "../0.jpg", "C:\\0.jpg", "0.jpg/x"]
    odd += ["Images\\1.jpg", "2.JPG", "e\u0301 狗.jpg", "é 狗.jpg", "\x7f"]
    names = st.sampled_from(NAMES[:7] + odd) | st.text(max_size=8)
    splits = st.sampled_from(["train", "val", "test", "restval", "spare", ""])
    rows = st.lists(st.tuples(names, st.text(max_size=12), splits), max_size=12)

    def karpathy(rows: list[tuple[str, str, str]]) -> str:
        images = [{"filename": name, "split": split, "sentences": [{"raw": text}]} for name, text, split in rows]
        return json.dumps({"images": images})

    forms: dict[str, Callable[[list[tuple[str, str, str]]], str]] = {
        "captions.txt": lambda rows: "\n".join(f"{name},{text}" for name, text, _ in rows),
        "captions.csv": lambda rows: "image,caption\n" + "\n".join(f'"{name}", "{text}"' for name, text, _ in rows),
        "Flickr8k.token.txt": lambda rows: "\n".join(f"{name}#0\t{text}" for name, text, _ in rows),
        "dataset.json": karpathy,
        "results.csv": lambda rows: "image| comment\n" + "\n".join(f"{name}| {text}" for name, text, _ in rows),
    }

    @settings(max_examples=examples, deadline=None)
    @given(rows, st.sampled_from([*forms]), st.none() | st.lists(names, max_size=6), st.booleans())
    def loads(rows: list[tuple[str, str, str]], form: str, listed: list[str] | None, skip: bool) -> None:
        lists = [tmp_path / f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")]
        for place in [tmp_path / name for name in forms] + lists:
            place.unlink(missing_ok=True)
        (tmp_path / form).write_text(forms[form](rows), encoding="utf-8", errors="surrogatepass", newline="")
        for number, place in enumerate(lists if listed is not None else []):
            place.write_text("\n".join(listed[number::3]), encoding="utf-8", errors="surrogatepass", newline="")
        with contextlib.suppress(DataError):
            dataset = load_dataset(tmp_path, skip_missing=skip)
            assert all(path.is_file() for path in dataset.image_paths)
            assert (np.diff(dataset.caption_offsets) > 0).all()

    loads()


def test_subfolders_may_be_named(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES[:4])
    (tmp_path / "Images" / "more").mkdir()
    (tmp_path / "Images" / "more" / "x.jpg").write_bytes(image_bytes(99))
    with (tmp_path / "captions.txt").open("a") as file:
        file.write("more/x.jpg,A caption .\n")
    assert load_dataset(tmp_path).image_names[-1] == "more/x.jpg"


@pytest.mark.parametrize("name", ["../x.jpg", "a/../x.jpg", "/etc/passwd", "C:\\x.jpg", "..\\x.jpg", "\\\\host\\x.jpg"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    lay_out(tmp_path, NAMES)
    (tmp_path / "x.jpg").write_bytes(image_bytes(99))
    with (tmp_path / "captions.txt").open("a") as file:
        file.write(f"{name},A caption .\n")
    with pytest.raises(DataError, match=r"captions.txt line 42: the image name .* leads out of the image folder"):
        load_dataset(tmp_path, skip_missing=True)


def test_links_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "set", NAMES)
    (tmp_path / "secret.jpg").write_bytes(image_bytes(99))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "y.jpg").write_bytes(image_bytes(98))
    captions = (folder / "captions.txt").read_text()
    (folder / "Images" / "inside.jpg").symlink_to("0.jpg")
    (folder / "captions.txt").write_text(captions + "inside.jpg,A link to a file of the folder .\n")
    assert load_dataset(folder).image_ids[20] == 0
    (folder / "Images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "Images" / "sub").symlink_to(tmp_path / "outside")
    for name in ("link.jpg", "sub/y.jpg"):
        (folder / "captions.txt").write_text(captions + f"{name},A caption .\n")
        with pytest.raises(DataError, match=rf"line 42: the image '{name}' is a link that leads out of"):
            load_dataset(folder)
    (folder / "Images" / "loop.jpg").symlink_to("loop.jpg")
    (folder / "captions.txt").write_text(captions + "loop.jpg,A caption .\n")
    with pytest.raises(DataError, match=r"names an image not in .*'loop.jpg'"):
        load_dataset(folder)


def test_the_image_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "set", NAMES)
    (folder / "Images").rename(tmp_path / "elsewhere")
    (folder / "Images").symlink_to(tmp_path / "elsewhere")
    assert load_dataset(folder).image_names == NAMES


def test_missing_images_stop_the_load_unless_skipped(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    for name in NAMES[3:8]:
        (tmp_path / "Images" / name).unlink()
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/captions.txt: 10 captions name images not in {tmp_path}/Images: '3.jpg' (line 8), "
        "'4.jpg' (line 10), '5.jpg' (line 12) and 2 more images; put the images there, or pass --skip-missing to leave "
        "these captions out"
    )
    dataset = load_dataset(tmp_path, skip_missing=True)
    assert dataset.image_names == NAMES[:3] + NAMES[8:]
    assert "10 captions left out, their images are missing: '3.jpg', '4.jpg', '5.jpg' and 2 more" in dataset.notes


def test_one_missing_image_reads_well(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES, captions=1)
    (tmp_path / "Images" / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"1 caption names an image not in .*Images: '3.jpg' \(line 5\); put"):
        load_dataset(tmp_path)


def test_no_image_at_all(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    for path in (tmp_path / "Images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no caption names an image that is there"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="no caption names an image that is in"):
        load_dataset(tmp_path, skip_missing=True)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder; wanted one with"):
        load_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="no captions file; wanted one of"):
        load_dataset(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="a file; pass its folder instead, and --captions file"):
        load_dataset(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path, reading=Reading(captions="absent.txt"))


def test_empty_captions_go_with_skip_missing(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    with (tmp_path / "captions.txt").open("a") as file:
        file.write("0.jpg,\n")
    with pytest.raises(DataError, match="line 42: the caption is empty"):
        load_dataset(tmp_path)
    dataset = load_dataset(tmp_path, skip_missing=True)
    assert len(dataset.captions) == 40
    assert dataset.notes[1] == "captions.txt: 1 empty captions left out (line 42)"


def test_rows_that_come_twice_are_kept(tmp_path: Path) -> None:
    """Five captions an image is what the published figures count, repeats and all."""
    lay_out(tmp_path, NAMES)
    with (tmp_path / "captions.txt").open("a") as file:
        file.write("0.jpg,Caption 0 of 0.jpg .\n" * 2)
    dataset = load_dataset(tmp_path)
    assert dataset.caption_rows([0]).tolist() == [0, 1, 40, 41]


def test_a_folder_or_pipe_is_no_image(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    (tmp_path / "Images" / "0.jpg").unlink()
    (tmp_path / "Images" / "0.jpg").mkdir()
    with pytest.raises(DataError, match=r"'0.jpg' \(line 2\)"):
        load_dataset(tmp_path)


def test_identical_files_against_comparing_every_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [bytes(rng.integers(0, 2, size=int(size), dtype=np.uint8)) for size in rng.integers(0, 6, size=120)]
    long = bytes(5000)
    contents += [long, b"\1" + long[1:], long, long[:-1] + b"\1", long + b"\0"]
    images = []
    for number, data in enumerate(contents):
        path = tmp_path / str(number)
        path.write_bytes(data)
        images.append(ImageFile(path.name, path, len(data)))
    slow = [contents.index(data) for data in contents]
    assert identical_files(images).tolist() == slow


def test_twins_are_noted_and_share_an_id(tmp_path: Path) -> None:
    lay_out(tmp_path, NAMES)
    (tmp_path / "Images" / "9.jpg").write_bytes(image_bytes(4))
    dataset = load_dataset(tmp_path)
    assert dataset.image_ids.tolist() == [4 if row == 9 else row for row in range(20)]
    assert dataset.split[4] == dataset.split[9]
    assert "1 image is a copy of another, byte for byte, and counted with it: 9.jpg = 4.jpg" in dataset.notes


def test_captions_per_image_keeps_the_first_of_each_training_image(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, NAMES, captions=5)
    whole, short = load_dataset(folder), load_dataset(folder, captions_per_image=2)
    for row in range(20):
        there = [whole.captions[i] for i in whole.caption_rows([row])]
        kept = [short.captions[i] for i in short.caption_rows([row])]
        assert kept == (there[:2] if whole.split[row] == 0 else there)
    assert load_dataset(folder, captions_per_image=99).captions == whole.captions
    with pytest.raises(DataError, match="--captions-per-image 0: wanted at least 1"):
        load_dataset(folder, captions_per_image=0)


def test_caption_rows_against_a_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lay_out(tmp_path, NAMES)
    rows = [f"{NAMES[i]},Caption {k} ." for k, i in enumerate([*range(20), *rng.integers(0, 20, size=100)])]
    (tmp_path / "captions.txt").write_text("\n".join(rows))
    dataset = load_dataset(tmp_path)
    chosen = rng.permutation(20)[:11]
    slow = [i for row in chosen for i in range(120) if dataset.caption_image_ids[i] == row]
    assert dataset.caption_rows(chosen).tolist() == slow
    assert dataset.caption_rows([]).tolist() == []
    firsts = [min(i for i in range(120) if dataset.caption_image_ids[i] == row) for row in chosen]
    assert dataset.first_captions(chosen).tolist() == firsts
    with pytest.raises(ValueError, match="no split 'val'; the splits are train, dev, test"):
        dataset.rows("val")


def test_the_fingerprint_is_of_names_sizes_and_captions(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, NAMES)
    first = load_dataset(folder).fingerprint
    assert len(first) == 64
    assert load_dataset(folder, seed=3, dataset_size=4).fingerprint == first
    (folder / "Images" / "0.jpg").write_bytes(b"longer than before")
    second = load_dataset(folder).fingerprint
    text = (folder / "captions.txt").read_text()
    (folder / "captions.txt").write_text(text.replace("Caption 0", "Caption zero"))
    assert len({first, second, load_dataset(folder).fingerprint}) == 3


def real(shared_data: Path, **options: int) -> ImageCaptions:
    return load_dataset(shared_data / "flickr8k_128", **options)


def test_all_of_flickr8k_with_its_lists(shared_data: Path) -> None:
    dataset = real(shared_data)
    assert (len(dataset.image_names), len(dataset.captions)) == (8091, 40455)
    assert [len(dataset.rows(split)) for split in ("train", "dev", "test")] == [6000, 1000, 1000]
    assert (dataset.split == -1).sum() == 91
    assert len(dataset.caption_rows(dataset.rows("test"))) == 5000
    lists = {"train": "trainImages", "dev": "devImages", "test": "testImages"}
    for split, name in lists.items():
        listed = (shared_data / "flickr8k_128" / f"Flickr_8k.{name}.txt").read_text().split()
        assert {dataset.image_names[row] for row in dataset.rows(split)} == set(listed)
    twins = [dataset.image_names.index(f"{stem}.jpg") for stem in ("2851198725_37b6027625", "3050606344_af711c726c")]
    assert dataset.image_ids[twins[0]] == dataset.image_ids[twins[1]]
    assert len(set(dataset.image_ids.tolist())) == 8090


def test_the_data_rooms_import_no_torch() -> None:
    files = ["readers.captions", "readers.folders", "checks.dataset_check", "datasets", "features", "index", "sample"]
    code = f"import sys, {', '.join(f'varalign.data.{file}' for file in files)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
