"""What each lever adds where both encoders train from random weights: `varalign train --data` with one lever at a time.

    python bench/from_scratch.py --data FOLDER --images 600 --epochs 15 --seeds 2 --out bench/results/from_scratch.json
    python bench/from_scratch.py --out FILE --table                                # the table of what is there

A row is a run with the options it names on top of `--image-size`, `--epochs`, `--dataset-size` and `--seed`. Levers are
to be chosen by the dev figures; those of test stand beside them. `--out` keeps every run, so that a second call goes on
where the first one stopped. Figures are per cent, `R@1/5/10` means of both directions, without hub correction, as the
run scores, and with a bank of the training pairs in any case. The loss is that of all images of the split with their
first captions in one batch (1,000 of Flickr8k: 6.91 by chance) at the best logit scale, so that rows of different batch
sizes compare. Few seeds say little: a recall of 1,000 images near 8 % is known to ± 1.7 points on its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import varalign
from varalign.aligner.evaluate import evaluate
from varalign.aligner.hub_bank import choose
from varalign.canonical.hub_correction import HubCorrection
from varalign.losses.pair_loss import batched_loss, best_logit_scale
from varalign.options.config import TrainConfig
from varalign.options.device import pick_device

BEFORE: dict[str, Any] = {"batch_size": 128, "captions_per_step": 5, "lr": 1e-3}
SMALL = BEFORE | {"batch_size": 32}
SLOW = SMALL | {"lr": 3e-4}
MIDDLE = SLOW | {"batch_size": 64}
LEVERS: dict[str, dict[str, Any]] = {  # on top of the default
    "crops from 0.2, colours 0.4": {"crop_area": 0.2, "color_jitter": 0.4},
    "words dropped 0.2": {"word_dropout": 0.2},
    "2 captions": {"captions_per_step": 2},
    "averaged 0.99": {"average_weights": 0.99},
    "word vectors": {"word_vectors": ""},
}
ROWS: dict[str, dict[str, Any]] = {
    "as before": BEFORE,
    "batch 32, rate 1e-3": SMALL,
    "batch 32, rate 3e-4": SLOW,
    "batch 64, rate 3e-4": MIDDLE,
    "batch 128, rate 3e-4": MIDDLE | {"batch_size": 128},
    "batch 64, rate 1e-3": MIDDLE | {"lr": 1e-3},
    "batch 32, rate 1e-3, word vectors": SMALL | {"word_vectors": ""},
    **{f"batch 32, rate 3e-4, {name}": SLOW | lever for name, lever in LEVERS.items()},
    **{f"batch 64, rate 3e-4, {name}": MIDDLE | lever for name, lever in LEVERS.items()},
}
KS = (1, 5, 10)
SCORINGS = ("plain", "scored", "train bank")
Run = dict[str, Any]


def recalls(found: dict[str, Any]) -> list[float]:
    """Recalls of an evaluation, means of both directions, per cent."""
    return [round(50 * (found[f"i2t_recall@{k}"] + found[f"t2i_recall@{k}"]), 3) for k in KS]


def figures(aligner: varalign.Aligner, split: str, bank: HubCorrection | None) -> Run:
    """Recalls without hub correction, as the run scores, and with a bank of the training pairs anyway; the loss."""
    found = aligner.embedded(split)
    run = aligner.evaluate(split, found=found)
    train = evaluate(aligner.parts, split, bank, statistics=False, found=found)
    pairs = found.first_pairs()
    batch = len(pairs[0])
    loss = batched_loss(*pairs, best_logit_scale(*pairs, batch_size=batch), batch)
    plain = run.get("uncorrected") or run
    return {"plain": recalls(plain), "scored": recalls(run), "train bank": recalls(train), "loss": round(loss, 4)}


def measured(options: dict[str, Any]) -> Run:
    """One run's figures on dev and test, with its time."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(**options, out=str(Path(folder) / "run"), keep=1)
        began, wall = time.process_time(), time.perf_counter()
        result = varalign.train(config, say=lambda _: None, progress=False)
        seconds = {"processor": round(time.process_time() - began, 1), "wall": round(time.perf_counter() - wall, 1)}
        bank = choose(result.aligner.parts, "train", "bank", "test").correction
        found = {split: figures(result.aligner, split, bank) for split in ("dev", "test")}
        return found | {"best_epoch": result.best_epoch, "hub": result.aligner.hub.line} | seconds


def print_table(kept: list[Run]) -> None:
    """The rows' means over seeds, dev first."""
    cells: dict[tuple[Any, ...], list[Run]] = {}
    for run in kept:
        key = tuple(run[name] for name in ("device", "images", "image_size", "epochs", "row"))
        cells.setdefault(key, []).append(run)
    for (device, images, size, epochs, row), runs in cells.items():
        line = f"{device:4} {images:>6} images {size} px {epochs:>3} epochs  {row:48}"
        for split in ("dev", "test"):
            for name in SCORINGS:
                means = [statistics.mean(run[split][name][place] for run in runs) for place in range(len(KS))]
                line += f" {name if name != 'plain' else split} " + "/".join(f"{mean:5.2f}" for mean in means)
            line += f" loss {statistics.mean(run[split]['loss'] for run in runs):.3f} "
        seconds = statistics.median(run["processor"] for run in runs)
        print(f"{line} best epoch {[run['best_epoch'] for run in runs]}  {len(runs)} seeds  {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", help="folder of images and captions")
    parser.add_argument("--images", type=int, default=600, help="training images")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, metavar="N")
    parser.add_argument("--device", help="cpu, cuda, cuda:N (default: the best there is)")
    parser.add_argument("--precision", default="bf16", help="bf16 takes half of fp32's time where the processor has it")
    parser.add_argument("--row", action="append", help="these rows alone, by their whole name")
    parser.add_argument("--word-vectors", help="file of word vectors, for the rows that take one")
    parser.add_argument("--cache", help="folder of the decoded cache")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept: list[Run] = json.loads(given.out.read_text()) if given.out.is_file() else []
    usual: Run = {name: getattr(given, name) for name in ("images", "image_size", "epochs", "precision")}
    usual["device"] = pick_device(given.device).type
    for seed in () if given.table else range(given.first_seed, given.first_seed + given.seeds):
        for row in given.row or ROWS:
            about = usual | {"row": row, "seed": seed}
            if any(about.items() <= run.items() for run in kept):
                continue
            options = {"data": given.data, "dataset_size": given.images, "image_size": given.image_size}
            options |= {"epochs": given.epochs, "seed": seed, "cache": given.cache, "decoded_cache": "disk"}
            options |= {"threads": 1, "evaluations": 1, "precision": given.precision, "device": given.device}
            options |= ROWS[row]
            if "word_vectors" in ROWS[row]:
                options["word_vectors"] = given.word_vectors
            kept.append(about | {"options": ROWS[row]} | measured(options))
            given.out.write_text(json.dumps(kept, indent=1) + "\n")
            print(f"{about}: {kept[-1]['dev']}, {kept[-1]['processor']} s", file=sys.stderr, flush=True)
    print_table(kept)


if __name__ == "__main__":
    main()
