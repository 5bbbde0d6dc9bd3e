"""What a data folder's images and captions are like, in numbers: `varalign data stats`. Needs NumPy alone.

Words are those of the built-in word tokenizer: lower-cased, cut at white space and punctuation, punctuation dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.errors import DataError
from varalign.data.images import Preprocess, load_images
from varalign.data.index import SPLITS
from varalign.data.moments import RunningMoments
from varalign.data.readers.reading import Reading
from varalign.data.shards.shard_members import shown_place
from varalign.data.tokens.tokenizers import Tokenizer, bert_tokenizer, clip_tokenizer, word_tokenizer

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
IMAGES_AT_A_TIME = 64
LONGEST = 512
CAPTIONS_AT_A_TIME = 1 << 12


@dataclass
class Summary:
    """What `summarise` found; every table of quantiles maps a share ("0.5": the median) to a value.

    pixels: `mean` and `std` of the red, green and blue channel on the scale 0 to 1, of `images` images, `unreadable`
    ones left out, cropped to `size`. image_sizes: quantiles of `width`, `height` and `short_side` in pixels.
    lengths: by unit ("words", "clip tokens", "bert tokens") quantiles, `mean`, and for tokens `limit` and `truncated`,
    the share of captions that are longer than it. vocabulary: number of different words of the training captions,
    `words_seen_once` of them, and for dev and test the share of running words and of captions that it covers whole.
    """

    folder: str
    images: int
    captions: int
    splits: dict[str, int]
    pixels: dict[str, Any] = field(default_factory=dict)
    image_sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    lengths: dict[str, dict[str, Any]] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """All of it for people."""
        lines = [f"{self.folder}: {self.images:,} images, {self.captions:,} captions"]
        if self.pixels:
            channels = (" ".join(f"{value:.4f}" for value in self.pixels[key]) for key in ("mean", "std"))
            lines.append(
                "pixels, red green blue: mean {} deviation {}".format(*channels)
                + f" ({self.pixels['images']:,} images at {self.pixels['size']} pixels,"
                + f" {self.pixels['unreadable']:,} unreadable)"
            )
        columns = [f"{share:.0%}" for share in SHARES]
        lines.append(f"{'quantiles':14}" + "".join(f"{column:>8}" for column in columns) + f"{'mean':>9}")
        for name, table in {**self.image_sizes, **self.lengths}.items():
            values = "".join(f"{table['quantiles'][str(share)]:8.0f}" for share in SHARES)
            cut = f"  {table['truncated']:.2%} longer than {table['limit']}" if "limit" in table else ""
            lines.append(f"{name.replace('_', ' '):14}{values}{table['mean']:9.1f}{cut}")
        if self.vocabulary:
            lines.append(
                f"words in the training captions: {self.vocabulary['words']:,}, "
                f"{self.vocabulary['words_seen_once']:,} of them once"
            )
        for split, covered in self.vocabulary.get("coverage", {}).items():
            lines.append(
                f"{split}: training knows {covered['words']:.2%} of the words, all words of {covered['captions']:.2%} "
                "of the captions"
            )
        return lines + [f"note: {note}" for note in self.notes]


def summarise(
    folder: Path | str,
    *,
    images: int = 0,
    size: int = 224,
    bert: Path | str | None = None,
    clip_length: int = 77,
    bert_length: int = 64,
    seed: int = 0,
    threads: int = 0,
    skip_missing: bool = False,
    reading: Reading = Reading(),
) -> Summary:
    """Measure a data folder.

    images: how many training images are read, drawn by `seed`; 0 for all. size: side of the square that pixels are
    taken from. bert: the folder of a BERT model, for lengths in its tokens; CLIP's need open_clip installed.
    clip_length, bert_length: what captions are cut to. threads: 0 means every core. reading: as for `load_dataset`.
    Raises DataError for what the user can mend, as `load_dataset` does.
    """
    if images < 0 or not 1 <= size <= 8192 or min(clip_length, bert_length) < 2 or threads < 0:
        raise DataError(
            f"--images {images}, --size {size}, --threads {threads}: wanted 0 or more images, a size of 1 to 8192 "
            "and 0 or more threads"
        )
    dataset = load_dataset(folder, seed=seed, skip_missing=skip_missing, reading=reading)
    splits = {name: int((dataset.split == code).sum()) for name, code in SPLITS.items()}
    counts = (len(dataset.image_names), len(dataset.captions))
    summary = Summary(shown_place(folder), *counts, splits, notes=list(dataset.notes))
    _measure_images(summary, dataset, images, size, seed, threads)
    training = [dataset.captions[row] for row in dataset.caption_rows(dataset.rows("train"))]
    _measure_lengths(summary, dataset.captions, bert, clip_length, bert_length, threads)
    _measure_vocabulary(summary, dataset, training, threads)
    return summary


def _measure_images(summary: Summary, dataset: ImageCaptions, wanted: int, size: int, seed: int, threads: int) -> None:
    rows = dataset.rows("train")
    if wanted and wanted < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, wanted, replace=False))
    pixels = RunningMoments(3)
    sizes = np.zeros((len(rows), 2), np.int64)
    plain = Preprocess(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for start in range(0, len(rows), IMAGES_AT_A_TIME):
        part = slice(start, start + IMAGES_AT_A_TIME)
        paths = [dataset.image_paths[row] for row in rows[part]]
        levels, _ = load_images(paths, plain, threads=threads, dtype="uint8", sizes=sizes[part])
        pixels.update(levels[sizes[part, 0] > 0].transpose(0, 2, 3, 1), threads=threads)
    found = sizes[sizes[:, 0] > 0]
    if not len(found):
        raise DataError(
            f"{dataset.folder}: none of {len(rows):,} training images can be read; try `varalign data check`"
        )
    summary.pixels = {
        "mean": (pixels.mean / 255).tolist(),
        "std": (pixels.std() / 255).tolist(),
        "size": size,
        "images": len(found),
        "unreadable": len(rows) - len(found),
    }
    widths, heights = found.T
    for name, values in (("width", widths), ("height", heights), ("short_side", np.minimum(widths, heights))):
        summary.image_sizes[name] = _distribution(values)


def _distribution(values: NDArray[np.int64]) -> dict[str, Any]:
    """Quantiles (NumPy's default: a line between the two values next to a share) and mean of whole numbers."""
    quantiles = dict(zip(map(str, SHARES), np.quantile(values, SHARES).tolist(), strict=True))
    return {"quantiles": quantiles, "mean": float(values.mean())}


def _measure_lengths(
    summary: Summary,
    captions: Sequence[str],
    bert: Path | str | None,
    clip_length: int,
    bert_length: int,
    threads: int,
) -> None:
    words = _token_counts(word_tokenizer([], max_length=LONGEST), captions, threads) - 2
    summary.lengths["words"] = _distribution(words)
    makers: list[tuple[str, int, Any]] = [
        ("clip tokens", clip_length, lambda: clip_tokenizer(max(LONGEST, clip_length)))
    ]
    if bert is not None:
        makers.append(("bert tokens", bert_length, lambda: bert_tokenizer(Path(bert), max(LONGEST, bert_length))))
    else:
        summary.notes.append("no lengths in BERT's tokens: --bert FOLDER names a BERT model")
    for name, limit, make in makers:
        try:
            tokenizer: Tokenizer = make()
        except FileNotFoundError as error:
            if name == "bert tokens":
                raise DataError(f"--bert {error}") from None
            summary.notes.append(f"no lengths in CLIP's tokens: {error}")
            continue
        except ValueError as error:
            raise DataError(f"--bert {error}") from None
        lengths = _token_counts(tokenizer, captions, threads)
        truncated = float((lengths > limit).mean())
        summary.lengths[name] = {**_distribution(lengths), "limit": limit, "truncated": truncated}


def _token_counts(tokenizer: Tokenizer, captions: Sequence[str], threads: int) -> NDArray[np.int64]:
    """(T,) lengths; the ids, up to 512 a caption, lie in memory for some captions at a time."""
    counted = [tokenizer(part, threads=threads).lengths for part in _parts(captions)]
    return np.concatenate(counted)


def _parts(captions: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, max(len(captions), 1), CAPTIONS_AT_A_TIME):
        yield captions[start : start + CAPTIONS_AT_A_TIME]


def _measure_vocabulary(summary: Summary, dataset: ImageCaptions, training: Sequence[str], threads: int) -> None:
    whole = word_tokenizer(training, max_length=LONGEST, max_words=1 << 31)
    twice = word_tokenizer(training, max_length=LONGEST, max_words=1 << 31, min_count=2)
    marks = len({whole.start_id, whole.end_id, whole.pad_id}) + 1  # and the unknown word, id 1
    coverage = {}
    for split in ("dev", "test"):
        captions = [dataset.captions[row] for row in dataset.caption_rows(dataset.rows(split))]
        if not captions:
            continue
        words = unknown_words = known_captions = 0
        for part in _parts(captions):
            tokens = whole(part, threads=threads)
            unknown = (tokens.ids == 1) & tokens.mask()
            words += int(tokens.lengths.sum()) - 2 * len(part)
            unknown_words += int(unknown.sum())
            known_captions += int((~unknown.any(axis=1)).sum())
        coverage[split] = {"words": 1 - unknown_words / max(words, 1), "captions": known_captions / len(captions)}
    summary.vocabulary = {
        "words": whole.vocabulary_size - marks,
        "words_seen_once": whole.vocabulary_size - twice.vocabulary_size,
        "coverage": coverage,
    }
