"""The forms of captions files, and what becomes of each kind of bad line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.data.errors import DataError
from varalign.data.readers import captions as captions_module
from varalign.data.readers import text_file
from varalign.data.readers.caption_file import CaptionSource
from varalign.data.readers.captions import read_captions
from varalign.data.readers.reading import Reading

ROWS = [("a.jpg", "A dog runs ."), ("a.jpg", "One dog, running ."), ("b.jpg", 'A sign says "stop" .')]


def written(folder: Path, data: bytes, name: str = "captions.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def pairs(path: Path, **options: bool) -> list[tuple[str, str]]:
    found = read_captions(path, **options)
    assert len(found.image_names) == len(found.captions) == len(found.lines)
    return list(zip(found.image_names, found.captions, strict=True))


CSV = b'image,caption\na.jpg,A dog runs .\na.jpg,"One dog, running ."\nb.jpg,"A sign says ""stop"" ."\n'
TOKEN = b'a.jpg#0\tA dog runs .\na.jpg#1\tOne dog, running .\nb.jpg#0\tA sign says "stop" .\n'
KARPATHY = json.dumps(
    {
        "dataset": "flickr8k",
        "images": [
            {"filename": "a.jpg", "split": "restval", "sentences": [{"raw": ROWS[0][1]}, {"raw": ROWS[1][1]}]},
            {"filename": "b.jpg", "split": "val", "sentences": [{"raw": ROWS[2][1], "tokens": ["a"]}]},
        ],
    }
).encode()
COCO = json.dumps(
    {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": ROWS[0][1] + "\n"},
            {"id": 2, "image_id": 7, "caption": ROWS[1][1]},
            {"id": 3, "image_id": 9, "caption": ROWS[2][1]},
        ],
    }
).encode()

GOOD = {
    "csv": CSV,
    "no header": CSV.split(b"\n", 1)[1],
    "no line end at the end": CSV.rstrip(),
    "byte-order mark": b"\xef\xbb\xbf" + CSV,
    "byte-order mark, no header": b"\xef\xbb\xbf" + CSV.split(b"\n", 1)[1],
    "CRLF": CSV.replace(b"\n", b"\r\n"),
    "lone CR": CSV.replace(b"\n", b"\r"),
    "blank lines": CSV.replace(b"\n", b"\n\n  \n"),
    "spaces around": CSV.replace(b",A", b" , A"),
    "everything quoted": b'"image","caption"\n'
    + b"".join(f'"{name}","{caption.replace(chr(34), chr(34) * 2)}"\n'.encode() for name, caption in ROWS),
    "other column order": b'caption,image\nA dog runs .,a.jpg\n"One dog, running .",a.jpg\n'
    b'"A sign says ""stop"" .",b.jpg\n',
    "further columns": b'image_name,caption_number,caption\na.jpg,0,A dog runs .\na.jpg,1,"One dog, running ."\n'
    b'b.jpg,0,"A sign says ""stop"" ."\n',
    "capitals in the header": CSV.replace(b"image,caption", b"Image, Caption"),
    "bare commas": CSV.replace(b'"One dog, running ."', b"One dog, running ."),
    "bare quotes": CSV.replace(b'"A sign says ""stop"" ."', b'A sign says "stop" .'),
    "caption over two lines": CSV.replace(b"One dog, running", b"One dog,\nrunning"),
    "spaces before quotes": CSV.replace(b",A", b", A").replace(b',"', b', "'),
    "spaces and tabs around quotes": CSV.replace(b',"', b' ,\t "').replace(b'"\n', b'" \t\n'),
    "Flickr30k's bars": b"image_name| comment_number| comment\n"
    b'a.jpg| 0| A dog runs .\na.jpg| 1| One dog, running .\nb.jpg| 0| A sign says "stop" .\n',
    "bars, a bar missing": b"image_name| comment_number| comment\n"
    b'a.jpg| 0| A dog runs .\na.jpg| 1   One dog, running .\nb.jpg| 0| A sign says "stop" .\n',
    "bars, quoted": b'image|caption\na.jpg|"A dog runs ."\na.jpg|One dog, running .\nb.jpg|"A sign says ""stop"" ."\n',
    "tabs": CSV.replace(b",", b"\t", 1).replace(b"jpg,", b"jpg\t"),
    "tabs, no header": CSV.split(b"\n", 1)[1].replace(b"jpg,", b"jpg\t"),
    "semicolons": CSV.replace(b",", b";", 1).replace(b"jpg,", b"jpg;"),
    "semicolons, no header": CSV.split(b"\n", 1)[1].replace(b"jpg,", b"jpg; "),
    "semicolons, commas bare": CSV.replace(b",", b";", 1)
    .replace(b"jpg,", b"jpg;")
    .replace(b'"One dog, running ."', b"One dog, running ."),
    "bars, no header": b'a.jpg| A dog runs .\na.jpg| One dog, running .\nb.jpg| A sign says "stop" .\n',
    "UTF-16": CSV.decode().encode("utf-16"),
    "UTF-16, big-endian": b"\xfe\xff" + CSV.decode().encode("utf-16-be"),
    "UTF-16, no mark": CSV.decode().encode("utf-16-le"),
    "several captions in a field": b'filename,raw,split\na.jpg,"[""A dog runs ."", ""One dog, running .""]",train\n'
    b'b.jpg,"[""A sign says \\""stop\\"" .""]",train\n',
    "Python's lists in a field": b"image,captions\n"
    + b"""a.jpg,"['A dog runs .', 'One dog, running .']"\nb.jpg,"['A sign says ""stop"" .']"\n""",
    "the better of two image columns": CSV.replace(b"image,", b"id,file_name,")
    .replace(b"jpg,", b"jpg,", 1)
    .replace(b"\na.jpg", b"\n7,a.jpg")
    .replace(b"\nb.jpg", b"\n8,b.jpg"),
    "JSON lines": b"".join(
        json.dumps({"file_name": name, "text": caption}).encode() + b"\r\n" for name, caption in ROWS
    ),
    "JSON lines, several captions": b'{"image": "a.jpg", "caption": ["A dog runs .", "One dog, running ."]}\n\n'
    b'{"image": "b.jpg", "caption": ["A sign says \\"stop\\" ."]}\n',
    "JSON list": json.dumps([{"image": name, "caption": caption} for name, caption in ROWS]).encode(),
    "JSON map": json.dumps({"a.jpg": [ROWS[0][1], ROWS[1][1]], "b.jpg": ROWS[2][1]}, indent=1).encode(),
    "token": TOKEN,
    "token, CRLF and a mark": b"\xef\xbb\xbf" + TOKEN.replace(b"\n", b"\r\n"),
    "token, blank lines": b"\n" + TOKEN.replace(b"\n", b"\n\n"),
    "karpathy": KARPATHY,
    "coco": COCO,
}


@pytest.mark.parametrize("form", GOOD)
def test_every_form_gives_the_same_captions(tmp_path: Path, form: str) -> None:
    assert pairs(written(tmp_path, GOOD[form])) == ROWS


BAD = {
    "empty file": (b"", "the file is empty"),
    "blank lines only": (b"\n \n\n", "the file is empty"),
    "header only": (b"image,caption\n", "no caption in the file"),
    "byte-order mark only": (b"\xef\xbb\xbf", "the file is empty"),
    "header of bars only": (b"image_name| comment_number| comment\n", "no caption in the file"),
    "bars: two columns missing": (b"image_name| number| comment\na.jpg 0 A dog .\n", "line 2: 1 columns where 3"),
    "bars: a missing bar, no number": (b"image_name| number| comment\na.jpg| A dog .\n", "line 2: 2 columns where 3"),
    "bars: no name": (b"image| comment\n | A dog .\n", "line 2: no image name"),
    "a quoted word, then commas": (CSV + b'c.jpg, "A" cat, a dog\n', "line 5: 3 columns where 2 are wanted"),
    "spaced quote never closed": (CSV + b'c.jpg, "A cat\nd.jpg,A cow .\n', "line 5: a quote .* not closed"),
    "spaced quote, closed within": (CSV + b'c.jpg, "A cat\nand "a" dog\n', "line 5: a quote .* in the middle"),
    "semicolon further down": (
        CSV + b"c.jpg;A cat .\n",
        "line 5: .* separated by a semicolon; wanted a comma",
    ),
    "unknown columns": (
        b"bild;beschreibung;nr\na.jpg;A dog .;1\n",
        r"line 1: the columns are 'bild', 'beschreibung', 'nr'; say which of them holds the images' names "
        r"\(--image-column NAME\) and which the captions \(--caption-column NAME\)",
    ),
    "addresses in a column": (b"url,caption\nhttp://x/a.jpg,A dog .\n", "line 1: .* names images by their addresses"),
    "Conceptual Captions": (b"a dog runs\thttp://x/a.jpg\n", "line 1: .* by their addresses .*img2dataset"),
    "a split nobody understands": (
        b"image,caption,fold\na.jpg,A dog .,3\nb.jpg,A cat .,1\n",
        "the column 'fold' looks like a split, but '1', '3' is no split; write train, dev",
    ),
    "two splits of an image": (
        b"image,caption,split\na.jpg,A dog .,train\na.jpg,A cat .,test\n",
        "line 3: image 'a.jpg' is in 'train' above and in 'test' here",
    ),
    "cut UTF-16": ("image,caption\na.jpg,A dog".encode("utf-16")[:-1], "is not UTF-16"),
    "an Excel workbook's bytes": (b"PK\x03\x04rest", "a compressed archive"),
    "Cyrillic in its own encoding": (
        "image,caption\na.jpg,Собака бежит по снегу\n".encode("cp1251"),
        "line 2: byte 0xd1 is not UTF-8, and the text is not Windows-1252 either; convert it: iconv",
    ),
    "damaged UTF-8": (
        "image,caption\na.jpg,Un café très fâché".encode() + b" \xe9 .\n",
        "line 2: byte 0xe9 is not UTF-8",
    ),
    "prose": (b"Captions of Flickr8k\n", "line 1: wanted a header"),
    "quote never closed": (CSV + b'c.jpg,"A cat .\nd.jpg,A cow .\n', r'line 5: a quote \("\) is opened and not closed'),
    "quote never closed, last line": (CSV + b'c.jpg,"A cat .', "line 5: a quote"),
    "quote closed by a later row's": (CSV + b'c.jpg,"A cat .\nd.jpg,"A cow ."\n', "line 5: a quote"),
    "quote over many lines": (
        CSV + b'c.jpg,"A cat .\n' + b"more\n" * 300 + b'end"\n',
        "line 5: a quoted caption runs over more than 200 lines",
    ),
    "quote closed within": (CSV + b'c.jpg,"A "cat" .\n', "line 5: a quote .* closed in the middle"),
    "two quoted captions": (CSV + b'c.jpg,"A cat","A cow"\n', "line 5: 3 columns where 2 are wanted"),
    "no comma": (CSV + b"c.jpg\n", "line 5: 1 columns where 2 are wanted"),
    "no name": (CSV + b",A cat .\n", "line 5: no image name"),
    "empty caption": (CSV + b"c.jpg,\n", "line 5: the caption is empty"),
    "caption of spaces": (CSV + b'c.jpg,"  "\nd.jpg, \n', "line 5, line 6: the caption is empty"),
    "too few of many columns": (b"image,caption,k\na.jpg,A dog .\n", "line 2: 2 columns where 3 are wanted"),
    "NUL": (CSV + b"c.jpg,A \0cat .\n", "line 5: a NUL character"),
    "NUL after CRLF": (CSV.replace(b"\n", b"\r\n") + b"\0", "line 5: a NUL character"),
    "half a character at the end": (CSV + "c.jpg,é".encode()[:-1], "line 5: byte 0xc3 is not UTF-8"),
    "line of 10 MB": (CSV + b"c.jpg," + b"x" * 10_000_000 + b"\n", "line 5: 10,000,006 bytes long"),
    "zip": (b"PK\x03\x04rest", "a compressed archive"),
    "csv under token": (TOKEN + b"c.jpg,A cat .\n", r"line 4: wanted 'name.jpg#0<TAB>caption'"),
    "token without a name": (TOKEN + b"#0\tA cat .\n", "line 4: no image name before '#'"),
    "token without a caption": (TOKEN + b"c.jpg#0\t\n", "line 4: the caption is empty"),
    "token under csv": (
        CSV + b"c.jpg#0\tA cat, a dog .\n",
        "line 5: .* separated by a tab; wanted a comma",
    ),
}


@pytest.mark.parametrize("form", BAD)
def test_every_bad_form_is_refused_by_file_and_line(tmp_path: Path, form: str) -> None:
    data, message = BAD[form]
    path = written(tmp_path, data)
    with pytest.raises(DataError, match=message) as caught:
        read_captions(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 500 + len(str(path))


BAD_JSON = {
    "not json": (b"{", "not valid JSON"),
    "a list": (b"[1, 2]", r"\[0\]: wanted an object with an image and a caption, got '1'"),
    "an empty list": (b"[]", "no caption in the file"),
    "records of other columns": (
        b'[{"image": "a.jpg", "dog": "A"}]',
        r"\[0\]: the columns are 'image', 'dog'; say which of them holds the captions \(--caption-column NAME\)",
    ),
    "a record without its caption": (
        b'[{"image": "a.jpg", "caption": "A"}, {"image": "b.jpg"}]',
        r"\[1\]: no 'caption', which the first record has",
    ),
    "addresses": (b'{"image_urls": ["http://x/a.jpg"], "captions": ["A"]}', "by their addresses on the web"),
    "another object": (b'{"a": 1}', "wanted a JSON object with a list 'images'"),
    "no images": (b'{"images": []}', "the list 'images' is empty"),
    "nested": (b'{"images": ' + b"[" * 200_000, "nested too deeply|not valid JSON"),
    "image is no object": (b'{"images": [3]}', r"images\[0\] has no text 'filename'"),
    "no sentences": (b'{"images": [{"filename": "a.jpg"}]}', r"images\[0\] has no list 'sentences'"),
    "sentence is no object": (
        b'{"images": [{"filename": "a.jpg", "sentences": ["A dog"]}]}',
        r"images\[0\].sentences\[0\] has no text 'raw'",
    ),
    "no captions": (b'{"images": [{"filename": "a.jpg", "sentences": []}]}', "no caption in the file"),
    "empty": (
        b'{"images": [{"filename": "a.jpg", "sentences": [{"raw": " "}]}]}',
        "image 'a.jpg': the caption is empty",
    ),
    "half a surrogate pair": (
        b'{"images": [{"filename": "a.jpg", "sentences": [{"raw": "\\ud800"}]}]}',
        "half of a surrogate pair",
    ),
    "NUL": (b'{"images": [{"filename": "a.jpg", "sentences": [{"raw": "a\\u0000"}]}]}', "holds a NUL"),
    "long": (
        b'{"images": [{"filename": "a.jpg", "sentences": [{"raw": "' + b"x" * 70_000 + b'"}]}]}',
        "70,000 characters long",
    ),
    "two splits": (
        b'{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "x"}]},'
        b' {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "y"}]}]}',
        "'a.jpg' is in train and in test",
    ),
    "annotations no list": (b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": 3}', "is not a list"),
    "unknown image": (
        b'{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "A"}]}',
        "image_id 2, which no entry",
    ),
    "id no number": (b'{"images": [{"id": "1", "file_name": "a"}], "annotations": []}', "no whole number 'id'"),
    "huge number": (b'{"images": [{"id": ' + b"9" * 200_000 + b"}]}", "a number of 200,000 digits"),
    "a key twice": (b'{"images": [], "images": []}', "an object has the key 'images' twice"),
    "a key twice within": (
        b'{"images": [{"filename": "a.jpg", "sentences": [{"raw": "x", "raw": "y"}]}]}',
        "an object has the key 'raw' twice",
    ),
    "NaN": (b'{"images": [{"id": NaN}]}', "NaN is not JSON"),
    "two images of one id": (
        b'{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
        "has the id of another image",
    ),
}


@pytest.mark.parametrize("form", BAD_JSON)
def test_every_bad_json_is_refused(tmp_path: Path, form: str) -> None:
    data, message = BAD_JSON[form]
    with pytest.raises(DataError, match=message):
        read_captions(written(tmp_path, data, "dataset.json"))


def test_json_splits(tmp_path: Path) -> None:
    assert read_captions(written(tmp_path, KARPATHY)).splits == {"a.jpg": "train", "b.jpg": "dev"}
    assert read_captions(written(tmp_path, COCO)).splits is None
    odd = read_captions(written(tmp_path, KARPATHY.replace(b"restval", b"spare")))
    assert odd.splits == {"b.jpg": "dev"}
    assert "1 images have a split we do not know ('spare')" in odd.notes[0]


def test_karpathy_file_path_is_part_of_the_name(tmp_path: Path) -> None:
    data = b'{"images": [{"filename": "a.jpg", "filepath": "val2014", "sentences": [{"raw": "x"}]}]}'
    assert read_captions(written(tmp_path, data)).image_names == ["val2014/a.jpg"]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    assert read_captions(written(tmp_path, CSV.replace(b"One dog, running", b"One dog,\nrunning"))).lines == [2, 3, 5]
    assert read_captions(written(tmp_path, b"\r\n" + TOKEN)).lines == [2, 3, 4]
    assert read_captions(written(tmp_path, COCO)).lines == [0, 0, 0]


def test_empty_captions_are_left_out_on_request(tmp_path: Path) -> None:
    path = written(tmp_path, CSV + b"c.jpg,\nc.jpg,A cat .\n")
    assert pairs(path, skip_empty=True) == [*ROWS, ("c.jpg", "A cat .")]
    found = read_captions(path, skip_empty=True)
    assert found.empty_lines == [5]
    assert found.notes == ["captions.txt: 1 empty captions left out (line 5)"]


def test_the_known_slip_is_left_out_with_a_note(tmp_path: Path) -> None:
    slip = b"".join(b"2258277193_586949ec62.jpg.1#%d\tSome people .\n" % k for k in range(5))
    found = read_captions(written(tmp_path, TOKEN + slip, "Flickr8k.token.txt"))
    assert len(found.captions) == 3
    assert found.notes == [
        "Flickr8k.token.txt: 5 captions of 2258277193_586949ec62.jpg.1 left out: a known slip of Flickr8k's own file"
    ]


def test_bare_commas_are_counted(tmp_path: Path) -> None:
    found = read_captions(written(tmp_path, GOOD["bare commas"]))
    assert found.notes == [
        "captions.txt: 1 lines have commas outside quotes (first: line 3); "
        "their caption is everything after the first comma"
    ]


def test_other_encodings_are_said(tmp_path: Path) -> None:
    text = "image,caption\na.jpg,Un café à l\u2019été’s .\n"
    for encoding, name in (("cp1252", "Windows-1252"), ("utf-16", "UTF-16")):
        for end in ("\n", "\r"):
            found = read_captions(written(tmp_path, text.replace("\n", end).encode(encoding)))
            assert found.captions == ["Un café à l’été’s ."]
            assert len(found.notes) == 1 and name in found.notes[0]


def test_the_user_names_separator_and_columns(tmp_path: Path) -> None:
    path = written(tmp_path, b"bild,nr;beschreibung\na,1.jpg;A dog\n")
    found = read_captions(path, Reading(separator="semicolon", image_column="bild,nr", caption_column="Beschreibung"))
    assert (found.image_names, found.captions) == (["a,1.jpg"], ["A dog"])
    with pytest.raises(DataError, match="there is no column 'photo' as --image-column says; the columns are 'bild'"):
        read_captions(path, Reading(image_column="photo"))
    path = written(tmp_path, b'{"image": "a.jpg", "de": "Ein Hund", "caption": "A dog"}\n', "captions.jsonl")
    assert read_captions(path, Reading(caption_column="de")).captions == ["Ein Hund"]


def test_a_split_column_is_read(tmp_path: Path) -> None:
    words = ["Train", "training", "restval", "val", "validation", "dev", "TEST", "testing", ""]
    rows = "".join(f"{k}.jpg,A dog .,{word}\n" for k, word in enumerate(words))
    found = read_captions(written(tmp_path, f"image,caption,Split\n{rows}".encode()))
    assert found.splits is not None
    assert [found.splits.get(f"{k}.jpg") for k in range(9)] == ["train"] * 3 + ["dev"] * 3 + ["test"] * 2 + [None]
    assert found.form == "comma-separated, columns 'image', 'caption', 'Split'"


def test_a_missing_bar_is_noted(tmp_path: Path) -> None:
    found = read_captions(written(tmp_path, GOOD["bars, a bar missing"], "results.csv"))
    assert found.notes == [
        "results.csv: 1 rows lack the bar before the caption (line 3); the caption is what follows the number"
    ]
    text = "image| comment\na.jpg| A sign | a road\n"
    assert pairs(written(tmp_path, text.encode())) == [("a.jpg", "A sign | a road")]


def test_quotes_that_are_part_of_a_caption_stay(tmp_path: Path) -> None:
    rows = 'a.jpg, "Stop" is written there\nb.jpg,A 5" pipe\nc.jpg,""\nd.jpg,"""Stop"" again"\n'
    found = read_captions(written(tmp_path, rows.encode()), skip_empty=True)
    assert found.captions == ['"Stop" is written there', 'A 5" pipe', '"Stop" again']
    assert found.empty_lines == [3]


@pytest.mark.parametrize("lines", [20, 200])
def test_a_quoted_caption_may_run_over_many_lines(tmp_path: Path, lines: int) -> None:
    quoted = "\n".join(["a line"] * lines)
    path = written(tmp_path, f'image,caption\na.jpg,"{quoted}"\nb.jpg,"{quoted}"\n'.encode())
    found = read_captions(path)
    assert found.captions == [" ".join(["a line"] * lines)] * 2
    assert found.lines == [2, 2 + lines]


def test_names_in_json_may_hold_unicode_line_ends(tmp_path: Path) -> None:
    value = {"images": [{"filename": "a\u2028b\x85.jpg", "sentences": [{"raw": "one\u2028line"}]}]}
    assert pairs(written(tmp_path, json.dumps(value).encode())) == [("a\u2028b\x85.jpg", "one line")]


def test_memory_that_is_not_there_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    path = written(tmp_path, CSV)
    monkeypatch.setattr(captions_module, "_without_known_slip", refuse)
    with pytest.raises(DataError, match="too large for the memory that is free"):
        read_captions(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_captions(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="not a file but a folder"):
        read_captions(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="not a file but a named pipe"):
            read_captions(tmp_path / "pipe")


LARGE = {
    "captions.csv": b'image,caption\r\na.jpg,"A dog\r\nin snow, twice"\r\n\r\nb.jpg,Cats \xc3\xa9\xe2\x82\xac .\r\n',
    "captions.txt": "a.jpg#0\tA dog .\ra.jpg#1\tOne d\xf6g .\rb.jpg#0\tTwo cats .".encode(),
    "captions.jsonl": b'\n{"image": "a.jpg", "caption": ["A dog", "One"]}\n{"image": "b.jpg", "caption": "Cats"}\n',
    "captions.tsv": b"\xff\xfe" + "image\tcaption\na.jpg\tA dog \U0001f415 .\nb.jpg\tTwo cats .\n".encode("utf-16-le"),
}


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("name", LARGE)
def test_a_large_file_is_read_in_blocks_as_a_small_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int
) -> None:
    (tmp_path / name).write_bytes(LARGE[name])
    whole = read_captions(tmp_path / name)
    monkeypatch.setattr(text_file, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(text_file, "_BLOCK", block)
    monkeypatch.setattr(CaptionSource, "text", property(lambda self: pytest.fail("read whole")))
    assert read_captions(tmp_path / name) == whole and len(whole.captions) >= 2


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"image,caption\r\na.jpg,A dog\r\nb.jpg,Two \xe9t\xe9\r\n",
            "captions.csv line 3: byte 0xe9 is not UTF-8, as a",
        ),
        (b"image,caption\ra.jpg,A dog\rb.jpg,\xe2\x82", "captions.csv line 3: byte 0xe2 is not UTF-8"),
        (b"image,caption\na.jpg,A dog\nb.jpg,Two\0\n", "captions.csv line 3: a NUL character"),
        (b"image,caption\na.jpg,A dog\nb.jpg," + b"x" * (1 << 17), "captions.csv line 3: .* a line may have"),
        (b"image,caption\na.jpg,A dog\nb.jpg\n", "captions.csv line 3: 1 columns where 2 are wanted"),
        (b"\n" * (1 << 18) + b"image,caption\na.jpg,A dog", "captions.csv: its first 262,144 bytes hold no text"),
        (b'{"a.jpg": "A dog", "b.jpg": "Two cats"}', "captions.csv: 39 bytes as one JSON value, which is read whole"),
        (b"PK\x03\x04" + b"x" * 100, "captions.csv: a compressed archive"),
    ],
)
def test_faults_of_a_large_file_name_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, words: str, block: int
) -> None:
    monkeypatch.setattr(text_file, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(text_file, "_BLOCK", block if len(content) < 1000 else 1 << 14)
    with pytest.raises(DataError, match=words):
        read_captions(written(tmp_path, content, "captions.csv"))


CAPTIONS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)
NAMES = st.text("abcé_-01 ", min_size=1).map(str.strip).filter(bool).map(lambda stem: stem + ".jpg")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, CAPTIONS), min_size=1), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_what_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], end: str, header: bool
) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end)
    writer.writerows([("image", "caption")] if header else [])
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "captions.txt"
    path.write_bytes(text.getvalue().encode())
    assert pairs(path) == rows


SEPARATORS = [*'\n\r,"|;\t\0\u2028\x85 ', "\r\n", ", ", '""', '" ', "| 0| ", "#0\t"]
JSON_PIECES = [
    '{"images":',
    "[",
    '{"filename":"a.jpg","sentences":[{"raw":"x"}]}',
    "]}",
    "}",
    '"annotations":[',
    "1e400",
    "NaN",
    '"\\ud800"',
]
JSON_PIECES += ['{"id": 1, "file_name": "a.jpg"}', '{"image_id": 1, "caption": "x"}', "9" * 40, "[" * 2000]
TEXTS = ["a.jpg", "b.PNG", "image,caption\n", "image| number| comment\n", "A dog .", "\ufeff", "é狗", "x" * 9000]
PIECES = st.sampled_from([*SEPARATORS, *JSON_PIECES, *TEXTS])
FILES = (
    st.binary(max_size=300)
    | st.lists(PIECES, max_size=25).map(lambda pieces: "".join(pieces).encode())
    | st.tuples(
        st.sampled_from(list(GOOD.values())), st.integers(0, 400), st.integers(0, 9), st.binary(max_size=4)
    ).map(lambda t: t[0][: t[1]] + t[3] + t[0][t[1] + t[2] :])
)


@pytest.mark.parametrize("examples", [200, pytest.param(30_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["captions.txt", "dataset.json"])
def test_any_bytes_give_captions_or_a_data_error(tmp_path: Path, name: str, examples: int) -> None:
    path = tmp_path / name

    @settings(max_examples=examples, deadline=None)
    @given(FILES, st.booleans())
    def reads(data: bytes, skip_empty: bool) -> None:
        path.write_bytes(data)
        try:
            found = read_captions(path, skip_empty=skip_empty)
        except DataError as error:
            assert str(path) in str(error)
            return
        assert len(found.image_names) == len(found.captions) == len(found.lines)
        assert all(caption and "\n" not in caption for caption in found.captions)

    reads()


def test_all_of_flickr8k(shared_data: Path) -> None:
    found = read_captions(shared_data / "flickr8k_128" / "captions.txt")
    assert len(found.captions) == 40_455
    assert len(set(found.image_names)) == 8_091
    assert found.lines == list(range(2, 40_457))
    assert found.notes == []
    assert found.captions[1284 - 2].startswith('A woman with a shopping bag labeled " sale " stands')
