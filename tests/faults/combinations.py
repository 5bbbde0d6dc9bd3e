"""A pairwise cover of the options that change the way of a run, each run killed and resumed: the end is the same bits.

Every two values of two options that some allowed run has together are together in one of the runs.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import differences, frozen_job, result, run, scratch_job

TOWERS = ("features", "scratch", "pretrained", "mixed")  # a features file, ResNet and LSTM, CLIP and BERT, one of each


def axes() -> dict[str, tuple[Any, ...]]:
    """Options by name, each with the values that lead a run another way."""
    from varalign.losses import LOSSES
    from varalign.schedules import SCHEDULES

    return {
        "towers": TOWERS,
        "start": ("closed-form", "random"),
        "cache": ("off", "disk"),
        "precision": ("fp32", "bf16"),
        "loss": LOSSES,
        "schedule": SCHEDULES,
        "members": (0, 2),
        "head": ("mlp", "linear"),
        "lora": (0, 2),
        "unfreeze": (0, 1),
        "pair_weighting": ("none", "closed-form", "moments"),
        "feature_mixup": (0.0, 0.5),
        "wise_ft": (False, True),
        "evaluations": (None, 1),
        "captions_as": ("mean", "each"),
        "word_dropout": (0.0, 0.3),
        "average_weights": (0.0, 0.9),
        "noise": (None, "swap-images=0.3"),
    }


class Inputs:
    """Small data and checkpoints, and the options of a run that takes them."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from checkpoints import write_bert, write_clip

        self.features = frozen_job(folder).words[1]
        self.pictures = scratch_job(folder).words[1]
        clip, bert = folder / "clip", folder / "bert"
        write_clip(clip)
        write_bert(bert)
        self.clip, self.bert = f"clip:ViT-tiny@{clip}", f"bert:{bert}"
        self.replayed = folder / "replayed"
        words = ["train", "--features", self.features, "--epochs", "2", "--batch-size", "20", "--device", "cpu"]
        assert run([*words, "--out", str(self.replayed)], folder / "log") == 0, (folder / "log").read_text()

    def options(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """The options of `train` for a choice of values."""
        options = {name: value for name, value in chosen.items() if name not in ("towers", "cache")}
        options |= {"epochs": 2, "batch_size": 12, "embedding_dim": 8, "hidden_dim": 8, "captions_per_step": 2}
        options |= {"device": "cpu", "threads": 1, "pair_warmup": 0.5, "checkpoint_every": 1, "dropout": 0.2}
        if chosen["schedule"] == "replay":
            options["replay_run"] = str(self.replayed)
        if chosen["members"]:
            del options["embedding_dim"]
        towers = chosen["towers"]
        if towers == "features":
            return {**options, "features": self.features, "batch_size": 20}
        options |= {"data": self.pictures, "decoded_cache": chosen["cache"]}
        if towers != "pretrained":
            options["image_size"] = 32
        return (
            options
            | {
                "scratch": {},
                "pretrained": {"image_encoder": self.clip, "text_encoder": self.bert},
                "mixed": {"image_encoder": "resnet18", "text_encoder": self.bert},
            }[towers]
        )


def allowed(inputs: Inputs, chosen: dict[str, Any]) -> bool:
    """Whether the program takes these options, and each of them has an effect."""
    from varalign.data.errors import DataError
    from varalign.options.config import TrainConfig
    from varalign.options.recipe import fill

    if chosen["towers"] == "features" and chosen["cache"] != "off":
        return False
    if chosen["towers"] == "scratch" and (chosen["lora"] or chosen["unfreeze"]):  # refused once the towers are known
        return False
    try:
        fill(TrainConfig(**inputs.options(chosen)).validate(), 60).validate()
    except DataError:
        return False
    return True


def cover(choices: dict[str, tuple[Any, ...]], fits: Callable[[dict[str, Any]], bool], seed: int) -> Cover:
    """Choices that together hold every possible pair of values, found greedily.

    Returns:
        The choices, how many pairs they hold, and how many pairs no allowed choice has.
    """
    draw = random.Random(seed)
    names = list(choices)
    open_pairs = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in choices[a] for y in choices[b]}
    total, found, impossible = len(open_pairs), [], 0

    def pairs(choice: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
        return set(itertools.combinations(choice.items(), 2))

    while open_pairs:
        wanted = dict(min(open_pairs, key=repr))
        best = next((c for c in _filled(choices, wanted, draw) if fits(c)), None)
        if best is None:
            open_pairs.remove(min(open_pairs, key=repr))
            impossible += 1
            continue
        for name in draw.sample(names, len(names)):
            for value in draw.sample(choices[name], len(choices[name])) if name not in wanted else ():
                other = {**best, name: value}
                if len(pairs(other) & open_pairs) > len(pairs(best) & open_pairs) and fits(other):
                    best = other
        found.append(best)
        open_pairs -= pairs(best)
    return found, total - impossible, impossible


def _filled(
    choices: dict[str, tuple[Any, ...]], wanted: dict[str, Any], draw: random.Random
) -> Iterator[dict[str, Any]]:
    """Choices with the wanted values: the others mostly the first ones, which go with most, now and then another."""
    for often in [0.0, *(draw.random() for _ in range(400))]:
        rest = {name: draw.choice(v) if draw.random() < often else v[0] for name, v in choices.items()}
        yield {name: wanted.get(name, rest[name]) for name in choices}


Cover = tuple[list[dict[str, Any]], int, int]


def _kill_at(step: int) -> Callable[[], None]:
    """In a forked process: SIGKILL when the run is about to make the step after `step` steps."""

    def before() -> None:
        from varalign.training.steps.step import TrainingStep

        plain = TrainingStep.__call__

        def dying(self: TrainingStep, inputs: Any) -> Any:
            if self.state.position.step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, inputs)

        TrainingStep.__call__ = dying  # type: ignore[method-assign]

    return before


def killed(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Each run of the cover whole, and killed at a step and resumed; at most `count` of them, drawn by the seed."""
    folder.mkdir()
    inputs = Inputs(folder)
    chosen, pairs, impossible = cover(axes(), lambda choice: allowed(inputs, choice), seed)
    draw = random.Random(seed)
    taken = draw.sample(chosen, min(count, len(chosen)))
    same, failures = 0, []
    for choice in taken:
        options = {**inputs.options(choice), "cache": str(folder / "cache")}
        file = folder / "options.json"  # which may hold options without effect
        file.write_text(json.dumps({name: value for name, value in options.items() if value is not None}))
        train = ["train", "--config", str(file), "--out"]
        whole, out, log = folder / "whole", folder / "run", folder / "log"
        for path in (whole, out):
            shutil.rmtree(path, ignore_errors=True)
        fault = ""
        if run([*train, str(whole)], log):
            fault = f"refused: {log.read_text().strip().splitlines()[-1]}"
        else:
            steps = result(whole)["last/progress"]["step"]
            if run([*train, str(out)], log, _kill_at(draw.randrange(steps))) != -signal.SIGKILL:
                fault = "not killed"
            elif run(["train", "--resume", str(out)], log):
                fault = f"not resumed: {log.read_text().strip().splitlines()[-1]}"
            else:
                fault = ", ".join(differences(out, result(whole))[:3])
        same += not fault
        if fault:
            failures.append(f"{choice}: {fault}")
    return {
        "combinations": len(chosen),
        "pairs of values in them": pairs,
        "pairs that no run has": impossible,
        "killed and resumed": len(taken),
        "identical": same,
        "failures": failures,
    }
