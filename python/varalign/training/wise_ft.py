"""Part of the way back: weights between the start and the best of a run whose pretrained towers trained (WiSE-FT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from varalign.aligner.evaluate import assess, mean_recall
from varalign.inputs.build import Parts
from varalign.runs.checkpoint import load_checkpoint, save_checkpoint
from varalign.runs.folder import RunFolder

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
START_STEP = 0


def interpolated(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights (1 - share) * start + share * tuned; what is no floating point number comes from `tuned`."""
    return {
        name: torch.lerp(start[name].to(end.dtype), end, share) if end.is_floating_point() else end
        for name, end in tuned.items()
    }


def go_part_of_the_way(parts: Parts, run: RunFolder, say: Callable[[str], None]) -> float:
    """Replace the best checkpoint's weights by those on the way to it from the start that are best on dev.

    Fine-tuning on few pairs costs a pretrained tower some of what it knew; between the two there are often weights that
    keep both. The start is the run before its first step, closed-form heads included. A run that was done already is
    left as it is.

    Args:
        parts: of the run, which is at its end.
        run: its folder; `checkpoints/step-0` and `checkpoints/best` are read.
        say: called with one line.

    Returns:
        The share of the way that was taken, within (0, 1]; 1 leaves the best as it is.

    Raises:
        CheckpointError: one of the two is damaged.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.
    """
    folder = run.checkpoints
    best = load_checkpoint(folder / "best")
    if "wise_ft" in best.state:
        return float(best.state["wise_ft"])
    progress = best.state["progress"]
    share, score = 1.0, float(progress["best_score"])
    end = best.part("model")
    if best.state["step"] != START_STEP:
        start = load_checkpoint(folder / f"step-{START_STEP}").part("model")
        for tried in SHARES:
            parts.model.load_checkpoint_state(interpolated(start, end, tried))
            found = mean_recall(assess(parts, "dev", batch_size=parts.config.batch_size))
            if found > score:
                share, score = tried, found
        if share < 1.0:
            end = interpolated(start, end, share)
    parts.model.load_checkpoint_state(end)
    tensors = {**best.tensors, **{f"model.{name}": tensor for name, tensor in end.items()}}
    save_checkpoint(folder, best.state["step"], tensors, {**best.state, "wise_ft": share})
    before = float(progress["best_score"])
    say(f"wise-ft: {share:g} of the way from the start is best on dev, mean recall {score:.4f} (the end: {before:.4f})")
    return share
