"""Opens a run folder, or an exported one, as the arguments of `Aligner`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from varalign.data.readers.reading import READING, Reading
from varalign.data.same_captions import SameCaption
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.specs import Side
from varalign.inputs.models import saved_model
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device
from varalign.runs.checkpoint import Checkpoint, load_checkpoint
from varalign.runs.folder import RunFolder


def opened(
    run: Path | str,
    *,
    checkpoint: str = "best",
    data: Path | str | None = None,
    reading: Reading = Reading(),
    same_caption: SameCaption | None = None,
    skip_missing: bool = False,
    device: str | None = None,
    threads: int = 0,
    cache: str | None = None,
) -> dict[str, Any]:
    """The arguments of `Aligner` for a saved model; those of this function are those of `load`."""
    folder = RunFolder.open(Path(run))
    options = folder.options()
    if options.get("noise"):  # the struck pairs were found among noisy ones
        options["exclude"] = None
    options |= {"noise": None, "skip_missing": skip_missing or options.get("skip_missing", False)}
    options |= {"device": device, "threads": threads, "cache": cache or options.get("cache")}
    if data is not None or reading != Reading():
        options |= {name: getattr(reading, name) for name in READING}
    if same_caption is not None:
        options["same_caption"] = same_caption
    if data is not None:
        place = "features" if options.get("features") else "data"
        options |= {place: str(data), "dataset_size": None, "captions_per_image": None, "exclude": None}
    config = TrainConfig(**options).validate()
    found = load_checkpoint(folder.checkpoints / checkpoint)
    build = partial(_build, folder, found, pick_device(device))
    name = str(folder.config().get("name", folder.path.name))
    bank = folder.bank if checkpoint == "best" else None
    return {"build": build, "config": config, "name": name, "run": folder, "checkpoint": found, "bank": bank}


def _build(run: RunFolder, checkpoint: Checkpoint, device: torch.device, sides: Sequence[Side]) -> DualEncoder:
    model = saved_model(run, sides).to(device)
    checkpoint.fill(model)
    return model.eval()
