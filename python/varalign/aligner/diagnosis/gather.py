"""Gathers the input of a diagnosis: the pairs, their features if frozen towers exist, and a run's pair statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from varalign.data.damage import damaged
from varalign.data.datasets import ImageCaptions, load_dataset
from varalign.data.errors import DataError
from varalign.data.exclusions import excluded_rows, without_excluded
from varalign.data.features import FeatureSet, load_features
from varalign.data.matched import matched
from varalign.data.noise import Noise, noisy_pairs, parse_noise
from varalign.data.readers.reading import READING, Reading
from varalign.encoders.specs import parse_image_spec, parse_text_spec
from varalign.encoders.towers import Towers
from varalign.evaluation.pair_moments import PairMoments
from varalign.inputs.assemble import open_sources
from varalign.inputs.models import new_towers, saved_model
from varalign.inputs.open_data import Data, open_data
from varalign.inputs.sources import FeatureRows
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device
from varalign.options.recipe import fill
from varalign.runs.checkpoint import PAIRS, load_checkpoint
from varalign.runs.folder import RunFolder
from varalign.runs.run_errors import RunError

Say = Callable[[str], None]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Settings(Reading):
    """The settings of a diagnosis. One of `run`, `features` and `data` names what to diagnose.

    Attributes:
        run: a run folder: its data with its noise, and its statistics of each pair over the epochs.
        features: a features file; if `data` is given too, the page shows that folder's images and captions.
        data: a data folder; pretrained encoders compute its features, which are cached on disk.
        image_encoder, text_encoder: specs of those encoders; CLIP ViT-B/32 and BERT if None.
        split: "train", "dev", "test", or "all": every image that has a caption.
        by: whether the captions of an image are judged together; "auto" estimates it.
        dataset_size: number of training images, as in training.
        noise: wrong pairs to inject (swap-images, swap-captions), to measure how well they are found.
        worst: number of pairs on the page.
        seed: of folds, bootstrap, splits and noise.
        out: folder of `pairs.csv` and `diagnosis.html`; if None `RUN/diagnosis`, or `diagnosis` without a run.
        overwrite: write into `out` whatever it holds.
        those of `Reading`: how `data` is read, as in training.
        skip_missing, device, threads, cache: as in training.
    """

    run: Path | None = None
    features: Path | None = None
    data: Path | None = None
    image_encoder: str | None = None
    text_encoder: str | None = None
    split: str = "train"
    by: Literal["auto", "image", "pair"] = "auto"
    dataset_size: int | None = None
    noise: str | None = None
    worst: int = 50
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    skip_missing: bool = False
    device: str | None = None
    threads: int = 0
    cache: str | None = None

    def config(self, **options: Any) -> TrainConfig:
        """The options of training under which data and features are opened."""
        names = ["dataset_size", "seed", "noise", "skip_missing", "device", "threads", "cache"]
        names += READING if "features" not in options else ()
        return TrainConfig(**{name: getattr(self, name) for name in names}, **options).validate()


@dataclass
class Subject:
    """The input of a diagnosis.

    Attributes:
        name: title of the page.
        data: the pairs, with injected noise.
        wrong: (T,) True where noise made the pair wrong; None without noise.
        shown: images and captions for the page, if known, with the rows of `data`.
        x, y: (I, dx), (T, dy) features; None if the run has no frozen towers.
        moments: a run's statistics of each pair; None without a run, or if no pair was seen.
        chance: the positive probability that a random model gives a pair of that run.
        rows: (n,) image rows of the split.
    """

    name: str
    data: Data
    wrong: Bools | None
    shown: ImageCaptions | None = None
    x: torch.Tensor | None = None
    y: torch.Tensor | None = None
    moments: PairMoments | None = None
    chance: float = 0.0
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def image_name(self, row: int) -> str:
        """The image's name, or its row if names are not known."""
        names = self.data.image_names
        return str(row) if names is None else names[row]


def gather(settings: Settings, say: Say) -> Subject:
    """Open what the settings name.

    Raises:
        DataError: settings that contradict each other, or data that cannot be diagnosed.
        WeightsUnavailable: pretrained weights are not on this machine and cannot be downloaded.
    """
    encoders = settings.image_encoder or settings.text_encoder
    if settings.run is not None:
        if settings.features or encoders or settings.noise or settings.dataset_size or settings.data:
            raise DataError(
                "a RUN is diagnosed on its own data, noise and encoders: leave out --data, --features, --noise, "
                "--dataset-size and the encoders"
            )
        subject = _of_run(RunFolder.open(settings.run), settings, say)
    elif settings.features is not None:
        if encoders:
            raise DataError("--features holds the encoders' output already: leave out the encoders")
        subject = _of_features(settings.features, settings, say)
    elif settings.data is not None:
        subject = _of_folder(settings.data, settings, say)
    else:
        raise DataError("name what to diagnose: RUN, --features FILE or --data DIR")
    data = subject.data
    rows = np.arange(len(data.split), dtype=np.int64) if settings.split == "all" else data.rows(settings.split)
    subject.rows = rows[np.diff(data.caption_offsets)[rows] > 0]
    if not len(subject.rows):
        raise DataError(f"the {settings.split} split has no image with a caption; --split all takes every image")
    return subject


def _injected(data: Data, noise: Noise, seed: int) -> tuple[Data, Bools | None]:
    """The data with wrong pairs, and (T,) which pairs those are; None without noise."""
    wrong = noisy_pairs(data.caption_owner, data.rows("train"), noise, seed)[1] if noise.pairs else None
    return damaged(data, noise, "train", seed), wrong


def _pair_noise(text: str | None) -> Noise:
    noise = parse_noise(text)
    if noise.words or noise.pixels:
        raise DataError(
            f"--noise {noise}: a diagnosis looks for wrong pairs, so only swap-images and swap-captions work"
        )
    return noise


def _of_features(file: Path, settings: Settings, say: Say) -> Subject:
    config = replace(settings, skip_missing=False).config(features=str(file))
    noise = _pair_noise(config.noise)
    data = load_features(file)
    for note in data.notes:
        say(note)
    shown = None
    if settings.data is not None:
        reading = Reading.of(settings)
        folder = load_dataset(settings.data, seed=config.seed, skip_missing=settings.skip_missing, reading=reading)
        shown = matched(data, folder, settings.data)
    noisy, wrong = _injected(data.limited(config.dataset_size, config.seed), noise, config.seed)
    return _with_features(Subject(file.name, noisy, wrong, shown))


def _with_features(subject: Subject) -> Subject:
    assert isinstance(subject.data, FeatureSet)
    subject.x = torch.from_numpy(subject.data.image_features)
    subject.y = torch.from_numpy(subject.data.text_features)
    return subject


def _of_folder(folder: Path, settings: Settings, say: Say) -> Subject:
    encoders = {"image_encoder": settings.image_encoder, "text_encoder": settings.text_encoder}
    config = settings.config(data=str(folder), use_pretrained=True, freeze="both", augment=False, **encoders)
    noise = _pair_noise(config.noise)
    for option, spec in (("image", parse_image_spec(config.image_spec)), ("text", parse_text_spec(config.text_spec))):
        if not spec.has_source:
            raise DataError(
                f"--{option}-encoder {spec}: random weights say nothing of the pairs; name a pretrained encoder, train "
                "first and diagnose the RUN, or pass --features FILE"
            )
    size, skip = config.dataset_size, config.skip_missing
    data = load_dataset(folder, seed=config.seed, skip_missing=skip, dataset_size=size, reading=Reading.of(settings))
    for note in data.notes:
        say(note)
    noisy, wrong = _injected(data, noise, config.seed)
    subject = Subject(folder.resolve().name, noisy, wrong, shown=data)
    subject.x, subject.y = _tower_features(replace(config, noise=None), noisy, new_towers(config, noisy), say)
    return subject


def _tower_features(config: TrainConfig, data: Data, towers: Towers, say: Say) -> tuple[torch.Tensor, torch.Tensor]:
    device = pick_device(config.device)
    parts = open_sources(config, data, towers.to(device), device, say)
    assert isinstance(parts.images, FeatureRows)
    bad = sorted(parts.images.unreadable)
    if bad:
        raise DataError(f"{len(bad):,} images cannot be read; `varalign data check {config.data}` names them")
    return parts.images.matrix.cpu(), parts.texts.inputs(np.arange(len(data.caption_owner)))[0].cpu()


def _of_run(run: RunFolder, settings: Settings, say: Say) -> Subject:
    options = run.options()
    options |= {"device": settings.device, "threads": settings.threads, "cache": settings.cache or options.get("cache")}
    config = TrainConfig(**options).validate()
    clean, data = open_data(replace(config, noise=None, exclude=None), say)
    noisy, wrong = _injected(data, parse_noise(config.noise), config.seed)
    if config.exclude is not None:  # as training: the pairs were found among the noisy ones
        kept = ~(excluded_rows(noisy, Path(config.exclude)) & (noisy.split[noisy.caption_owner] == 0))
        wrong = None if wrong is None else wrong[kept]
        noisy, _ = without_excluded(noisy, Path(config.exclude))
    subject = Subject(run.path.resolve().name, noisy, wrong, shown=noisy if isinstance(noisy, ImageCaptions) else None)
    try:
        state = load_checkpoint(run.checkpoints / "last").part(PAIRS)
        moments = PairMoments.from_state({name: tensor.numpy() for name, tensor in state.items()})
    except (KeyError, ValueError) as error:
        raise RunError(f"{run.path}: its checkpoint has no statistics of the pairs: {error}") from None
    if moments.n != len(noisy.caption_owner):
        raise RunError(f"{run.path}: statistics of {moments.n:,} pairs, but its data have {len(noisy.caption_owner):,}")
    subject.moments = moments if (moments.count > 0).any() else None
    subject.chance = _chance(config, data)
    if isinstance(noisy, FeatureSet):
        return _with_features(subject)
    model = saved_model(run)
    if model.fully_frozen("image") and model.fully_frozen("text"):
        subject.x, subject.y = _tower_features(replace(clean, augment=False), noisy, model, say)
    return subject


def _chance(config: TrainConfig, data: Data) -> float:
    """Chance probability of the positive, mean of both directions: 1 over the number of candidates in a batch.

    A text's candidates are the images of its batch; an image's are its text and the texts of the other images.
    """
    rows = data.rows("train")
    config = fill(config, len(rows))
    batch, texts = min(config.batch_size, len(rows)), 1.0
    if config.captions_as == "each":
        texts = float(np.minimum(np.diff(data.caption_offsets)[rows], config.captions_per_step).mean())
    return (1 / batch + 1 / (texts * (batch - 1) + 1)) / 2
