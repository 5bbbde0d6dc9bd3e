"""WiSE-FT: interpolates between the initial and the best weights of a run that fine-tunes pretrained towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from varalign.aligner.evaluate import evaluate
from varalign.data.ranks import world
from varalign.evaluation.retrieval import mean_recall
from varalign.inputs.parts import Parts
from varalign.runs.checkpoint import MODEL, START_STEP, WISE_FT, load_checkpoint, named, save_checkpoint
from varalign.runs.folder import RunFolder

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def interpolated(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights (1 - share) * start + share * tuned; tensors that are not floating point come from `tuned`."""
    return {
        name: torch.lerp(start[name].to(end.dtype), end, share) if end.is_floating_point() else end
        for name, end in tuned.items()
    }


def go_part_of_the_way(parts: Parts, run: RunFolder, say: Callable[[str], None]) -> float:
    """Replace the best checkpoint's weights by the interpolation with the initial weights that is best on dev.

    Fine-tuning on few pairs makes a pretrained tower forget some of what it knew; interpolated weights often keep both.
    The initial weights are those before the first step, closed-form heads included. If the best checkpoint was replaced
    already, it does not change again.

    Args:
        parts: of the finished run.
        run: its folder; `checkpoints/step-0` and `checkpoints/best` are read.
        say: called with one line.

    Returns:
        The weight of the trained weights, within (0, 1]; 1 keeps the best checkpoint.

    Raises:
        CheckpointError: one of the two is damaged.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.
    """
    folder = run.checkpoints
    best = load_checkpoint(folder / "best")
    if WISE_FT in best.state:
        return float(best.state[WISE_FT])
    before = best.position.best_score
    share, score = 1.0, before
    end = best.part(MODEL)
    if best.step != START_STEP:
        start = load_checkpoint(folder / f"step-{START_STEP}").part(MODEL)
        for tried in SHARES:
            parts.model.load_checkpoint_state(interpolated(start, end, tried))
            found = mean_recall(evaluate(parts, "dev"))
            if found > score:
                share, score = tried, found
        if share < 1.0:
            end = interpolated(start, end, share)
    parts.model.load_checkpoint_state(end)
    world().wait()  # every process has read the checkpoint that is replaced
    if world().is_writer:
        save_checkpoint(folder, best.step, best.tensors | named(MODEL, end), {**best.state, WISE_FT: share})
    world().wait()
    say(f"wise-ft: {share:g} of the way from the start is best on dev, mean recall {score:.4f} (the end: {before:.4f})")
    return share
