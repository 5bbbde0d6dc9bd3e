"""Looks at captions one by one: which say too little, which stand at several images and in several splits."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from varalign.data.datasets import ImageCaptions
from varalign.data.errors import shown
from varalign.data.index import SPLITS
from varalign.data.same_captions import normalised
from varalign.data.tokens.tokenizers import word_tokenizer

SPLIT_PAIRS = tuple(itertools.combinations(SPLITS, 2))
_BROKEN = ("broken image", "image not found", "no caption", "n/a", "todo", "null", "none", "nan")
_MAY_BE_BROKEN = re.compile("broken|found|caption|n/a|todo|null|none|nan|http")
"""What stands in each caption that `_suspicion` doubts for its words; most captions hold none of it."""
_UNCUT = re.compile(r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]")
"""Letters of scripts without spaces between words that the word tokenizer does not cut: Thai, Lao, Tibetan, Burmese,
Khmer. It cuts Chinese and Japanese letter by letter."""
_UNCUT_RUN = re.compile(_UNCUT.pattern + "{8,}")


@dataclass
class CaptionReport:
    """What `check_captions` found.

    suspicious: "name: 'caption': why". repeated: normalised captions at more than one image, with the number of images.
    across: "train and test" and the like to the number of different captions that are in both. uncut: name of a script
    to the number of captions of which the word tokenizer makes one word or few.
    """

    suspicious: list[str] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)
    across: dict[str, int] = field(default_factory=dict)
    uncut: dict[str, int] = field(default_factory=dict)


def check_captions(dataset: ImageCaptions) -> CaptionReport:
    """Look at every caption of a data set. Words are counted as the word tokenizer cuts them."""
    report = CaptionReport()
    words = word_tokenizer([], max_length=8)(dataset.captions).lengths - 2
    uncut: Counter[str] = Counter()
    for caption, row, count in zip(dataset.captions, dataset.caption_image_ids.tolist(), words.tolist(), strict=True):
        if why := _suspicion(caption, count):
            report.suspicious.append(f"{shown(dataset.image_names[row])}: {shown(caption)}: {why}")
        if not caption.isascii() and (run := _UNCUT_RUN.search(caption)):
            uncut[unicodedata.name(run[0][0]).split()[0].capitalize()] += 1
    texts, owner = dataset.equal_captions, dataset.caption_image_ids
    first, images = np.unique(np.unique(np.stack([texts, dataset.image_ids[owner]]), axis=1)[0], return_counts=True)
    several = zip(first[images > 1].tolist(), images[images > 1].tolist(), strict=True)
    repeated = Counter({normalised(dataset.captions[row]): count for row, count in several})
    report.repeated, report.uncut = dict(repeated.most_common()), dict(uncut.most_common())
    stands_in = {name: set(texts[dataset.split[owner] == code].tolist()) for name, code in SPLITS.items()}
    for a, b in SPLIT_PAIRS:
        if count := len(stands_in[a] & stands_in[b]):
            report.across[f"{a} and {b}"] = count
    return report


def _suspicion(caption: str, words: int) -> str:
    """Why a caption says too little to learn from, or nothing."""
    if words >= 2 and caption.isprintable() and not _MAY_BE_BROKEN.search(caption.lower()):
        return ""
    text = " ".join(word for word in caption.lower().split() if any(letter.isalnum() for letter in word))
    if any(text == mark or (" " in mark and mark in text) for mark in _BROKEN):
        return "says that something went wrong"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in caption.replace("\t", " ")):
        return "holds control characters"
    if "http://" in text or "https://" in text:
        return "holds a web address"
    return "a word or less" if words + len(_UNCUT.findall(text)) // 2 < 2 else ""
