"""A training step of ResNet-18 + LSTM beside the leanest loop over the same model: forward, loss, backward, AdamW.

    python bench/training_step.py [--data DIR] [--image-size 112] [--batch-size 64] [--precision bf16] [--steps 2]

Every contender makes the same steps from the same weights, images, captions and random numbers. The loops have a plain
symmetric loss with every caption of an image as a positive, fused AdamW and no check, schedule or statistic. One has a
dense LSTM with a masked mean, one torch's packed sequence. Ours is `TrainingStep`: variance schedule, guard against
steps that are not finite, statistics of each pair. The first step's losses are those of the same weights and dropouts;
those behind it agree to 1 %, since the loops weight both directions alike.
(OMP_NUM_THREADS sets torch's threads.)
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import varalign
from harness import Contender, Row, compare, main
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from varalign.data.sample import write_sample
from varalign.data.sampler import epoch_batches
from varalign.encoders.base import masked_mean, token_mask
from varalign.inputs.open_data import open_data
from varalign.inputs.parts import Parts
from varalign.inputs.sources import ImageInputs
from varalign.options.device import pick_device
from varalign.options.recipe import fill
from varalign.training.start import begin
from varalign.training.state import TrainingState
from varalign.training.steps.step import TrainingStep
from varalign.training.steps.step_texts import StepTexts

PACKAGES = ["numpy", "torch"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The script's own options."""
    parser.add_argument("--data", type=Path, help="folder of images and captions (default: the built-in sample)")
    parser.add_argument("--image-size", type=int, default=112, help="side of the square (default: 112)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step (default: 64)")
    parser.add_argument("--precision", default="bf16", help="as of `varalign train` (default: bf16)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a run (default: 2)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N (default: the best there is)")


class Loop:
    """A plain training loop.

    Args:
        parts: its model is copied.
        words: (B, L, E) and lengths (B,) to (B, F): the LSTM and the mean of its states.
    """

    def __init__(self, parts: Parts, words: Callable[[torch.nn.LSTM, Tensor, Tensor], Tensor]) -> None:
        self.parts, self.words, self.model = parts, words, copy.deepcopy(parts.model).train()
        rates = {"lr": parts.config.lr, "weight_decay": parts.config.weight_decay}
        self.optimiser = torch.optim.AdamW(self.model.parameters(), fused=True, **rates)

    def step(self, inputs: ImageInputs, texts: StepTexts) -> Tensor:
        """One step; returns its loss."""
        model, parts = self.model, self.parts
        ids, lengths = parts.texts.inputs(texts.captions)
        ids = ids[:, : int(lengths.max())]
        tower: Any = model.text_encoder
        with parts.autocast():
            images = model.encode_images(inputs.tensor)
            words = tower.dropout(tower.embedding(ids))
            features = self.words(tower.lstm, words, lengths)
            # Both heads behind both towers, as in our step: another order of dropouts draws other masks.
            u, v = model.project_images(images), model.project_texts(features)
        z = model.logit_scale * (u.float() @ v.float().T)
        owner = torch.from_numpy(texts.owner).to(z.device)
        positive = (torch.arange(len(z), device=z.device)[:, None] == owner).float()
        by_image = z.logsumexp(1) - (z * positive).sum(1) / positive.sum(1)
        loss: Tensor = (by_image.mean() + (z.logsumexp(0) - (z * positive).sum(0)).mean()) / 2
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), parts.config.clip_grad)
        self.optimiser.step()
        model.clamp_logit_scale_()
        return loss.detach()


def dense(lstm: torch.nn.LSTM, words: Tensor, lengths: Tensor) -> Tensor:
    """Padding included; the mean leaves it out."""
    return masked_mean(lstm(words)[0], token_mask(words[:, :, 0], lengths))


def packed(lstm: torch.nn.LSTM, words: Tensor, lengths: Tensor) -> Tensor:
    """As a packed sequence."""
    states = lstm(pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False))[0]
    return masked_mean(pad_packed_sequence(states, batch_first=True)[0], token_mask(words[:, :, 0], lengths))


class Ours:
    """`TrainingStep` on a copy of the model."""

    def __init__(self, parts: Parts) -> None:
        self.parts = replace(parts, towers=copy.deepcopy(parts.model).train())
        self.make = TrainingStep(parts.config, self.parts, TrainingState(parts.config, self.parts, None), 100)

    def step(self, inputs: ImageInputs, texts: StepTexts) -> Tensor:
        """One step; returns the mean of both directions' losses."""
        return self.make(inputs).figures[1:3].mean()


def contender(
    name: str, made: Callable[[], Any], batches: list[tuple[ImageInputs, StepTexts]], **keys: Any
) -> Contender:
    """All batches, from the weights at the start."""
    place: list[Any] = []

    def prepare() -> None:
        place[:] = [made()]
        torch.manual_seed(0)

    def run() -> Tensor:
        return torch.stack([place[0].step(*batch) for batch in batches]).cpu()

    return Contender(name, run, prepare=prepare, **keys)


def subjects(options: argparse.Namespace) -> Iterator[Sequence[Row]]:
    """One group of rows."""
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory() as place:
        data = options.data
        if data is None:
            data = Path(place) / "sample"
            write_sample(data, images=max(4 * options.batch_size * options.steps, 200))
        config = varalign.TrainConfig(
            data=str(data),
            image_size=options.image_size,
            batch_size=options.batch_size,
            precision=options.precision,
            same_caption="distinct",  # as in the loops, whose positives are an image's own captions
            lr=1e-4,
            warmup=0.0,
            lr_schedule="constant",
        ).validate()
        config, opened = open_data(config, lambda line: None)
        config = fill(config, len(opened.rows("train")))
        parts = begin(config, opened, device, lambda line: None).parts
        order = epoch_batches(parts.train_rows, config.batch_size, seed=0, epoch=0, image_ids=opened.image_ids)
        draw = {"seed": config.seed, "epoch": 0, "count": config.captions_per_step, "use": config.captions_as}
        batches = [
            (inputs, StepTexts.draw(opened, inputs.rows, **draw))
            for inputs in parts.images.batches(order[: options.steps], epoch=0)
        ]
        threads = f", {torch.get_num_threads()} torch threads" if device.type == "cpu" else ""
        images = f"{options.batch_size} images of {options.image_size} pixels x {config.captions_per_step} captions"
        tokens = f"{mean_length(parts, batches):.1f} tokens each"
        yield compare(
            f"a step of resnet18 + lstm, {images}, {tokens}, {options.precision}, {device.type}{threads}",
            [
                contender("varalign", lambda: Ours(parts), batches, ours=True),
                contender("a lean loop, dense LSTM", lambda: Loop(parts, dense), batches),
                contender("a lean loop, packed LSTM", lambda: Loop(parts, packed), batches),
            ],
            work=len(batches),
            unit="s",
            agree=agree,
            rounds=options.rounds,
            packages=PACKAGES,
        )


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether the first losses are the same but for rounding in bfloat16, and the later ones near."""
    off = (ours / theirs - 1).abs()
    return bool(off[0] < 1e-4) and bool((off < 0.01).all())


def mean_length(parts: Parts, batches: list[tuple[ImageInputs, StepTexts]]) -> float:
    """Mean number of tokens of the captions."""
    return float(torch.cat([parts.texts.inputs(texts.captions)[1] for _, texts in batches]).float().mean())


if __name__ == "__main__":
    main(__doc__, subjects, arguments)
