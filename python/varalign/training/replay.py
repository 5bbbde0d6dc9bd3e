"""Run a step again that was not finite, from the dump that a run left: `python -m varalign.training.replay DUMP`.

A dump is a folder `RUN/dumps/step-N` of the form of a checkpoint: weights, optimiser, schedule and random states as
they were before the step, with its inputs beside them (`inputs.images`, `inputs.image_ids`, `inputs.texts.K`). The data
set is not needed, the run folder is: it says what the model is made of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varalign.data.errors import DataError
from varalign.data.features import FeatureSet
from varalign.encoders.dual_encoder import DualEncoder
from varalign.inputs.build import Parts, saved_model
from varalign.inputs.sources import ImageInputs, Rows
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunFolder, json_text
from varalign.training.step_texts import StepTexts
from varalign.training.trainer import Trainer


@dataclass
class _DumpedImages:
    tensor: Tensor
    live: bool

    def prepare(self) -> None:
        pass

    def batches(self, order: Sequence[Rows], *, epoch: int) -> Iterator[ImageInputs]:
        yield ImageInputs(order[0], self.tensor)

    def plain(self, rows: Rows, batch_size: int) -> Iterator[ImageInputs]:
        yield ImageInputs(rows, self.tensor)

    def features(self, model: DualEncoder, inputs: Tensor) -> Tensor:
        return model.encode_images(inputs) if self.live else inputs


@dataclass
class _DumpedTexts:
    parts: tuple[Tensor, ...]
    live: bool

    def inputs(self, rows: Rows, epoch: int | None = None) -> tuple[Tensor, ...]:
        return self.parts

    def features(self, model: DualEncoder, inputs: tuple[Tensor, ...]) -> Tensor:
        return model.encode_texts(*inputs) if self.live else inputs[0]


def replay(folder: Path, *, device: str | None = None) -> dict[str, Any]:
    """Make the dumped step again.

    Args:
        folder: `RUN/dumps/step-N`.
        device: where; the CPU if None.

    Returns:
        `step`, `loss`, `skipped` (whether it was not finite again), and by name with their number of elements that are
        not finite: `inputs`, `weights`, `gradients`.

    Raises:
        RunError: no dump, a damaged one, or one outside its run folder.
    """
    found = load_checkpoint(folder)
    run = RunFolder.open(folder.resolve().parent.parent)
    place = pick_device(device or "cpu")
    config = TrainConfig(**{**run.options(), "device": str(place)})
    given = found.part("inputs")
    texts = {name: part for name, part in given.items() if name.startswith("texts.")}
    count = len(given["image_ids"])
    live_images, live_texts = found.state["live"]
    model = saved_model(run).to(place)
    ids = given["image_ids"].numpy()
    data = FeatureSet(
        np.zeros((count, 1), np.float32),
        np.zeros((count, 1), np.float32),
        np.arange(count),
        np.zeros(count, np.int8),
        ids,
    )
    # Lengths of captions stay on the CPU, where the encoders want them; ids and features go to the device.
    inputs = tuple(part if name != "texts.0" else part.to(place) for name, part in sorted(texts.items()))
    images = given["images"].to(place)
    parts = Parts(config, data, model, _DumpedImages(images, live_images), _DumpedTexts(inputs, live_texts), place)
    trainer = Trainer(config, parts, run)
    trainer.total_steps = found.state["total_steps"]
    trainer.load(found)
    weights = _not_finite(dict(model.named_parameters()))
    model.train()
    line = trainer.try_step(ImageInputs(np.arange(count), images), StepTexts.from_dict(found.state["texts"]))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "step": found.state["step"],
        "loss": line["loss"],
        "skipped": line["skipped"],
        "inputs": _not_finite(given),
        "weights": weights,
        "gradients": _not_finite(gradients),
    }


def _not_finite(tensors: dict[str, Any]) -> dict[str, int]:
    counts = {name: int((~torch.isfinite(tensor.detach())).sum()) for name, tensor in tensors.items()}
    return {name: count for name, count in counts.items() if count}


def main(argv: Sequence[str]) -> int:
    """Replay the dump that is named; 0 where the step is not finite again, 1 where it is, 2 for wrong use."""
    if len(argv) != 1:
        print("usage: python -m varalign.training.replay RUN/dumps/step-N", file=sys.stderr)
        return 2
    try:
        result = replay(Path(argv[0]))
    except DataError as error:
        print(f"varalign: error: {error}", file=sys.stderr)
        return 2
    print(json_text(result, indent=1))
    return 0 if result["skipped"] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
