"""The default recipe against plain contrastive training, paired over seeds, on a features file.

    python bench/recipe.py --features FILE --images 600 --seeds 6 --out DIR

Every row is `varalign train --features FILE --dataset-size N --seed S` with the options it names; "tuned" are the
lengths, rates, decays, dropouts and weights that bench/studies/schedules.toml found best on dev for fixed weights from
random heads. Differences are in points of the mean of both directions' test R@1, with a 95 % interval by a bootstrap
that draws test images (with their captions) and seeds. DIR keeps each run's ranks, so that a second call goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import varalign
from harness import print_json, single
from varalign.aligner.evaluate import embed_split
from varalign.options.config import TrainConfig
from varalign.study.inference import hits, interval, paired_differences
from varalign.study.packs import rank_results

METRIC = "mean_recall@1"
PLAIN = {"start": "random", "schedule": "fixed"}
TUNED: dict[int, dict[str, Any]] = {
    60: {"epochs": 120, "lr": 1e-3, "weight_decay": 0.01, "dropout": 0.5, "fixed_weight": 0.4},
    300: {"epochs": 20, "lr": 3e-3, "weight_decay": 0.3, "dropout": 0.5, "fixed_weight": 0.6},
    600: {"epochs": 20, "lr": 1e-3, "weight_decay": 0.01, "dropout": 0.5, "fixed_weight": 0.7},
    6000: {"epochs": 20, "lr": 5e-4, "weight_decay": 0.01, "dropout": 0.5, "fixed_weight": 0.3},
}


def rows(images: int) -> dict[str, dict[str, Any]]:
    """Name and options of each row; the first is the recipe."""
    found: dict[str, dict[str, Any]] = {
        "the recipe": {},
        "the same with fixed weights": {"schedule": "fixed"},
        "closed form alone": {"head": "linear", "map_lr": 0.0, "epochs": 1},
        "a residual on it (--voices none --members 0)": {"voices": "none", "members": 0},
        "random heads, 30 epochs": PLAIN,
    }
    return {**found, "random heads, tuned": {**PLAIN, **TUNED[images]}} if images in TUNED else found


def ran(options: dict[str, Any], kept: Path) -> dict[str, Any]:
    """Ranks of the run's test queries: those kept, else of a run made now."""
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(**options, out=str(Path(folder) / "run"), keep=1)
            parts = varalign.train(config, say=lambda _: None, progress=False).aligner.parts
            test = embed_split(parts, parts.data.rows("test"))
            kept.write_text(json.dumps(rank_results(test.images, test.texts, test.owner, test.pairs)))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", required=True)
    parser.add_argument("--images", type=int, default=600, help="training images; those of the whole split for all")
    parser.add_argument("--noise")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--only", action="append", help="rows that hold this text; may be given several times")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON list")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        for name, options in rows(arguments.images).items():
            if arguments.only and not any(text in name for text in arguments.only):
                continue
            usual = {"features": arguments.features, "noise": arguments.noise, "seed": seed}
            said = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:6]
            kept = arguments.out / f"{arguments.images}-{arguments.noise or 'clean'}-{_slug(name)}-{said}-{seed}.json"
            found = ran({**usual, "dataset_size": arguments.images, **options}, kept)
            results.setdefault(name, []).append(found)
            print(f"seed {seed}  {name:32}{100 * hits(found, METRIC)[0].sum():7.2f}", file=sys.stderr, flush=True)
    first = next(iter(results.values()))
    subject = f"mean test R@1, {arguments.images} images, noise {arguments.noise or 'none'}, {arguments.seeds} seeds"
    recipe, table = 0.0, []
    for name, runs in results.items():
        mean, half = interval([100 * float(hits(run, METRIC)[0].sum()) for run in runs])
        recipe = recipe or mean
        note = f"± {half:.2f}"
        if runs is not first:
            (gain,) = paired_differences([(first, runs)], METRIC)
            low, high = 100 * gain["low"], 100 * gain["high"]
            note += f"   the recipe's gain {100 * gain['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        table.append(single(subject, name, mean, "%", ratio=recipe / mean, note=note, packages=["torch", "numpy"]))
        print(f"{name:32}{mean:7.2f} {note}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print_json(table)


if __name__ == "__main__":
    main()
