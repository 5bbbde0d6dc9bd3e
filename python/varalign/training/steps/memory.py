"""What is said of a run's memory: of batch norms in a step of parts, and of what to do when a GPU's memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from varalign.data.ranks import world
from varalign.encoders.specs import SpecError
from varalign.inputs.parts import Parts
from varalign.options.declaration import ConfigError
from varalign.runs.run_errors import RunFailed
from varalign.training.steps.passes import has_batch_norms


class OutOfMemory(RunFailed):
    """The memory of a GPU has run out in training; the message names the options that need less."""


@contextmanager
def memory_watched(parts: Parts, say: Callable[[str], None]) -> Iterator[None]:
    """Within, a GPU whose memory runs out raises `OutOfMemory`; `say` is first told of batch norms in parts."""
    config = parts.config
    if config.accumulate > 1 and has_batch_norms(parts.model):
        rows = max(1, config.batch_size // config.accumulate)
        say(
            f"--accumulate {config.accumulate}: batch norms take their statistics from a part of each batch, {rows} of "
            f"its {config.batch_size} rows"
        )
    if config.shard and world().size == 1:
        say("--shard: one process runs, so nothing is split: start several by torchrun")
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        raise OutOfMemory(f"the memory of the GPU has run out ({first}): {less_memory(parts)}") from None


def check_batch(parts: Parts) -> None:
    """Refuse batches that cannot be split over the processes, or into parts that batch norms can work on.

    Raises:
        ConfigError: naming the option, before anything is written.
    """
    config, size = parts.config, world().size
    images = min(config.batch_size, len(parts.train_rows))
    if not config.epochs or not images:
        return
    if images < size:
        raise ConfigError(
            f"a batch of {images} images cannot be split over {size} processes: start at most {images}, or set a "
            "larger --batch-size"
        )
    least = images // size // min(config.accumulate, images // size) * size
    if config.accumulate > 1 and least < 2 and has_batch_norms(parts.model):
        raise ConfigError(
            f"--accumulate {config.accumulate}: a part of a batch of {images} images has {least}, and batch norms "
            f"need 2: pass at most {max(1, images // 2)}"
        )


def less_memory(parts: Parts) -> str:
    """The options with which a step of this run needs less memory."""
    config, model = parts.config, parts.model
    if config.frozen_towers:
        return f"set a smaller --batch-size than {config.batch_size}, or fewer --members"
    advice = []
    if config.accumulate < config.batch_size:
        most = min(2 * config.accumulate, config.batch_size)
        advice.append(f"--accumulate {most} passes each batch through the encoders in {most} parts")
    if not config.gradient_checkpointing and _has_checkpointing(parts):
        advice.append("--gradient-checkpointing keeps fewer activations")
    if config.trains("image") and model.image_encoder is not None:
        advice.append(f"an --image-size below {model.image_encoder.preprocess.size} makes fewer of them")
    return "; ".join(advice or [f"set a smaller --batch-size than {config.batch_size}"])


def _has_checkpointing(parts: Parts) -> bool:
    try:
        parts.model.checkpoint_activations()  # the run is over: what it changes is not used
    except SpecError:
        return False
    return True
