"""Trains the cells of a pack side by side on shared features, and measures the results."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.damage import damaged
from varalign.data.features import FeatureSet
from varalign.data.noise import parse_noise
from varalign.data.pair_ids import pair_ids
from varalign.data.same_captions import SameCaption
from varalign.data.sampler import epoch_batches
from varalign.encoders.dual_encoder import DualEncoder
from varalign.evaluation.retrieval import matrix_ranks, mean_recall, ranks, recalls
from varalign.inputs.pair_features import sent, thinned
from varalign.options.config import TrainConfig
from varalign.options.fields import OPTIONS
from varalign.options.recipe import fill
from varalign.schedules import LossSchedule
from varalign.study.grid import Cell, Pack
from varalign.training.batched import BatchedRuns
from varalign.training.fusion import Fusion
from varalign.training.losses import named_schedule
from varalign.training.optimiser import rate_factor
from varalign.training.start import begin
from varalign.training.steps.step_texts import StepTexts

Rows = NDArray[np.int64]
STARTS_KEPT = 16  # number of initial models kept; each takes a few megabytes, with members about 20
RANKS = "0123456789"  # a query's rank as one character; "+" from 10 on


@dataclass
class Split:
    """Features of a split for evaluation, as the candidates of retrieval.

    Attributes:
        images: (I, Dx). texts: (T, Dy), grouped by image.
        owner: (T,) ascending rows of `images`.
        pairs: (E, 2) and first: (P, 2) as of `varalign.data.index.Candidates`.
        ids: of the images and captions of `first`, (P,) or (P, K) and (P,), where a caption belongs to several images.
    """

    images: Tensor
    texts: Tensor
    owner: Rows
    pairs: Tensor
    first: Tensor
    ids: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(data: FeatureSet, name: str, device: torch.device) -> Split:
        """A split of a data set."""
        found = data.candidates(data.rows(name))
        images = torch.from_numpy(data.image_features[found.rows]).to(device)
        texts = torch.from_numpy(data.text_features[found.captions]).to(device)
        pairs, first = (torch.from_numpy(array).to(device) for array in (found.pairs, found.first))
        rows = found.rows[found.first[:, 0]]
        ids = sent(pair_ids(data, rows, data.first_captions(rows)), device)
        return Split(images, texts, found.owner, pairs, first, ids)


@dataclass
class Bench:
    """What all packs of a study share: the features in memory, and the splits for evaluation.

    Attributes:
        features: of the features file.
        device: where runs train.
        evaluations: number of evaluations on dev in a run, besides the one at the start (`--evaluations`).
        starts: initial models by the options that they depend on; the oldest is dropped when there are `STARTS_KEPT`.
    """

    features: FeatureSet
    device: torch.device
    evaluations: int
    splits: dict[tuple[str, str], Split] = field(default_factory=dict)
    image_features: Tensor = field(init=False)
    text_features: Tensor = field(init=False)
    starts: dict[TrainConfig, Started] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.image_features = torch.from_numpy(self.features.image_features).to(self.device)
        self.text_features = torch.from_numpy(self.features.text_features).to(self.device)

    def split(self, name: str, same_caption: SameCaption) -> Split:
        """A split as a run with that `same_caption` measures on it."""
        key = name, same_caption
        if key not in self.splits:
            data = dataclasses.replace(self.features, same_caption=same_caption)
            self.splits[key] = Split.of(data, name, self.device)
        return self.splits[key]


@dataclass
class Started:
    """A model before the first step: its data, the model, and the weights of its pairs if they are weighted."""

    data: FeatureSet
    model: DualEncoder
    pair_weights: Tensor | None


@dataclass
class Run:
    """One cell before training: its options with the recipe filled in, its data and initial model, its schedule."""

    config: TrainConfig
    data: FeatureSet
    model: DualEncoder
    pair_weights: Tensor | None
    schedule: LossSchedule

    @cached_property
    def batches(self) -> list[list[Rows]]:
        """The rows of every epoch's batches."""
        config, data = self.config, self.data
        rows, size = data.rows("train"), config.batch_size
        return [
            epoch_batches(rows, size, seed=config.seed, epoch=epoch, image_ids=data.image_ids)
            for epoch in range(config.epochs)
        ]


def cell_config(cell: Cell, train_images: int) -> TrainConfig:
    """The options of a cell's run, without those that name the data.

    Without hub correction, unless the study asks for it: then the ordinary trainer runs the cell.

    Args:
        cell: the cell.
        train_images: images of the whole training split, of which the cell's fraction is taken.
    """
    fraction, noise = cell.axes["fraction"], cell.axes["noise"]
    size = None if fraction >= 100 else max(2, round(train_images * fraction / 100))
    schedule: Any = "fixed" if cell.schedule == "replay" else cell.schedule
    return TrainConfig(
        **{"hub_correction": "off", "voices": "none", **cell.options},
        schedule=schedule,
        fixed_weight=cell.fixed_weight,
        dataset_size=size,
        noise=None if noise == "none" else noise,
        seed=cell.seed,
    )


def make_run(cell: Cell, bench: Bench, replayed: Sequence[float] | None) -> Run:
    """A cell's run on the shared features, with the initial model of `varalign train --features`."""
    features = bench.features
    config = dataclasses.replace(
        cell_config(cell, len(features.rows("train"))), features="shared", evaluations=bench.evaluations
    )
    config = config.validate()
    features = dataclasses.replace(features, same_caption=config.same_caption)
    features = features.limited(config.dataset_size, config.seed)
    config = fill(config, len(features.rows("train")))
    started = _started(config, features, bench)
    schedule = named_schedule(cell.schedule, config, replayed).to(bench.device)
    return Run(config, started.data, copy.deepcopy(started.model), started.pair_weights, schedule)


def _started(config: TrainConfig, features: FeatureSet, bench: Bench) -> Started:
    """The initial model of a run. Runs that differ only in later options share it: a closed form takes seconds."""
    after: dict[str, Any] = {
        name: OPTIONS[name].default for name in ("schedule", "fixed_weight", "lr", "weight_decay", "epochs")
    }
    key = dataclasses.replace(config, **after)
    if key not in bench.starts:
        data = damaged(features, parse_noise(config.noise), "train", config.seed)
        assert isinstance(data, FeatureSet)
        start = begin(config, data, bench.device, _silent)
        while len(bench.starts) >= STARTS_KEPT:
            del bench.starts[next(iter(bench.starts))]
        bench.starts[key] = Started(
            data, start.parts.model, None if start.pairs is None else start.pairs.weights.to(bench.device)
        )
    return bench.starts[key]


def _silent(_: str) -> None:
    pass


def run_pack(pack: Pack, bench: Bench, replayed: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Train the cells of a pack and measure them.

    Args:
        pack: cells of equal shape.
        bench: the shared features.
        replayed: w_i2t by the name of the cell that is replayed.

    Returns:
        The result of each cell: `dev` (mean of the six recalls at the best evaluation), `epochs`, `best_epoch`,
        `options` (those of `REPORTED`), `finite` (whether all losses were), and for kind "run" also the values of
        `rank_results` on the test split and `w_i2t` (of every step).
    """
    with torch.random.fork_rng(devices=[]):
        runs = [make_run(cell, bench, replayed.get(cell.replays)) for cell in pack.cells]
        torch.manual_seed(int(hashlib.sha256(pack.names[0].encode()).hexdigest()[:15], 16))
        results: list[dict[str, Any]] = [{}] * len(runs)
        # Copies of an image in a small draw can make batches fewer or shorter, and each draw chooses the dimensions of
        # its closed form. Runs of different shapes are trained separately.
        shapes: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, run in enumerate(runs):
            shapes.setdefault(_shapes(run), []).append(place)
        for places in shapes.values():
            chosen = [runs[place] for place in places]
            for place, result in zip(places, train_runs(chosen, bench), strict=True):
                results[place] = result
        for place, (cell, run) in enumerate(zip(pack.cells, runs, strict=True)):
            if cell.kind == "run":
                test = bench.split("test", run.config.same_caption)
                results[place] |= rank_results(*embed(run.model, test), test.owner, test.pairs)
            else:
                del results[place]["w_i2t"]
    return results


def train_runs(runs: Sequence[Run], bench: Bench) -> list[dict[str, Any]]:
    """Train runs of one shape as one batched product; each model ends with the weights that were best on dev."""
    first = runs[0].config
    batched = BatchedRuns([run.model for run in runs], [run.config for run in runs], [run.schedule for run in runs])
    total = len(runs[0].batches[0]) * first.epochs
    image_ids = torch.from_numpy(bench.features.image_ids).to(bench.device)
    dev = [bench.split("dev", run.config.same_caption) for run in runs]
    best = [_Best(fusion=_fusion(run, split)) for run, split in zip(runs, dev, strict=True)]
    losses: list[Tensor] = []
    weights: list[Tensor] = []
    _evaluate(runs, best, dev, 0)
    for epoch in range(first.epochs):
        for batch in zip(*(run.batches[epoch] for run in runs), strict=True):
            rows = np.stack(batch)
            drawn = [_texts(run, chosen, epoch, bench) for run, chosen in zip(runs, rows, strict=True)]
            texts = torch.stack([features for features, _, _ in drawn])
            pair_weights = [weight for _, weight, _ in drawn if weight is not None]
            chosen = torch.from_numpy(rows).to(bench.device)
            ids = _stacked_ids(image_ids[chosen], [found for _, _, found in drawn])
            factor = rate_factor(len(losses), total, warmup=first.warmup, schedule=first.lr_schedule)
            loss, weight = batched.step(
                bench.image_features[chosen],
                texts,
                ids[0],
                factor,
                torch.stack(pair_weights) if pair_weights else None,
                ids[1],
            )
            losses.append(loss)
            weights.append(weight[:, 0])
        if epoch + 1 in first.evaluated_epochs:
            _evaluate(runs, best, dev, epoch + 1)
    finite = torch.stack(losses).isfinite().all(0).tolist()
    recorded = torch.stack(weights, dim=1).cpu().double().numpy().round(6).tolist()
    for run, found in zip(runs, best, strict=True):
        run.model.load_state_dict(found.state)
    return [
        {
            "dev": found.score,
            "epochs": first.epochs,
            "best_epoch": found.epoch,
            "options": {name: getattr(run.config, name) for name in REPORTED},
            "finite": sound,
            "w_i2t": steps_of,
        }
        for run, found, sound, steps_of in zip(runs, best, finite, recorded, strict=True)
    ]


REPORTED = (
    *("batch_size", "epochs", "lr", "weight_decay", "dropout", "input_noise", "captions_per_step"),
    *("map_lr", "members"),
)


@dataclass
class _Best:
    fusion: Fusion | None
    score: float = -1.0
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)


def _evaluate(runs: Sequence[Run], best: Sequence[_Best], dev: Sequence[Split], epoch: int) -> None:
    for run, found, split in zip(runs, best, dev, strict=True):
        if found.fusion is not None:
            found.fusion.choose(trained=epoch > 0)
        score = dev_recall(run.model, split)
        if score > found.score:
            found.score, found.epoch = score, epoch
            found.state = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}


def _fusion(run: Run, dev: Split) -> Fusion | None:
    """The choice of an ensemble's share on dev, as in `varalign train`, except that copies of an image count once."""
    if run.model.shape.head != "ensemble":
        return None
    kept = torch.from_numpy(thinned(np.arange(len(dev.first)))).to(dev.first.device)
    image, text = dev.first[kept].unbind(1)
    ids = None if dev.ids is None else (dev.ids[0][kept], dev.ids[1][kept])
    return Fusion(run.model, dev.images[image], dev.texts[text], run.config.batch_size, ids)


def _shapes(run: Run) -> tuple[tuple[int, ...], ...]:
    """What the runs of one batched product must have in common: the lengths of all batches and their models' shapes.

    Copies of an image are moved to later batches, which can make the last batch of an epoch shorter.
    """
    lengths = (tuple(len(rows) for rows in epoch) for epoch in run.batches)
    return (*lengths, *(tuple(tensor.shape) for tensor in run.model.state_dict().values()))


def _stacked_ids(image_ids: Tensor, found: Sequence[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor | None]:
    """Ids of several runs' batches, (R, B) or (R, B, K) and (R, B): `found` where a run has some, else `image_ids`."""
    if all(ids is None for ids in found):
        return image_ids, None
    each = [(own, own) if ids is None else ids for own, ids in zip(image_ids, found, strict=True)]
    images = [ids.view(len(ids), -1) for ids, _ in each]
    width = max(ids.shape[1] for ids in images)  # a repeated id changes nothing in a matrix of pairs
    images = [torch.cat([ids, ids[:, :1].expand(-1, width - ids.shape[1])], 1) for ids in images]
    return torch.stack(images), torch.stack([ids for _, ids in each])


def _texts(
    run: Run, rows: Rows, epoch: int, bench: Bench
) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
    """(B, Dy) text features of these images in a step, and (B,) weights of the pairs if they are weighted."""
    config = run.config
    texts = StepTexts.draw(run.data, rows, seed=config.seed, epoch=epoch, count=config.captions_per_step, use="mean")
    captions = torch.from_numpy(texts.captions).to(bench.device)
    each = None if run.pair_weights is None else run.pair_weights[captions]
    ids = sent(texts.pair_ids(run.data, rows), bench.device)
    return texts.join(bench.text_features[captions], each), texts.weights(each)[0], ids


@torch.no_grad()
def embed(model: DualEncoder, split: Split) -> tuple[Tensor, Tensor]:
    """Unit vectors of a split's images and texts."""
    was_training = model.training
    model.eval()
    u, v = model.project_images(split.images), model.project_texts(split.texts)
    model.train(was_training)
    return u, v


@torch.no_grad()
def dev_recall(model: DualEncoder, split: Split) -> float:
    """Mean of Recall@1/5/10 both ways, in float32; 0 where an embedding is not finite."""
    u, v = embed(model, split)
    if not bool(u.isfinite().all() and v.isfinite().all()):
        return 0.0
    return mean_recall(recalls(*matrix_ranks(u @ v.T, split.pairs)))


def rank_results(images: Tensor, texts: Tensor, owner: Rows, pairs: Tensor | Rows) -> dict[str, Any]:
    """`ranks_i2t` and `ranks_t2i`, one character a query, and `captions`: how many texts are drawn with each image.

    Args:
        images: (I, D) unit vectors. texts: (T, D), grouped by image.
        owner: (T,) rows of the images. pairs: (E, 2) texts and all their images.
    """
    i2t, t2i = ranks(images, texts, pairs)
    counts = np.bincount(owner, minlength=len(images)).tolist()
    return {"ranks_i2t": rank_text(i2t), "ranks_t2i": rank_text(t2i), "captions": counts}


def rank_text(found: Rows) -> str:
    """Ranks as text: a digit each, `+` from 10 on, `-` for no query."""
    return "".join(RANKS[rank] if 0 <= rank < 10 else "-" if rank < 0 else "+" for rank in found.tolist())
