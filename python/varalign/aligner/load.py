"""Opens trained models: from a run folder, from a run that has just ended, or CLIP as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from varalign.aligner.aligner import Aligner
from varalign.aligner.opening import opened
from varalign.data.readers.reading import READING, Reading
from varalign.data.same_captions import SameCaption
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.dual_encoder import DualEncoder, without_heads
from varalign.encoders.specs import SIDES, Side, SpecError, WeightsUnavailable
from varalign.encoders.towers import Towers
from varalign.inputs.parts import Parts
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device
from varalign.options.recipe import fill
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunFolder


def load(
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
) -> Aligner:
    """Open a trained run. Its model and its data are opened at first use, without the noise that it was trained with.

    Args:
        run: the run folder.
        checkpoint: `best`, `last` or `step-N`.
        data: another data folder (or features file) than the run's own.
        reading: what is said of how that folder, or the run's own, is read.
        same_caption: as `--same-caption`; the run's own if None.
        skip_missing: leave out captions that name a missing image.
        device: as `--device`.
        threads: threads that decode images; 0: one for each core.
        cache: folder of cached tower features.

    Raises:
        RunError: no such run or checkpoint, or a damaged one.
    """
    given: dict[str, Any] = {"checkpoint": checkpoint, "data": data, "reading": reading, "same_caption": same_caption}
    return Aligner(**opened(run, **given, skip_missing=skip_missing, device=device, threads=threads, cache=cache))


def _same(model: DualEncoder, sides: Sequence[Side]) -> DualEncoder:
    """A model that is built already; unlike a lambda it pickles."""
    return model


def trained(parts: Parts, run: RunFolder) -> Aligner:
    """The model of a run that has just ended, with its best weights."""
    best = load_checkpoint(run.checkpoints / "best")
    best.fill(parts.model)
    model = parts.model.eval()
    given = {"name": parts.name, "run": run, "checkpoint": best, "parts": parts, "bank": run.bank}
    return Aligner(partial(_same, model), parts.config, **given)  # type: ignore[arg-type]


def zero_shot(
    spec: str,
    data: Path | str,
    *,
    seed: int = 0,
    reading: Reading = Reading(),
    same_caption: SameCaption | None = None,
    skip_missing: bool = False,
    device: str | None = None,
    threads: int = 0,
    cache: str | None = None,
) -> Aligner:
    """CLIP as published: its own two towers, without training.

    Args:
        spec: `clip:MODEL@WEIGHTS`, or `hf:` with CLIP or SigLIP of transformers; for both towers.
        data: a data folder.
        seed: of the split if the data have none of their own; use the seed of the run to compare with.
        same_caption, reading, skip_missing, device, threads, cache: as for `load`.

    Raises:
        SpecError: another kind of encoder.
        WeightsUnavailable: the weights are not on this machine and cannot be downloaded.
    """
    if not spec.startswith(("clip:", "hf:")):
        raise SpecError(
            f"--zero-shot {spec!r}: takes CLIP or SigLIP, whose towers share a space: clip:MODEL@WEIGHTS or hf:FOLDER"
        )
    encoders = {"image_encoder": spec, "text_encoder": spec, "start": "random", "hub_correction": "off"}
    places = {"data": str(data), "seed": seed, "device": device, "threads": threads, "cache": cache}
    places |= {name: getattr(reading, name) for name in READING}
    config = TrainConfig(**encoders, **places, skip_missing=skip_missing)  # type: ignore[arg-type]
    config = replace(config, same_caption=same_caption or config.same_caption).validate()
    try:
        towers = Towers(build_image_encoder(spec), build_text_encoder(spec))
    except WeightsUnavailable as absent:  # the message names the options of `train`
        raise WeightsUnavailable(str(absent).replace("--image-encoder", "--zero-shot")) from None
    model = without_heads(towers)
    for side in SIDES:
        model.freeze(side)
    model.to(pick_device(device)).eval()
    return Aligner(partial(_same, model), fill(config, 1), name=f"zero-shot {spec}")
