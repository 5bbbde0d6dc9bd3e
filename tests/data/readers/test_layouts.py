"""The layouts in which people have their data: each is read as the plain form is, or refused with the cure."""

from __future__ import annotations

import csv
import importlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from varalign.data.datasets import load_dataset
from varalign.data.errors import DataError
from varalign.data.files import read_bytes
from varalign.data.readers.captions import read_captions
from varalign.data.readers.folders import read_folder
from varalign.data.readers.reading import Reading

PAIRS = [(f"{stem}.jpg", text) for stem in "abcdef" for text in (f"A dog, {stem} .", f'The "sign" {stem} .')]
NAMES = list(dict.fromkeys(name for name, _ in PAIRS))
SPLITS = dict(zip(NAMES, ("train",) * 4 + ("dev", "test"), strict=True))
CODES = {"train": 0, "dev": 1, "test": 2}


def picture(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (NAMES.index(name) * 30, 60, 90)).save(file, "PNG")
    return file.getvalue()


def images(folder: Path, rename: Callable[[str], str] = str) -> None:
    for name in NAMES:
        path = folder / rename(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name))


def table(
    rows: list[tuple[str, ...]], header: tuple[str, ...] = ("image", "caption"), separator: str = ",", **options: Any
) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n", **options).writerows([header, *rows] if header else rows)
    return text.getvalue().encode()


def records(image: str = "file_name", caption: str = "text") -> list[dict[str, str]]:
    return [{image: name, caption: text} for name, text in PAIRS]


def lines(values: list[Any]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def each() -> dict[str, list[str]]:
    return {name: [text for other, text in PAIRS if other == name] for name in NAMES}


def parquet(path: Path, columns: dict[str, Any]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install '.[parquet]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), path)


def shard(path: Path, names: list[str], text: Callable[[list[str]], tuple[str, str]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            end, content = text(each()[name])
            for member, data in ((name, picture(name)), (name[:-4] + end, content.encode())):
                info = tarfile.TarInfo(f"./{member}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def beside(folder: Path, suffix: str = ".txt", where: Callable[[str], str] = str) -> None:
    images(folder, where)
    for name, texts in each().items():
        (folder / where(name)).with_suffix(suffix).write_text("\n".join(texts) + "\n")


def split_rows() -> list[tuple[str, str, str]]:
    return [(name, text, {"dev": "validation"}.get(SPLITS[name], SPLITS[name])) for name, text in PAIRS]


def in_splits(folder: Path, write: Callable[[Path, list[str]], object]) -> None:
    for split, word in (("train", "train"), ("dev", "validation"), ("test", "test")):
        (folder / word).mkdir(parents=True)
        write(folder / word, [name for name in NAMES if SPLITS[name] == split])


def image_folder(metadata: Callable[[Path, list[str]], object]) -> Callable[[Path], object]:
    def write(folder: Path, names: list[str]) -> None:
        for name in names:
            (folder / name).write_bytes(picture(name))
        metadata(folder, names)

    return lambda folder: in_splits(folder, write)


def saved(folder: Path, *, splits: bool = False, texts: bool = True) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")

    def part(names: list[str]) -> Any:
        rows = [{"image": {"bytes": picture(name), "path": name}, "caption": each()[name]} for name in names]
        features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
        return datasets.Dataset.from_list(rows, features=features)

    if not splits:
        part(NAMES).save_to_disk(str(folder))
        return
    words = {"train": "train", "dev": "validation", "test": "test"}
    parts = {word: part([name for name in NAMES if SPLITS[name] == split]) for split, word in words.items()}
    datasets.DatasetDict(parts).save_to_disk(str(folder))


def with_file(
    name: str, data: bytes, where: str = "Images", rename: Callable[[str], str] = str
) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        images(folder / where, rename)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return write


PLAIN = table(PAIRS)
SAMPLES = {"bytes": [picture(name) for name, _ in PAIRS], "path": [name for name, _ in PAIRS]}
READ: dict[str, tuple[Callable[[Path], object], Reading]] = {
    "captions.txt, commas": (with_file("captions.txt", PLAIN), Reading()),
    "commas, everything quoted": (with_file("captions.csv", table(PAIRS, quoting=csv.QUOTE_ALL)), Reading()),
    "a spreadsheet's semicolons with a mark": (
        with_file(
            "Bilder.csv", b"\xef\xbb\xbf" + table(PAIRS, ("filename", "description"), ";").replace(b"\n", b"\r\n")
        ),
        Reading(),
    ),
    "a spreadsheet's UTF-16 with tabs": (
        with_file("captions.txt", table(PAIRS, ("Image Name", "Caption"), "\t").decode().encode("utf-16")),
        Reading(),
    ),
    "pandas' index column": (
        with_file("data.csv", table([(str(k), *row) for k, row in enumerate(PAIRS)], ("", "image_path", "title"))),
        Reading(),
    ),
    "bars": (with_file("captions.csv", table(PAIRS, separator="|")), Reading()),
    "tabs without a header": (with_file("captions.tsv", table(PAIRS, (), "\t")), Reading()),
    "columns that the user names": (
        with_file("shop.csv", table([(text, name) for name, text in PAIRS], ("Produkttext", "Foto"), ";")),
        Reading(image_column="Foto", caption_column="Produkttext"),
    ),
    "Flickr30k's results.csv": (
        with_file(
            "results.csv",
            ("image_name| comment_number| comment\n" + "".join(f"{n}| 0| {t}\n" for n, t in PAIRS)).encode(),
            "flickr30k_images",
        ),
        Reading(),
    ),
    "Flickr8k's token form": (
        with_file("Flickr8k.token.txt", "".join(f"{n}#0\t{t}\n" for n, t in PAIRS).encode(), "Flicker8k_Dataset"),
        Reading(),
    ),
    "JSON lines": (with_file("captions.jsonl", lines(records("image", "caption"))), Reading()),
    "JSON lines in a .json": (with_file("annotations.json", lines(records("image", "caption"))), Reading()),
    "JSON lines, a list of captions": (
        with_file("data.jsonl", lines([{"img": name, "sentences": texts} for name, texts in each().items()])),
        Reading(),
    ),
    "JSON list of records": (with_file("train.json", json.dumps(records("image", "caption")).encode()), Reading()),
    "JSON map of names": (with_file("captions.json", json.dumps(each()).encode()), Reading()),
    "Karpathy's JSON": (
        with_file(
            "dataset.json",
            json.dumps(
                {
                    "images": [
                        {
                            "filename": n,
                            "sentences": [{"raw": t} for t in texts],
                            "split": SPLITS[n].replace("dev", "val"),
                        }
                        for n, texts in each().items()
                    ]
                }
            ).encode(),
        ),
        Reading(),
    ),
    "COCO's JSON": (
        with_file(
            "captions_all.json",
            json.dumps(
                {
                    "images": [{"id": k, "file_name": n} for k, n in enumerate(NAMES)],
                    "annotations": [{"image_id": NAMES.index(n), "caption": t} for n, t in PAIRS],
                }
            ).encode(),
        ),
        Reading(),
    ),
    "metadata.csv beside the images": (
        with_file("metadata.csv", table(PAIRS, ("file_name", "text")), "."),
        Reading(),
    ),
    "metadata.jsonl beside the images": (with_file("metadata.jsonl", lines(records()), "."), Reading()),
    "metadata.parquet beside the images": (
        lambda folder: (
            images(folder),
            parquet(folder / "metadata.parquet", {"file_name": [n for n, _ in PAIRS], "text": [t for _, t in PAIRS]}),
        ),
        Reading(),
    ),
    "imagefolder in split folders": (
        image_folder(
            lambda folder, names: (folder / "metadata.jsonl").write_bytes(
                lines([record for record in records() if record["file_name"] in names])
            )
        ),
        Reading(),
    ),
    "a split column": (with_file("captions.csv", table(split_rows(), ("image", "caption", "split"))), Reading()),
    "a file for each split": (
        lambda folder: (
            images(folder / "images"),
            *(
                (folder / f"{word}.csv").write_bytes(table([row for row in PAIRS if SPLITS[row[0]] == split]))
                for split, word in (("train", "train"), ("dev", "val"), ("test", "test"))
            ),
        ),
        Reading(),
    ),
    "a .txt beside each image": (lambda folder: beside(folder), Reading()),
    "a .caption beside each image in Images": (lambda folder: beside(folder / "Images", ".caption"), Reading()),
    "a .txt beside each image in split folders": (
        lambda folder: beside(folder, where=lambda name: f"{SPLITS[name].replace('dev', 'val')}/{name}"),
        Reading(),
    ),
    "parquet with images as the library datasets writes it": (
        lambda folder: parquet(
            folder / "data" / "train-00000-of-00001.parquet",
            {"image": [{"bytes": picture(n), "path": n} for n in NAMES], "caption": list(each().values())},
        ),
        Reading(),
    ),
    "parquet with plain bytes": (
        lambda folder: parquet(
            folder / "data.parquet", {"image": SAMPLES["bytes"], "caption": [text for _, text in PAIRS]}
        ),
        Reading(),
    ),
    "saved by the library datasets": (saved, Reading()),
    "saved by the library datasets, in splits": (lambda folder: saved(folder, splits=True), Reading()),
    "a tar shard with .txt": (
        lambda folder: shard(folder / "000.tar", NAMES, lambda texts: (".txt", "\n".join(texts))),
        Reading(),
    ),
    "two tar shards with .json": (
        lambda folder: [
            shard(
                folder / f"00{k}.tar", NAMES[3 * k : 3 * k + 3], lambda texts: (".json", json.dumps({"caption": texts}))
            )
            for k in range(2)
        ],
        Reading(),
    ),
    "captions and images elsewhere": (
        with_file("x/texts/all of them.csv", PLAIN, "x/photos"),
        Reading(captions="x/texts/all of them.csv", images="x/photos"),
    ),
    "images in subfolders": (
        with_file("captions.csv", PLAIN, rename=lambda name: f"{'abc'[NAMES.index(name) % 3]}/deep/{name}"),
        Reading(),
    ),
    "names with backslashes": (
        with_file("captions.csv", table([(f"Images\\{name}", text) for name, text in PAIRS])),
        Reading(),
    ),
    "names without their end": (
        with_file("captions.csv", table([(name[:-4], text) for name, text in PAIRS], ("image_id", "caption"))),
        Reading(),
    ),
    "names in another case": (with_file("captions.csv", PLAIN, rename=str.upper), Reading()),
    "images in folders of the splits": (
        with_file("captions.csv", PLAIN, rename=lambda name: f"{SPLITS[name].replace('dev', 'val')}/{name}"),
        Reading(),
    ),
    "split folders with folders of images": (
        lambda folder: in_splits(
            folder,
            lambda place, names: with_file("captions.csv", table([row for row in PAIRS if row[0] in names]))(place),
        ),
        Reading(),
    ),
    "companions of macOS and Windows": (
        lambda folder: (
            with_file("captions.csv", PLAIN)(folder),
            (folder / "._captions.csv").write_bytes(b"\0\5\x16\7"),
            (folder / "Images" / "._a.jpg").write_bytes(b"\0\5\x16\7"),
            (folder / "Images" / ".DS_Store").write_bytes(b"\0"),
            (folder / "Images" / "Thumbs.db").write_bytes(b"\0"),
        ),
        Reading(),
    ),
}
WITH_SPLITS = (
    "images in folders of the splits",
    "split folders with folders of images",
    "Karpathy's JSON",
    "imagefolder in split folders",
    "a split column",
    "a file for each split",
    "a .txt beside each image in split folders",
    "saved by the library datasets, in splits",
)


def pairs_of(
    folder: Path, reading: Reading, cache: Path, *, skip_missing: bool = False
) -> tuple[Any, set[tuple[bytes, str]]]:
    found = load_dataset(folder, reading=replace(reading, cache=str(cache)), skip_missing=skip_missing)
    rows = zip(found.caption_image_ids.tolist(), found.captions, strict=True)
    return found, {(read_bytes(found.image_paths[row]), caption) for row, caption in rows}


@pytest.mark.parametrize("layout", READ)
def test_every_layout_gives_the_pairs_of_the_plain_form(tmp_path: Path, layout: str) -> None:
    write, reading = READ[layout]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    for _ in range(2):  # archives are unpacked at the first time
        found, pairs = pairs_of(folder, reading, tmp_path / "cache")
        assert pairs == {(picture(name), text) for name, text in PAIRS}
        assert (len(found.image_names), len(found.captions)) == (6, 12)
        assert found.notes[0].startswith("12 pairs of 6 images, from ")
        if layout in WITH_SPLITS:
            splits = {read_bytes(path): code for path, code in zip(found.image_paths, found.split, strict=True)}
            assert splits == {picture(name): CODES[split] for name, split in SPLITS.items()}
        else:
            assert any("splits drawn by seed 0" in note for note in found.notes)


def outside(folder: Path, text: bytes = PLAIN) -> None:
    """A data folder whose images are links out of it, as in the hub's cache."""
    images(folder.parent / "blobs")
    (folder / "Images").mkdir(parents=True)
    for name in NAMES:
        (folder / "Images" / name).symlink_to(folder.parent / "blobs" / name)
    (folder / "captions.csv").write_bytes(text)


def test_links_that_leave_the_folder_are_followed_on_request(tmp_path: Path) -> None:
    outside(tmp_path / "data")
    _, pairs = pairs_of(tmp_path / "data", Reading(follow_links=True), tmp_path / "cache")
    assert pairs == {(picture(name), text) for name, text in PAIRS}


def test_absolute_paths_inside_the_folder_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for base in (folder, folder / "Images"):
        with_file("captions.csv", table([(str(folder / "Images" / name), text) for name, text in PAIRS]))(folder)
        _, pairs = pairs_of(folder, Reading(images=str(base)), tmp_path / "cache")
        assert pairs == {(picture(name), text) for name, text in PAIRS}


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """A split folder without captions, images without captions, and a shard's lonely members; at a second time too."""
    READ["imagefolder in split folders"][0](tmp_path / "data")
    (tmp_path / "data" / "test" / "metadata.jsonl").unlink()
    (tmp_path / "data" / "train" / "bare.png").write_bytes(picture("f.jpg"))
    found, pairs = pairs_of(tmp_path / "data", Reading(), tmp_path / "cache")
    assert len(pairs) == 10
    assert "no captions in test/: left out" in found.notes
    assert "1 images have no caption and are left out: 'bare.png'" in found.notes
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        for member in (*NAMES, *(name[:-4] + ".txt" for name in NAMES[:4]), "lost.txt", "._a.jpg"):
            data = picture(member) if member in NAMES else member.encode()
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    for _ in range(2):
        with pytest.raises(DataError, match=r"0\.tar image 'e.jpg', image 'f.jpg': the caption is empty; .*--skip-"):
            pairs_of(tmp_path / "shards", Reading(), tmp_path / "cache")
        found, pairs = pairs_of(tmp_path / "shards", Reading(), tmp_path / "cache", skip_missing=True)
        assert len(pairs) == 4
        assert "0.tar: 2 empty captions left out (image 'e.jpg', image 'f.jpg')" in found.notes
        assert "1 captions left out, their images are missing: 'lost.txt'" in found.notes


def test_a_link_that_leads_back_is_followed_once(tmp_path: Path) -> None:
    beside(tmp_path, where=lambda name: f"deep/{name}")
    (tmp_path / "deep" / "again").symlink_to(tmp_path)
    _, pairs = pairs_of(tmp_path, Reading(follow_links=True), tmp_path / "cache")
    assert pairs == {(picture(name), text) for name, text in PAIRS}


def test_parts_of_a_saved_data_set_that_are_no_split_are_in_none(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    saved(folder, splits=True)
    (folder / "test").rename(folder / "extra")
    (folder / "validation").rename(folder / "more")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "extra", "more"]}))
    found, pairs = pairs_of(folder, Reading(), tmp_path / "cache")
    assert len(pairs) == 12
    assert sorted(found.split.tolist()).count(-1) == 2
    assert any("parts that are no split, whose images are in none: extra, more" in note for note in found.notes)


def test_unpacked_images_that_were_changed_are_unpacked_again(tmp_path: Path) -> None:
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    READ["parquet with plain bytes"][0](folder)
    before, pairs = pairs_of(folder, Reading(), cache)
    before.image_paths[0].write_bytes(b"")
    again, same = pairs_of(folder, Reading(), cache)
    assert same == pairs and again.image_paths == before.image_paths
    assert any("6 images unpacked into" in note for note in again.notes)
    assert [path.name for path in (cache / "unpacked").iterdir()] == [again.image_paths[0].parent.name]


def test_names_in_archives_lead_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    members = ["../../a.jpg", "/abs/a.png", "x/a.jpg", "x/A.jpg", "é\n.jpg", "....jpg"]
    samples = [{"bytes": picture(name), "path": path} for name, path in zip(NAMES, members, strict=True)]
    parquet(folder / "a.parquet", {"image": samples, "caption": NAMES})
    found, pairs = pairs_of(folder, Reading(), tmp_path / "cache")
    assert pairs == {(picture(name), name) for name in NAMES}
    assert all(path.parent.parent == tmp_path / "cache" / "unpacked" for path in found.image_paths)
    assert found.image_names[:3] == ["a.jpg", "a.png", "a-2.jpg"]


def tar_of_a_folder(folder: Path) -> None:
    with tarfile.open(folder / "all.tar", "w") as archive:
        for name in NAMES:
            info = tarfile.TarInfo(f"Images/{name}")
            info.size = len(picture(name))
            archive.addfile(info, io.BytesIO(picture(name)))


def cut_shard(folder: Path) -> None:
    shard(folder / "0.tar", NAMES, lambda texts: (".txt", texts[0]))
    (folder / "0.tar").write_bytes((folder / "0.tar").read_bytes()[:5000])


def cut_parquet(folder: Path) -> None:
    parquet(folder / "a.parquet", {"image": SAMPLES["bytes"], "caption": SAMPLES["path"]})
    (folder / "a.parquet").write_bytes((folder / "a.parquet").read_bytes()[:200])


FOLDS = [(name, text, str(k % 5)) for k, (name, text) in enumerate(PAIRS[::2])]
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "Conceptual Captions' addresses": (
        with_file("Train_GCC-training.tsv", b"a very typical bus station\thttp://lh6.ggpht.com/-IvRtNLNcG8o\n"),
        "names images by their addresses on the web, and varalign downloads none: download them",
    ),
    "a column of addresses": (
        with_file("captions.csv", b"url,text\nhttp://x/a.jpg,A dog\n"),
        r"by their addresses on the web.*img2dataset.*its columns are 'url', 'text'",
    ),
    "SBU's addresses": (
        with_file("sbu-captions-all.json", b'{"image_urls": ["http://x/a.jpg"], "captions": ["A dog"]}'),
        "by their addresses on the web",
    ),
    "columns of other names": (
        with_file("captions.csv", b"Foto,Produkttext\na.jpg,A dog\n"),
        r"line 1: the columns are 'Foto', 'Produkttext'; say which of them holds the images' names "
        r"\(--image-column NAME\) and which the captions \(--caption-column NAME\)",
    ),
    "a column that looks like a split": (
        with_file("captions.csv", table(FOLDS, ("image", "text", "fold"))),
        "the column 'fold' looks like a split, but '0', '1', '2' and 2 more is no split; write train, dev or test",
    ),
    "test images only": (
        with_file("captions.csv", table([(n, t, "test") for n, t in PAIRS], ("image", "text", "split"))),
        "no image is left for training: every image that has a split is in test; add training images, or pass",
    ),
    "several files that may be it": (
        lambda folder: (with_file("a.csv", PLAIN)(folder), with_file("b.csv", PLAIN)(folder)),
        r"a.csv, b.csv may each hold the captions; name the file \(--captions FILE\)",
    ),
    "folders of classes": (
        lambda folder: images(folder, lambda name: f"dog/{name}"),
        r"no captions file; wanted one of .* or a .txt beside each image; there is 'dog/'; if one of these ",
    ),
    "an Excel workbook": (
        with_file("captions.xlsx", b"PK\x03\x04"),
        r"captions.xlsx: an Excel workbook; save it as CSV \(UTF-8\)",
    ),
    "an archive for a text": (with_file("captions.csv", b"PK\x03\x04"), "a compressed archive.*; unpack it first"),
    "gzip": (with_file("captions.csv", b"\x1f\x8b\x08"), "a compressed archive, not a captions file; unpack it first"),
    "Cyrillic, not UTF-8": (
        with_file("captions.csv", "image,caption\na.jpg,Собака бежит\n".encode("cp1251")),
        "line 2: byte 0xd1 is not UTF-8, .*convert it: iconv",
    ),
    "a quote that is not closed": (
        with_file("captions.csv", PLAIN.replace(b'"A dog, a ."', b'"A dog, a .')),
        r'line 2: a quote \("\) is opened and not closed; close it',
    ),
    "semicolons further down": (
        with_file("captions.csv", PLAIN + b"a.jpg;A dog .\n"),
        "line 14: the columns are separated by a semicolon; wanted a comma",
    ),
    "images that are not there": (
        with_file("captions.csv", PLAIN.replace(b"\na.jpg", b"\nz.jpg")),
        "2 captions name images not in .*'z.jpg'.* pass --skip-missing",
    ),
    "images of another folder": (
        with_file("captions.csv", PLAIN.replace(b"\na.jpg", b"\n/home/me/a.jpg")),
        "line 2: the image name '/home/me/a.jpg' leads out of the image folder",
    ),
    "links that leave the folder": (outside, "is a link that leads out of .* or pass --follow-links"),
    "a tar of a data folder": (tar_of_a_folder, "no member is an image with a .txt, .* unpack it: tar -xf"),
    "a tar shard that is cut": (
        cut_shard,
        r"not a whole tar archive: .* behind './.*'; copy or download",
    ),
    "two images of one sample": (
        lambda folder: shard(folder / "0.tar", ["a.jpg"], lambda texts: (".png", texts[0])),
        "0.tar: sample './a' has 2 images, './a.jpg', './a.png'; keep one of them, or give each a key",
    ),
    "parquet that is cut": (cut_parquet, "not valid Parquet"),
    "parquet with a damaged page": (
        lambda folder: (
            parquet(folder / "a.parquet", {"image": SAMPLES["bytes"], "caption": SAMPLES["path"]}),
            (folder / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 40 + (folder / "a.parquet").read_bytes()[44:]),
        ),
        "a.parquet: not valid Parquet: ",
    ),
    "parquet with neither names nor images": (
        lambda folder: parquet(folder / "a.parquet", {"image": [0.5], "caption": ["A dog"]}),
        "the column 'image' holds double; wanted names of images, or their bytes",
    ),
    "parquet whose images are elsewhere": (
        lambda folder: parquet(folder / "a.parquet", {"image": [{"bytes": None, "path": "x"}], "text": ["A dog"]}),
        "row 0: no image in the column 'image'; write the file with its images' bytes, or with their names",
    ),
    "an empty text beside an image": (
        lambda folder: (beside(folder), (folder / "a.txt").write_text("\n")),
        "image 'a.jpg': the caption is empty; write it",
    ),
}


@pytest.mark.parametrize("layout", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_cure(tmp_path: Path, layout: str) -> None:
    write, message = REFUSED[layout]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    for _ in range(2):
        with pytest.raises(DataError, match=message) as caught:
            load_dataset(folder, reading=Reading(cache=str(tmp_path / "cache")))
        assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("unpacked/*")), "nothing is left of what was refused"


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer() -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_session", no_answer)


def test_the_hub_out_of_reach_is_one_sentence(silent_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")

    before = datasets.config.HF_HUB_OFFLINE

    def refuse(name: str, config: str | None) -> None:
        assert (name, config) == ("someone/some-set", "small")
        assert datasets.config.HF_HUB_OFFLINE, "the library would retry"
        raise ConnectionError("no route to the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match=r"^hf:someone/some-set:small: the hub .*no route to the hub.*save_to_disk.*DIR$"
    ):
        load_dataset("hf:someone/some-set:small")
    assert before == datasets.config.HF_HUB_OFFLINE


def test_a_data_set_of_the_hub_is_unpacked(silent_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")
    saved(tmp_path / "saved", splits=True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.load_from_disk(str(tmp_path / "saved")))
    found, pairs = pairs_of(Path("hf:someone/some-set"), Reading(), tmp_path / "cache")
    assert pairs == {(picture(name), text) for name, text in PAIRS}
    assert found.split.tolist() == [0, 0, 0, 0, 1, 2]


def test_splits_under_other_names_stop_the_run(tmp_path: Path) -> None:
    """Whoever has not renamed the column would train on test images."""
    rows = [f"{i}.jpg,a dog {i},{split}" for i, split in enumerate(("train", "val", "test"))]
    (tmp_path / "captions.csv").write_text("image,caption,type\n" + "\n".join(rows))
    with pytest.raises(DataError, match="the column 'type' says test, train, val, so it looks like a split; rename it"):
        read_captions(tmp_path / "captions.csv")
    records = [{"image": f"{i}.jpg", "text": "a dog", "usage_": word} for i, word in enumerate(("train", "holdout"))]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    with pytest.raises(DataError, match="the column 'usage_' says holdout, train, so it looks like a split"):
        read_captions(tmp_path / "captions.jsonl")
    for name in ("is_test", "train"):
        (tmp_path / "captions.csv").write_text(f"image,caption,{name}\n1.jpg,a dog,1\n2.jpg,a cat,0")
        with pytest.raises(DataError, match=f"the column '{name}' looks like a split; make of it one column split"):
            read_captions(tmp_path / "captions.csv")
    (tmp_path / "captions.csv").write_text("image,caption,word\n1.jpg,a dog,test\n2.jpg,a cat,tube")
    assert read_captions(tmp_path / "captions.csv").splits is None


def test_splits_under_other_names_stop_the_run_in_tables_too(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install '.[parquet]'")
    columns = {"image": ["1.jpg", "2.jpg"], "caption": ["a dog", "a cat"], "type": ["train", "val"], "size": [1, 2]}
    path = tmp_path / "captions.parquet"
    parquet(path, columns)
    with pytest.raises(DataError, match="the column 'type' says train, val, so it looks like a split"):
        read_captions(path)
    parquet(path, {**columns, "type": ["train", "tube"], "in_test": [True, False]})
    with pytest.raises(DataError, match="the column 'in_test' looks like a split"):
        read_captions(path)
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hf]'")
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="the column 'type' says train, val, so it looks like a split"):
        read_captions(tmp_path / "saved" / "state.json")


def test_other_captions_are_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("image,title,caption\n1.jpg,dogs,a dog")
    note = (
        "captions.csv: captions are read from the column 'caption', not from 'title' (--caption-column NAME says which)"
    )
    assert read_captions(path).notes == [note]
    assert read_captions(path, Reading(caption_column="title")).captions == ["dogs"]


def test_a_name_that_fits_several_files_names_them(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / place / "1.jpg")
    (tmp_path / "captions.csv").write_text("image,caption\n1.jpg,a dog\na/1.jpg,a cat\n2.jpg,a bird")
    fits = r"'1.jpg' \(line 2, fits 'a/1.jpg', 'b/1.jpg': name one of them\), '2.jpg' \(line 4\);"
    with pytest.raises(DataError, match=fits):
        load_dataset(tmp_path)


def test_file_names_in_another_case_are_found(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    (tmp_path / "Captions.TXT").write_text("image,caption\n1.jpg,a dog")
    assert read_folder(tmp_path).captions == ["a dog"]
    (tmp_path / "captions.txt").write_text("image,caption\n1.jpg,a cat")
    assert read_folder(tmp_path).captions == ["a cat"]


def test_without_captions_the_message_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "notes.doc").touch()
    with pytest.raises(DataError, match=r"there is 'notes.doc', 'texts/'; if one of these holds the captions, name it"):
        read_folder(tmp_path)


def test_damage_inside_a_shard_is_no_end(tmp_path: Path) -> None:
    def shard(*names: str) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in names:
                data = b"a dog\n" if name.endswith("txt") else b"pixels"
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return packed.getvalue()

    whole = shard("0.jpg", "0.txt", "1.jpg", "1.txt")
    path = tmp_path / "a.tar"
    path.write_bytes(whole[:2048] + b"\xff" * 512 + whole[2560:])
    with pytest.raises(DataError, match="not a whole tar archive: the header at byte 2,048 is damaged or cut"):
        read_captions(path)
    path.write_bytes(shard("0.jpg", "0.txt", "0.jpg", "0.txt"))
    with pytest.raises(DataError, match="two members are named '0.jpg'; give each a name of its own"):
        read_captions(path)
    path.write_bytes(whole[:2048])
    assert "a.tar: the mark at the end of the archive is missing; it may be cut short" in read_captions(path).notes


def test_both_kinds_of_texts_beside_an_image_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a dog\na cat\n")
    (tmp_path / "a.caption").write_text("a cat\na bird\n")
    assert read_folder(tmp_path).captions == ["a dog", "a cat", "a bird"]


def test_folders_and_columns_that_contradict_each_other(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / f"{split}.jpg")
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,split\ntrain/train.jpg,a dog,test\ntest/test.jpg,a cat,train\n"
    )
    assert any(
        note.startswith("2 images lie in a folder named like another split than metadata.csv says; the file is obeyed")
        for note in read_folder(tmp_path).notes
    )
