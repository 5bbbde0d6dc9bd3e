"""Reading captions and listing images at the size of COCO: 590,000 captions of 118,000 images, all made.

    OMP_NUM_THREADS=1 python bench/reading.py [--images N] [--folder DIR] [--json] [--out FILE]

Every figure is that of a process of its own: processor time of reading (imports left out), and the most memory that the
process ever held (imports included). Targets: each captions file in 10 s and 1 GiB; the image files listed, and every
name found among them, in 5 s; of each 100,000 images of a folder 4 s for loading it and 10 s for `data check`, which
decodes them (small ones here). pandas and the library json read the same files for comparison; they neither check nor
pair anything.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import Row, judged, main, single

CAPTIONS_EACH = 5
SECONDS, MEBIBYTES, LISTING, LOADING, CHECKING = 10.0, 1024.0, 5.0, 4.0, 10.0
WORDS = "a the dog man woman child runs sits red blue small large on in with grass street snow water ball".split()  # noqa: SIM905
FORMS = (
    *("captions.csv", "captions.tsv", "captions.jsonl", "captions_train2017.json", "records.json"),
    "captions.parquet",
)

MEASURED = r"""
import json, re, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{imports}
begin = time.process_time()
{run}
seconds = time.process_time() - begin
most = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([seconds, most / 1024, result]))
"""
OURS = (
    "from varalign.data.readers.captions import read_captions",
    "found = read_captions(path); result = [len(found.captions), len(set(found.image_names))]",
)
LISTED = (
    "from varalign.data.readers.image_folder import ImageFolder",
    "folder = ImageFolder(path); names = folder.names(); result = [len(names), sum(folder.holds(n) for n in names)]",
)
WHOLE = (
    "from varalign.data.datasets import load_dataset",
    "found = load_dataset(path); result = [len(found.captions), len(found.image_names)]",
)
CHECKED = (
    "from varalign.data.checks.dataset_check import check_dataset",
    "found = check_dataset(path); result = [found.captions, found.images - len(found.unreadable)]",
)
PANDAS = ("import pandas", "frame = pandas.read_csv(path); result = [len(frame), frame['image'].nunique()]")
JSON = ("", "value = json.loads(path.read_bytes()); result = [len(value['annotations']), len(value['images'])]")


def captions(images: int) -> Iterator[tuple[str, str]]:
    """(image name, caption) of each caption: 10.5 words on average, a comma in one of five, quotes in one of 50."""
    draw = random.Random(0)
    for number in range(images):
        for k in range(CAPTIONS_EACH):
            words = draw.choices(WORDS, k=draw.randrange(8, 14))
            words[4] += "," * (k == 0)
            if draw.random() < 0.02:
                words[2] = f'"{words[2]}"'
            yield f"{number:012}.jpg", " ".join(words)


def write(folder: Path, images: int) -> None:
    """The captions in every form, and as many files as images."""
    import csv
    import io

    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    pairs = list(captions(images))
    for name, separator in (("captions.csv", ","), ("captions.tsv", "\t")):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([("image", "caption"), *pairs])
    records = [{"image": image, "caption": caption} for image, caption in pairs]
    (folder / "captions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "records.json").write_text(json.dumps(records))
    names = [name for name, _ in pairs[::CAPTIONS_EACH]]
    coco = {
        "images": [{"id": k, "file_name": name, "height": 480, "width": 640} for k, name in enumerate(names)],
        "annotations": [
            {"image_id": k // CAPTIONS_EACH, "id": k, "caption": caption} for k, (_, caption) in enumerate(pairs)
        ],
    }
    (folder / "captions_train2017.json").write_text(json.dumps(coco))
    columns = {"image": [name for name, _ in pairs], "caption": [caption for _, caption in pairs]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "captions.parquet")
    (folder / "whole" / "Images").mkdir(parents=True)
    (folder / "whole" / "captions.csv").symlink_to(folder / "captions.csv")
    pictures = []
    for level in range(64):
        picture = io.BytesIO()
        Image.new("RGB", (32, 32), (4 * level, 128, 255 - level)).save(picture, "jpeg")
        pictures.append(picture.getvalue())
    for number, name in enumerate(names):  # what follows the picture is passed over, and no two files are equal
        (folder / "whole" / "Images" / name).write_bytes(pictures[number % 64] + b"x" * (number % 997) + b"%d" % number)


def measured(path: Path, code: tuple[str, str]) -> tuple[float, float, list[int]]:
    """Processor seconds, the most MiB held, and the counts that the code gives."""
    script = MEASURED.format(imports=code[0], run=code[1])
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    seconds, mebibytes, result = json.loads(done.stdout)
    return seconds, mebibytes, result


def rows_of(
    subject: str, path: Path, code: tuple[str, str], counts: list[int], rounds: int, limit: float = SECONDS
) -> list[Row]:
    """Seconds and memory, the median of the rounds, and whether they are within the targets."""
    found = sorted(measured(path, code) for _ in range(rounds))
    seconds, mebibytes, result = found[len(found) // 2]
    agrees, packages = result == counts, ["pyarrow"] if path.suffix == ".parquet" else []
    rows = [single(subject, "varalign, processor time", seconds, "s", agrees=agrees, packages=packages)]
    rows.append(single(subject, "varalign, most memory", mebibytes, "MiB", agrees=agrees, packages=packages))
    rows.append(judged(subject, f"of {limit:g} s", limit / seconds, 1.0))
    rows.append(judged(subject, f"of {MEBIBYTES:g} MiB", MEBIBYTES / mebibytes, 1.0))
    return rows


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """Each form, its peer where one reads it, the listing, and a whole data folder."""
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        write(folder, options.images)
        counts = [options.images * CAPTIONS_EACH, options.images]
        for name in FORMS:
            subject = f"{name}, {counts[0]:,} captions"
            rows = rows_of(subject, folder / name, OURS, counts, options.rounds)
            peers = {"captions.csv": ("pandas", PANDAS), "captions_train2017.json": ("json", JSON)}
            if name in peers:
                peer, code = peers[name]
                seconds, mebibytes, result = measured(folder / name, code)
                agrees = result == counts
                ratio = rows[0].value / seconds
                rows.append(single(subject, f"{peer}, processor time", seconds, "s", ratio=ratio, agrees=agrees))
                rows.append(single(subject, f"{peer}, most memory", mebibytes, "MiB", agrees=agrees))
            yield rows
        subject = f"{options.images:,} image files listed and found"
        yield rows_of(subject, folder / "whole" / "Images", LISTED, [options.images] * 2, options.rounds, LISTING)
        for subject, code, limit in (("load_dataset", WHOLE, LOADING), ("data check", CHECKED, CHECKING)):
            limit *= options.images / 100_000
            yield rows_of(f"{subject} of all that", folder / "whole", code, counts, options.rounds, limit)


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many images, and where files are made."""
    parser.add_argument("--images", type=int, default=118_000, help="number of images (default 118,000)")
    parser.add_argument("--folder", help="folder for the made files (default: the system's)")


if __name__ == "__main__":
    main(__doc__, subjects, add_options)
