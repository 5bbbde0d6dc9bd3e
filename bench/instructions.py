"""Instructions of the three hot paths, counted by valgrind: they hardly change with the machine's load.

    python bench/instructions.py [--json]

Tokens (CLIP, every word in the cache), JPEG file to normalised 224 by 224 pixels, and RunningMoments over float32,
each through a program of rust/examples, on one thread. A program is counted with few rounds and with more, and the
difference is what the rounds in between took: starting, reading and warming up are not in it. Captions and images are
the built-in sample's, made from a seed (the JPEG files depend on Pillow's version a little). Counts are of AVX2 code:
valgrind shows programs a processor without AVX-512. They compare two states of this code, not two machines.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import Row, main, single
from varalign.data.sample import sample_scenes, write_sample

ROOT = Path(__file__).parents[1]
IMAGES, CAPTIONS, ELEMENTS = 24, 10_000, 1 << 20
COUNTED = re.compile(r"I\s+refs:\s+([\d,]+)")


def needed(tool: str, hint: str) -> str:
    """A tool's path, or the end of the script with what to do."""
    found = shutil.which(tool)
    if found is None:
        raise SystemExit(f"{tool} is not on the path; {hint}")
    return found


def build() -> Path:
    """Compile the examples, and return the folder they are in."""
    cargo = needed("cargo", "install Rust (https://rustup.rs)")
    subprocess.run([cargo, "build", "--release", "--examples", "--quiet"], cwd=ROOT, check=True)
    return ROOT / "target" / "release" / "examples"


def instructions(command: Sequence[str]) -> int:
    """How many instructions a program executes."""
    valgrind = needed("valgrind", "install it (apt-get install valgrind)")
    options = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    done = subprocess.run([valgrind, *options, *command], capture_output=True, text=True, check=False)
    found = COUNTED.search(done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{' '.join(command)} under valgrind ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def per_round(command: Sequence[str], first: int, last: int) -> float:
    """Instructions of one round: the difference of two runs."""
    counts = [instructions([*command, str(rounds)]) for rounds in (first, last)]
    return (counts[1] - counts[0]) / (last - first)


def clip_merges(folder: Path) -> Path | None:
    """open_clip's vocabulary file, unpacked; None where open_clip is not installed."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        return None
    packed = Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = folder / "merges.txt"
    merges.write_bytes(gzip.decompress(packed.read_bytes()))
    return merges


def subjects(options: argparse.Namespace) -> Iterable[Sequence[Row]]:
    examples = build()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captions = [caption for _, _, some in sample_scenes(CAPTIONS // 5, 0) for caption in some]
        (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="ascii")
        if (merges := clip_merges(folder)) is not None:
            command = [str(examples / "counts"), "tokens", str(merges), str(folder / "captions.txt")]
            count = per_round(command, 1, 3) / len(captions)
            yield [single("CLIP ids of a caption", "varalign", count, "instructions", note=f"{CAPTIONS:,} captions")]
        write_sample(folder / "sample", images=IMAGES, size=512)
        for mode, subject in (
            ("decode", "JPEG of 512 by 512 decoded"),
            ("load", "the same file to 224 by 224 float32"),
        ):
            command = [str(examples / "images"), mode, str(folder / "sample" / "Images")]
            count = per_round(command, 1, 3) / IMAGES
            yield [single(subject, "varalign", count, "instructions", note=f"{IMAGES} images", packages=["pillow"])]
        command = [str(examples / "counts"), "moments", str(ELEMENTS)]
        count = per_round(command, 1, 5) / ELEMENTS
        yield [single("RunningMoments, a float32", "varalign", count, "instructions", note=f"{ELEMENTS:,} values")]


if __name__ == "__main__":
    main(__doc__, subjects)
