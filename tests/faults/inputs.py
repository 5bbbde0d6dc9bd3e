"""Hostile input: mutated pictures, one process each, and captions files in every wrong form."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import signal
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANGS = 20  # seconds after which a picture counts as one that hangs
SECONDS, MEGABYTES = 2.0, 512  # what one may cost


def originals(data: Path | None) -> list[tuple[str, bytes]]:
    """Pictures to be mutated, JPEG, PNG and WebP: real ones below `data` where it is given, else drawn ones."""
    from PIL import Image

    found: list[tuple[str, bytes]] = []
    if data is None:
        slope = Image.linear_gradient("L").resize((96, 72))
        pictures = [Image.merge("RGB", (slope, slope.rotate(90).resize((96, 72)), slope.rotate(180)))]
    else:
        real = sorted((data / "flickr8k_originals" / "Images").glob("*.jpg"))[::8]
        odd = [path for path in sorted((data / "odd_images").iterdir()) if path.suffix != ".tsv"]
        for path in [*real, *odd]:
            content = path.read_bytes()
            if len(content) <= 1 << 20 and content[:3] in (b"\xff\xd8\xff", b"\x89PN", b"RIF"):
                found.append((path.name, content))
        pictures = [Image.open(path).convert("RGB") for path in real[:12]]
    for number, picture in enumerate(pictures):
        forms: list[tuple[str, dict[str, Any]]] = [
            ("PNG", {}),
            ("WEBP", {"quality": 70}),
            ("WEBP", {"lossless": True}),
            ("JPEG", {"quality": 80, "progressive": True}),
            ("JPEG", {"quality": 80, "restart_marker_blocks": 4}),
        ]
        for form, options in forms:
            written = io.BytesIO()
            small = picture.resize((160, 120)) if number % 2 else picture
            (small.quantize(64) if form == "PNG" and number % 3 == 0 else small).save(written, form, **options)
            found.append((f"{number}.{form.lower()}", written.getvalue()))
    return found


def mutated(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """One to eight changes: bits, bytes, extreme sizes, cuts, copies, parts of another file; PNG's sums often right."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        if not found:
            break
        # Headers decide most, so half of the changes go there.
        at = draw.randrange(min(len(found), 700)) if draw.random() < 0.5 else draw.randrange(len(found))
        kind = draw.randrange(8)
        if kind == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, draw.randrange(256)))
        elif kind == 2:
            value = draw.choice((0, 1, 0x7FFF, 0xFFFF, 0x2000, 0x4000))
            found[at : at + 2] = struct.pack(draw.choice("<>") + "H", value)
        elif kind == 3:
            value = draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 0x4000, 0x20000))
            found[at : at + 4] = struct.pack(draw.choice("<>") + "I", value)
        elif kind == 4:
            del found[at:]
        elif kind == 5:
            del found[at : at + draw.randrange(1, 64)]
        elif kind == 6:
            size = draw.randrange(1, 400)
            found[at:at] = found[at : at + size] * draw.choice((1, 1, 20))
        else:
            start = draw.randrange(max(1, len(other)))
            found[at : at + draw.randrange(1, 2000)] = other[start : start + draw.randrange(1, 2000)]
    if found[:4] == b"\x89PNG" and draw.random() < 0.5:
        _right_sums(found)
    return bytes(found)


def _right_sums(png: bytearray) -> None:
    """Make the checksum of every PNG chunk right, so that the changes reach what is behind it."""
    at = 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if at + 12 + length > len(png):
            return
        png[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(png[at + 4 : at + 8 + length]))
        at += 12 + length


def pictures(folder: Path, count: int, seed: int, data: Path | None) -> dict[str, Any]:
    """Each mutated picture through `load_images` in a process of its own, which is timed and measured."""
    from varalign.data.images import Preprocess, load_images

    folder.mkdir()
    sources, draw = originals(data), random.Random(seed)
    preprocess = Preprocess(size=64)
    path, said = folder / "picture", folder / "said"

    def look(content: bytes) -> tuple[int, float, float, str]:
        path.write_bytes(content)
        child = os.fork()
        if not child:
            signal.alarm(HANGS)
            begin = time.perf_counter()
            try:
                _, errors = load_images([path], preprocess, threads=1)
                took = time.perf_counter() - begin
                said.write_text(f"{took} {errors[0][1] if errors else ''}")
            except BaseException as error:
                said.write_text(f"0 raised {error!r}")
                os._exit(3)
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        took, _, words = said.read_text().partition(" ")
        return os.waitstatus_to_exitcode(status), float(took), usage.ru_maxrss / 1024, words

    base = look(sources[0][1])[2]
    outcomes, failures = Counter[str](), []
    slowest, largest = (0.0, ""), (0.0, "")
    for number in range(count):
        name, content = sources[number % len(sources)]
        changed = mutated(content, draw.choice(sources)[1], draw)
        code, took, memory, words = look(changed)
        memory -= base
        form = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"RI": "WebP"}.get(content[:2], "?")
        outcomes[f"{form} {'decoded' if not words else 'refused'}"] += 1
        slowest, largest = max(slowest, (took, name)), max(largest, (memory, name))
        named = not words or str(path) in words
        if code or took > SECONDS or memory > MEGABYTES or not named or "did not expect" in words:
            failures.append(f"{name} change {number}: code {code}, {took:.2f} s, {memory:.0f} MiB, {words[:200]}")
            if os.environ.get("KEEP_FAULTS"):
                shutil.copy(path, Path(os.environ["KEEP_FAULTS"]) / f"{number}-{name}")
    return {
        "files": count,
        "originals": len(sources),
        "outcomes": dict(sorted(outcomes.items())),
        "slowest": f"{slowest[0]:.3f} s ({slowest[1]})",
        "most memory": f"{largest[0]:.0f} MiB ({largest[1]})",
        "failures": failures[:20],
    }


ROWS = b"a.jpg,A dog runs .\nb.jpg,Two cats .\n" + b"".join(b"%d.jpg,Number %d .\n" % (n, n) for n in range(9))
CSV = b"image,caption\n" + ROWS


def forms() -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Captions files by what is hostile in them, with options of `load_dataset`."""
    plain: dict[str, Any] = {}
    skip = {"skip_missing": True}
    return {
        "plain": (CSV, plain),
        "byte-order mark": (b"\xef\xbb\xbf" + CSV, plain),
        "CRLF": (CSV.replace(b"\n", b"\r\n"), plain),
        "lone CR": (CSV.replace(b"\n", b"\r"), plain),
        "mixed line ends": (CSV.replace(b"\n", b"\r\n", 1).replace(b".\n", b".\r", 1), plain),
        "unbalanced quote": (b'image,caption\na.jpg,"A dog\nb.jpg,Two cats .\n', plain),
        "quote within a caption": (CSV + b'a.jpg,a "quoted" dog\n', plain),
        "commas outside quotes": (CSV + b"a.jpg,one, two, three dogs\n", plain),
        "NFD name of an NFC file": (CSV + "e\u0301.jpg,An accent .\n".encode(), plain),
        "NFC name of an NFC file": (CSV + "é.jpg,An accent .\n".encode(), plain),
        "NUL": (CSV + b"a.jpg,A \0 dog\n", plain),
        "control characters": (CSV + b"a.jpg,A \x1b[31m dog\n", plain),
        "empty caption": (CSV + b"a.jpg,\n", plain),
        "empty caption, --skip-missing": (CSV + b"a.jpg,\n", skip),
        "only blanks": (CSV + b"a.jpg,   \t\n", plain),
        "line of 10 MB": (CSV + b"a.jpg," + b"x" * 10_000_000 + b"\n", plain),
        "10 MB without a line end": (b"x" * 10_000_000, plain),
        "missing image": (CSV + b"absent.jpg,A ghost .\n", plain),
        "missing image, --skip-missing": (CSV + b"absent.jpg,A ghost .\n", skip),
        "../": (CSV + b"../outside.jpg,Out .\n", plain),
        "absolute path": (CSV + b"/etc/hostname,Out .\n", plain),
        "a link that leads outside": (CSV + b"link.jpg,Out .\n", plain),
        "a folder as image": (CSV + b"folder.jpg,In .\n", plain),
        "duplicate rows": (CSV + ROWS, plain),
        "no header": (ROWS, plain),
        "header only": (b"image,caption\n", plain),
        "header twice": (CSV + CSV, plain),
        "empty file": (b"", plain),
        "wrong delimiter": (CSV.replace(b",", b";"), plain),
        "tabs for commas": (CSV.replace(b",", b"\t"), plain),
        "Latin-1 bytes": (CSV + "a.jpg,Un café .\n".encode("latin-1"), plain),
        "UTF-16": (CSV.decode().encode("utf-16"), plain),
        "one column": (b"image\na.jpg\nb.jpg\n", plain),
        "JSON that is cut": (b'{"images": [{"filename": "a.jpg", "sent', plain),
        "JSON nested deeply": (b"[" * 200_000, plain),
        "binary": (bytes(range(256)) * 40, plain),
    }


def captions(folder: Path) -> dict[str, Any]:
    """What becomes of every form: captions read, or an error of one line that names the file."""
    from varalign.data.datasets import load_dataset
    from varalign.data.errors import DataError

    rows, failures = [], []
    counted = Counter[str]()
    for number, (name, (content, options)) in enumerate(forms().items()):
        place = folder / str(number)
        (place / "Images" / "folder.jpg").mkdir(parents=True)
        (folder / "outside.jpg").write_bytes(b"x")
        (place / "Images" / "link.jpg").symlink_to(folder / "outside.jpg")
        for image in ("a.jpg", "b.jpg", "c.jpg", "é.jpg", *(f"{n}.jpg" for n in range(9))):
            (place / "Images" / image).write_bytes(image.encode())
        (place / "captions.txt").write_bytes(content)
        before, begin = _peak(), time.perf_counter()
        try:
            found = load_dataset(place, **options)
            outcome = f"{len(found.captions)} captions of {len(found.image_names)} images"
            notes = [note for note in found.notes if "caption" in note and "no caption" not in note]
            outcome += f"; {notes[0][:110]}" if notes else ""
            counted["read"] += 1
        except DataError as error:
            text = str(error).replace(str(place), "DIR").replace("\n", "⏎")
            outcome = f"refused: {text[:150]}"
            counted["refused"] += 1
            if "captions.txt" not in str(error) and "DIR" not in text:
                failures.append(f"{name}: names no file: {text}")
        except Exception as error:
            outcome = f"FAULT {error!r}"
            failures.append(f"{name}: {error!r}")
        took, grown = time.perf_counter() - begin, _peak() - before
        if took > SECONDS or grown > MEGABYTES:
            failures.append(f"{name}: {took:.1f} s, {grown:.0f} MiB")
        rows.append(f"{name:32} {outcome}")
    return {"forms": len(rows), "outcomes": dict(counted), "table": rows, "failures": failures}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def caption_noise(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Seeded mutations of good captions files of every form: captions, or a `DataError`, within time."""
    from varalign.data.errors import DataError
    from varalign.data.readers.captions import read_captions

    folder.mkdir()
    path = folder / "captions.txt"
    token = b'a.jpg#0\tA dog runs .\na.jpg#1\tOne dog .\nb.jpg#0\tA "sign" .\n'
    karpathy = b'{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog ."}]}]}'
    coco = b'{"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"image_id": 7, "caption": "A dog ."}]}'
    good = [CSV, CSV + b'a.jpg,"a ""b"", c"\n', token, karpathy, coco, "image,caption\né.jpg,狗 😀\n".encode()]
    pieces = [b'"', b",", b"\n", b"\r", b"\t", b"#", b"\0", b"\xff", b"\xef\xbb\xbf", b"{", b"]", b"\\u", b"\\", b"../"]
    draw, outcomes, failures, slowest = random.Random(seed), Counter[str](), [], 0.0
    check: Callable[[Any], bool] = lambda found: len(found.image_names) == len(found.captions) == len(found.lines)  # noqa: E731
    for number in range(count):
        content = bytearray(draw.choice(good))
        for _ in range(draw.choice((1, 2, 4, 12))):
            at = draw.randrange(len(content) + 1)
            kind = draw.randrange(4)
            if kind == 0:
                content[at:at] = draw.choice(pieces) * draw.choice((1, 1, 3))
            elif kind == 1:
                del content[at : at + draw.randrange(1, 6)]
            elif kind == 2:
                content[at : at + 1] = bytes([draw.randrange(256)])
            else:
                other = draw.choice(good)
                content[at:at] = other[draw.randrange(len(other)) :]
        path.write_bytes(content)
        begin = time.perf_counter()
        try:
            found = read_captions(path)
            outcomes["read"] += 1
            if not check(found) or not all(map(str.strip, found.captions)):
                failures.append(f"{number}: uneven or empty: {bytes(content)!r}")
        except DataError as error:
            outcomes["refused"] += 1
            if "captions.txt" not in str(error):
                failures.append(f"{number}: names no file: {error}")
        except Exception as error:
            failures.append(f"{number}: {error!r}: {bytes(content)!r}")
        slowest = max(slowest, time.perf_counter() - begin)
    return {"files": count, "outcomes": dict(outcomes), "slowest": f"{slowest:.3f} s", "failures": failures[:10]}
