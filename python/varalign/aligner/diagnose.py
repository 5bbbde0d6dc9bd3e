"""`varalign diagnose`: what share of the pairs is wrong, which ones, and what would fit them better."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.canonical.best import best_captions
from varalign.canonical.mixture import bin_centres
from varalign.canonical.pair_scores import PairScores, pair_scores
from varalign.data.damage import damaged
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.errors import DataError, first_three
from varalign.data.features import FeatureSet, load_features
from varalign.data.files import write_atomically
from varalign.data.noise import Noise, noisy_pairs, parse_noise
from varalign.encoders.specs import parse_image_spec, parse_text_spec
from varalign.encoders.towers import Towers
from varalign.evaluation.cartography import KINDS, Cartography, cartography
from varalign.evaluation.pair_moments import PairMoments
from varalign.inputs.assemble import open_sources
from varalign.inputs.models import new_towers, saved_model
from varalign.inputs.open_data import Data, open_data
from varalign.inputs.sources import FeatureRows
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device
from varalign.pictures.diagnosis_page import Suspect, draw_cartography, draw_scores, write_diagnosis_page
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunError, RunFolder, to_stderr

By = Literal["auto", "image", "pair"]
Say = Callable[[str], None]
Bools = NDArray[np.bool_]
COLUMNS = (
    "image",
    "caption_row",
    "caption",
    "score",
    "image_score",
    "probability_right",
    "epochs_mean",
    "epochs_variance",
    "epochs_kind",
    "injected",
)


UNKNOWN = 0.5  # width of the interval from which a share is none


@dataclass
class Subject:
    """What is diagnosed.

    Attributes:
        name: for the page's title.
        data: the pairs as they are given, noise on purpose included.
        rows: (n,) image rows asked for.
        x, y: (I, dx), (T, dy) features; None where there are none before training.
        shown: images and captions to show, if known; rows are those of `data`.
        wrong: (T,) True where noise made the pair wrong; None without noise.
        moments: what a run saw of each pair.
    """

    name: str
    data: Data
    rows: NDArray[np.int64]
    x: torch.Tensor | None
    y: torch.Tensor | None
    shown: ImageCaptions | None
    wrong: Bools | None
    moments: PairMoments | None = None

    def image_name(self, row: int) -> str:
        """The image's name, or its row where names are not known."""
        names = self.data.image_names
        return str(row) if names is None else names[row]


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        wrong_share, low, high: estimated share of wrong pairs and its 95 % interval.
        pairs, images: how many were judged.
        method: "closed-form" (from features, before training) or "moments" (from a run's epochs).
        by: "image" where captions of an image are wrong together, else "pair".
        csv, page: the files written.
        average_precision: of the ranking against noise injected on purpose: keys `pair` and `image`, else empty.
        kinds: pairs by kind over the epochs of a run, else empty.
        seconds: wall time.
    """

    wrong_share: float
    low: float
    high: float
    pairs: int
    images: int
    method: str
    by: str
    csv: Path
    page: Path
    average_precision: dict[str, float]
    kinds: dict[str, int]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON takes it."""
        values = dict(vars(self)) | {"csv": str(self.csv), "page": str(self.page)}
        precision = values.pop("average_precision")
        return values | {f"average_precision_{name}": value for name, value in precision.items()}

    def lines(self) -> list[str]:
        """The result in sentences."""
        judged = "captions of an image are wrong together" if self.by == "image" else "caption by caption"
        found = [
            f"{self.pairs:,} pairs of {self.images:,} images: {100 * self.wrong_share:.1f} % wrong "
            f"(95 % interval {100 * self.low:.1f} to {100 * self.high:.1f}; {self.method}, {judged})"
        ]
        if self.high - self.low > UNKNOWN:
            found.append("these features hardly tell right pairs from wrong ones: the share is not known")
        if self.kinds:
            kinds = ", ".join(f"{n:,} {name}" for name, n in self.kinds.items())
            unseen = self.pairs - sum(self.kinds.values())
            found.append(f"over the epochs: {kinds}" + (f", {unseen:,} never seen" if unseen > 0 else ""))
        if self.average_precision:
            each = ", ".join(f"{value:.3f} by {name}" for name, value in self.average_precision.items())
            found.append(f"average precision against the injected noise: {each}")
        return found


def diagnose(
    *,
    run: Path | None = None,
    features: Path | None = None,
    data: Path | None = None,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    split: str = "train",
    by: By = "auto",
    dataset_size: int | None = None,
    noise: str | None = None,
    worst: int = 50,
    seed: int = 0,
    out: Path | None = None,
    skip_missing: bool = False,
    device: str | None = None,
    threads: int = 0,
    cache: str | None = None,
    say: Say = to_stderr,
) -> Diagnosis:
    """Estimate the share of wrong pairs, list all with scores, and write a page of the worst.

    Args:
        run: a run folder: its data, noise included, and what its epochs say of each pair.
        features: a features file; with `data` too, that folder's pictures and captions are shown.
        data: a data folder, whose features pretrained encoders make (cached on disk).
        image_encoder, text_encoder: specs of those encoders; CLIP ViT-B/32 and BERT if None.
        split: "train", "dev", "test", or "all": every image that has a caption.
        by: whether captions of an image are judged together; "auto" finds out.
        dataset_size: that many training images, as in training.
        noise: wrong pairs injected on purpose (swap-images, swap-captions), to see whether they are found.
        worst: pairs on the page.
        seed: of folds, bootstrap, splits and noise.
        out: folder of `pairs.csv` and `diagnosis.html`; `RUN/diagnosis`, or `diagnosis`, if None.
        skip_missing, device, threads, cache: as in training.
        say: called with remarks.

    Raises:
        DataError: options or data that no diagnosis can be made of.
        WeightsUnavailable: pretrained weights are neither here nor in reach.
    """
    started = time.perf_counter()
    if out is not None and out.exists() and not out.is_dir():
        raise DataError(f"--out {out}: is a file; name a folder")
    if worst < 0:
        raise DataError(f"--worst is {worst}, but must be at least 0")
    places = {"device": device, "threads": threads, "cache": cache}
    options = {"dataset_size": dataset_size, "seed": seed, "noise": noise, **places}
    if run is not None:
        if features or image_encoder or text_encoder or noise or dataset_size or data:
            raise DataError(
                "a RUN is diagnosed on its own data, noise and encoders: leave out --data, --features, --noise, "
                "--dataset-size and the encoders"
            )
        subject = _of_run(RunFolder.open(run), places, say)
        out = run / "diagnosis" if out is None else out
    elif features is not None:
        if image_encoder or text_encoder:
            raise DataError("--features holds the encoders' output already: leave out the encoders")
        config = TrainConfig(features=str(features), **options).validate()  # type: ignore[arg-type]
        subject = _of_features(config, data, skip_missing, say)
    elif data is not None:
        config = TrainConfig(
            data=str(data),
            use_pretrained=True,
            image_encoder=image_encoder,
            text_encoder=text_encoder,
            freeze="both",
            augment=False,
            skip_missing=skip_missing,
            **options,  # type: ignore[arg-type]
        ).validate()
        subject = _of_folder(config, say)
    else:
        raise DataError("name what to diagnose: RUN, --features FILE or --data DIR")
    subject.rows = _rows(subject.data, split)
    found = _scores(subject, by, seed, device, say)
    kinds = _cartography(subject, seed)
    if found is None and kinds is None and subject.moments is not None:
        raise DataError(f"{subject.name}: training saw no pair of this split; --split train has those it saw")
    if found is None and kinds is None:
        raise DataError(
            f"{subject.name}: its encoders were trained from random weights, so there are no features to judge pairs "
            "by, and no checkpoint with statistics of the pairs: train at least an epoch, or pass --features FILE"
        )
    out = Path("diagnosis") if out is None else out
    return _written(subject, found, kinds, out, worst, seed, started)


def _rows(data: Data, split: str) -> NDArray[np.int64]:
    with_captions = np.diff(data.caption_offsets) > 0
    rows = np.arange(len(data.split), dtype=np.int64) if split == "all" else data.rows(split)
    rows = rows[with_captions[rows]]
    if not len(rows):
        raise DataError(f"the {split} split has no image with a caption; --split all takes every image")
    return rows


def _parsed(config: TrainConfig) -> Noise:
    noise = parse_noise(config.noise)
    if noise.words or noise.pixels:
        raise DataError(
            f"--noise {noise}: wrong pairs are what is looked for, so only swap-images and swap-captions work"
        )
    return noise


def _wrong(data: Data, noise: Noise, seed: int) -> Bools | None:
    """(T,) which captions `damaged` gives to other images; None without such noise."""
    return noisy_pairs(data.caption_owner, data.rows("train"), noise, seed)[1] if noise.pairs else None


def _of_features(config: TrainConfig, folder: Path | None, skip_missing: bool, say: Say) -> Subject:
    noise = _parsed(config)
    data = load_features(Path(str(config.features)))
    for note in data.notes:
        say(note)
    shown = None
    if folder is not None:
        shown = matched(data, load_dataset(folder, seed=config.seed, skip_missing=skip_missing), folder)
    data = data.limited(config.dataset_size, config.seed)
    noisy, wrong = damaged(data, noise, "train", config.seed), _wrong(data, noise, config.seed)
    assert isinstance(noisy, FeatureSet)
    x, y = torch.from_numpy(noisy.image_features), torch.from_numpy(noisy.text_features)
    return Subject(Path(str(config.features)).name, noisy, noisy.rows("train"), x, y, shown, wrong)


def matched(features: FeatureSet, folder: ImageCaptions, place: Path) -> ImageCaptions:
    """The folder's images and captions in the order of a features file.

    Images are matched by name, or by row where the file brings no names; captions of an image by their order.

    Raises:
        DataError: an image is missing, or has another number of captions.
    """
    names = folder.image_names if features.image_names is None else features.image_names
    row_of = {name: row for row, name in enumerate(folder.image_names)}
    absent = [name for name in names if name not in row_of]
    if absent or len(names) != len(features.split):
        what = (
            f"{len(absent):,} of its images are not there: {first_three(absent)}"
            if absent
            else f"{len(features.split):,} images, the folder has {len(names):,}, and no file of names says which"
        )
        raise DataError(f"--data {place} is not what the features file was made of: {what}")
    rows = np.array([row_of[name] for name in names], np.int64)
    counts = np.diff(features.caption_offsets)
    theirs = np.diff(folder.caption_offsets)[rows]
    if (counts != theirs).any():
        row = int(np.flatnonzero(counts != theirs)[0])
        raise DataError(
            f"--data {place} is not what the features file was made of: {names[row]} has {theirs[row]} captions there "
            f"and {counts[row]} in the file; {int((counts != theirs).sum()):,} images differ"
        )
    captions = [""] * len(features.caption_owner)
    for mine, other in zip(features.captions_by_image.tolist(), folder.caption_rows(rows).tolist(), strict=True):
        captions[mine] = folder.captions[other]
    return replace(
        folder,
        image_names=list(names),
        image_paths=[folder.image_paths[row] for row in rows.tolist()],
        captions=captions,
        caption_image_ids=features.caption_owner,
        split=features.split,
        image_ids=features.image_ids,
        image_bytes=folder.image_bytes[rows],
    )


def _of_folder(config: TrainConfig, say: Say) -> Subject:
    noise = _parsed(config)
    for option, spec in (("image", parse_image_spec(config.image_spec)), ("text", parse_text_spec(config.text_spec))):
        if not spec.has_source:
            raise DataError(
                f"--{option}-encoder {spec}: random weights say nothing of the pairs; name a pretrained encoder, train "
                "first and diagnose the RUN, or pass --features FILE"
            )
    data = load_dataset(
        Path(str(config.data)), seed=config.seed, skip_missing=config.skip_missing, dataset_size=config.dataset_size
    )
    for note in data.notes:
        say(note)
    noisy, wrong = damaged(data, noise, "train", config.seed), _wrong(data, noise, config.seed)
    towers = new_towers(config, noisy)
    subject = Subject(Path(str(config.data)).resolve().name, noisy, noisy.rows("train"), None, None, data, wrong)
    assert isinstance(noisy, ImageCaptions)
    subject.x, subject.y = _tower_features(replace(config, noise=None), noisy, towers, say)
    return subject


def _tower_features(config: TrainConfig, data: Data, towers: Towers, say: Say) -> tuple[torch.Tensor, torch.Tensor]:
    device = pick_device(config.device)
    parts = open_sources(config, data, towers.to(device), device, say)
    assert isinstance(parts.images, FeatureRows) and isinstance(parts.texts, FeatureRows)
    bad = sorted(parts.images.unreadable)
    if bad:
        raise DataError(f"{len(bad):,} images cannot be read; `varalign data check {config.data}` names them")
    return parts.images.matrix.cpu(), parts.texts.matrix.cpu()


def _of_run(run: RunFolder, places: dict[str, Any], say: Say) -> Subject:
    options = run.options() | places | {"cache": places["cache"] or run.options().get("cache")}
    config = TrainConfig(**options).validate()
    noise = parse_noise(config.noise)
    clean = replace(config, noise=None)
    _, data = open_data(clean, say)
    noisy, wrong = damaged(data, noise, "train", config.seed), _wrong(data, noise, config.seed)
    subject = Subject(run.path.resolve().name, noisy, noisy.rows("train"), None, None, None, wrong)
    subject.shown = noisy if isinstance(noisy, ImageCaptions) else None
    try:
        state = load_checkpoint(run.checkpoints / "last").part("pairs")
        moments = PairMoments.from_state({name: tensor.numpy() for name, tensor in state.items()})
    except (KeyError, ValueError) as error:
        raise RunError(f"{run.path}: its checkpoint has no statistics of the pairs: {error}") from None
    if moments.n != len(noisy.caption_owner):
        raise RunError(f"{run.path}: statistics of {moments.n:,} pairs, but its data have {len(noisy.caption_owner):,}")
    subject.moments = moments if (moments.count > 0).any() else None
    if isinstance(noisy, FeatureSet):
        subject.x, subject.y = torch.from_numpy(noisy.image_features), torch.from_numpy(noisy.text_features)
        return subject
    model = saved_model(run)
    if model.fully_frozen("image") and model.fully_frozen("text"):
        subject.x, subject.y = _tower_features(replace(clean, augment=False), noisy, model, say)
    return subject


def _scores(subject: Subject, by: By, seed: int, device: str | None, say: Say) -> PairScores | None:
    if subject.x is None or subject.y is None:
        return None
    captions = torch.from_numpy(subject.data.caption_rows(subject.rows))
    for side, matrix in (("image", subject.x[torch.from_numpy(subject.rows)]), ("text", subject.y[captions])):
        if bool((matrix.amax(0) - matrix.amin(0) <= 1e-6 * matrix.abs().amax(0)).all()):
            raise DataError(
                f"{subject.name}: every {side} has the same features, so that no pair can be judged by them: see what "
                "the encoder gave"
            )
    try:
        return pair_scores(
            subject.x,
            subject.y,
            torch.from_numpy(subject.data.caption_owner),
            torch.from_numpy(subject.rows),
            image_ids=torch.from_numpy(subject.data.image_ids),
            by=by,
            seed=seed,
            device=pick_device(device),
        )
    except ValueError as error:
        raise DataError(f"{subject.name}: {error}") from None


def _cartography(subject: Subject, seed: int) -> Cartography | None:
    if subject.moments is None:
        return None
    owner = subject.data.caption_owner
    mean = np.where(np.isin(owner, subject.rows), subject.moments.probability_mean, np.nan)
    if not np.isfinite(mean).any():
        return None  # training saw no pair of this split
    return cartography(mean, subject.moments.probability_variance, owner, seed=seed)


def _written(
    subject: Subject,
    found: PairScores | None,
    kinds: Cartography | None,
    out: Path,
    worst: int,
    seed: int,
    started: float,
) -> Diagnosis:
    owner = subject.data.caption_owner
    judged = found.probability_right.isfinite().numpy() if found is not None else None
    if found is not None and judged is not None:
        score = found.scores.numpy()
        # Where captions come by the image, the image's own score ranks, and the caption's breaks ties within it.
        rank = found.image_scores.numpy()[owner] + 1e-6 * score if found.by == "image" else score
        share, low, high, method, by = found.wrong_share, found.low, found.high, "closed-form", found.by
    else:
        assert kinds is not None and subject.moments is not None
        judged, score = kinds.kind >= 0, subject.moments.probability_mean
        judged &= np.isin(owner, subject.rows)
        rank = score
        share, low, high, method, by = kinds.wrong_share, kinds.low, kinds.high, "moments", "pair"
    rows = np.flatnonzero(judged)
    order = rows[np.argsort(rank[rows], kind="stable")]
    precision = {}
    if subject.wrong is not None and 0 < subject.wrong[rows].sum() < len(rows):
        precision = average_precisions(subject.wrong[rows], rank[rows], owner[rows])
    diagnosis = Diagnosis(
        wrong_share=share,
        low=low,
        high=high,
        pairs=len(rows),
        images=len(np.unique(owner[rows])),
        method=method,
        by=by,
        csv=out / "pairs.csv",
        page=out / "diagnosis.html",
        average_precision=precision,
        kinds=kinds.counts() if kinds is not None else {},
        seconds=0.0,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(diagnosis.csv, _table(subject, found, kinds, order).encode("utf-8", "surrogateescape"))
    pictures = _pictures(subject, found, kinds, by)
    suspects = _suspects(subject, found, order, rank, by, worst, seed)
    write_diagnosis_page(diagnosis.page, subject.name, diagnosis.lines(), pictures, suspects)
    return replace(diagnosis, seconds=round(time.perf_counter() - started, 2))


def average_precisions(wrong: Bools, rank: NDArray[np.float64], owner: NDArray[np.int64]) -> dict[str, float]:
    """Average precision of a ranking against the truth, by pair and by image.

    Args:
        wrong: (n,) the truth. rank: (n,) lowest is the most suspicious. owner: (n,) the image of each.

    Returns:
        `pair`; and `image`, where an image's rank is the mean of its captions' and it is wrong if all of them are
        (left out where no image is wholly wrong, or one is wrong in part).
    """
    from sklearn.metrics import average_precision_score

    found = {"pair": float(average_precision_score(wrong, -rank))}
    _, place = np.unique(owner, return_inverse=True)
    counts = np.bincount(place)
    bad = np.bincount(place, weights=wrong) / counts
    if set(bad.tolist()) == {0.0, 1.0}:
        means = np.bincount(place, weights=rank) / counts
        found["image"] = float(average_precision_score(bad == 1.0, -means))
    return found


def _table(subject: Subject, found: PairScores | None, kinds: Cartography | None, order: NDArray[np.int64]) -> str:
    """The pairs as CSV, worst first."""
    owner, moments = subject.data.caption_owner, subject.moments
    captions = None if subject.shown is None else subject.shown.captions
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    if found is not None:
        score, image_score, right = found.scores.numpy(), found.image_scores.numpy(), found.probability_right.numpy()
    if moments is not None:
        mean, variance = moments.probability_mean, moments.probability_variance
    for row in order.tolist():
        line: list[Any] = [subject.image_name(int(owner[row])), row, "" if captions is None else captions[row]]
        if found is not None:
            line += [f"{score[row]:.4f}", f"{image_score[owner[row]]:.4f}", f"{right[row]:.4f}"]
        else:
            line += ["", "", "" if kinds is None else f"{1 - kinds.probability_wrong[row]:.4f}"]
        if moments is not None and kinds is not None and kinds.kind[row] >= 0:
            line += [f"{mean[row]:.5f}", f"{variance[row]:.6f}", KINDS[kinds.kind[row]]]
        else:
            line += ["", "", ""]
        line.append("" if subject.wrong is None else int(subject.wrong[row]))
        writer.writerow(line)
    return text.getvalue()


def _pictures(
    subject: Subject, found: PairScores | None, kinds: Cartography | None, by: str
) -> list[tuple[str, bytes]]:
    pictures = []
    if found is not None:
        values = found.image_scores if by == "image" else found.scores
        mixture, places = found.mixture, bin_centres().numpy()
        away = (places - mixture.mean) / mixture.deviation
        right = np.exp(-(away**2) / 2) / (mixture.deviation * np.sqrt(2 * np.pi))
        png = draw_scores(
            values[values.isfinite()].numpy(),
            found.wrong_share,
            (places, right),
            (places, mixture.wrong_density.numpy()),
        )
        pictures.append((f"scores, one {by} each, and the two fitted kinds", png))
    if kinds is not None and subject.moments is not None:
        moments = subject.moments
        png = draw_cartography(moments.probability_mean, moments.probability_variance, KINDS, kinds.kind)
        pictures.append(("pairs by mean and deviation of their probability over the epochs", png))
    return pictures


def _suspects(
    subject: Subject,
    found: PairScores | None,
    order: NDArray[np.int64],
    rank: NDArray[np.float64],
    by: str,
    worst: int,
    seed: int,
) -> list[Suspect]:
    """The worst pairs; where captions come by the image, one of each image."""
    owner = subject.data.caption_owner
    if by == "image":
        order = order[np.sort(np.unique(owner[order], return_index=True)[1])]
    order = order[:worst]
    if not len(order):
        return []
    better, fits = None, None
    if found is not None and subject.x is not None and subject.y is not None:
        ids = torch.from_numpy(owner)
        better, fits = best_captions(subject.x, subject.y, ids, found, ids[torch.from_numpy(order)], seed=seed)
    shown = subject.shown

    def caption(row: int) -> str:
        return f"caption row {row}" if shown is None else shown.captions[row]

    suspects = []
    for place, row in enumerate(order.tolist()):
        image = int(owner[row])
        suspects.append(
            Suspect(
                image=subject.image_name(image) if shown is None else shown.image_paths[image],
                caption=caption(row),
                score=f"score {rank[row]:.2f}" if found is not None else f"mean probability {rank[row]:.3f}",
                better=None if better is None else caption(int(better[place])),
                better_score=None if fits is None else f"score {float(fits[place]):.2f}",
                known_wrong=None if subject.wrong is None else bool(subject.wrong[row]),
            )
        )
    return suspects
