"""Which judge on dev chooses the closed form's settings best, and whether a ridge for each side is worth its time.

    python bench/settings.py --features FILE --images 600 --seeds 5

Fit, dev and test are drawn from the training images alone: the dev and test split of the file take no part in this.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from harness import print_json, single
from torch import Tensor
from varalign.canonical import Grid, RunningCovariance, choose_settings, mean_recall_at_1, negative_loss
from varalign.canonical.maps import Whitening
from varalign.data.features import load_features
from varalign.evaluation.retrieval import mean_recall, retrieval

HELD_OUT = 1000  # images of the drawn dev and of the drawn test


def mean_of_recalls(u: Tensor, v: Tensor, owner: Tensor) -> float:
    """Mean of Recall@1, 5 and 10 of both directions."""
    return mean_recall(retrieval(u, v, owner))


JUDGES = {"loss": negative_loss, "mean R@1": mean_recall_at_1, "mean R@1/5/10": mean_of_recalls}
GRIDS = {"one ridge": Grid(text_parts=()), "a ridge a side": Grid()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--features", type=Path, required=True, metavar="FILE")
    parser.add_argument("--images", type=int, default=600, metavar="N")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = load_features(options.features)
    x, y = torch.from_numpy(file.image_features), torch.from_numpy(file.text_features)
    ids = torch.from_numpy(file.text_image_ids)
    train = torch.from_numpy(file.rows("train"))
    if len(train) < options.images + 2 * HELD_OUT:
        parser.error(f"{len(train)} training images: {options.images} and twice {HELD_OUT} are wanted")

    def part(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = rows.sort().values
        texts = torch.isin(ids, rows).nonzero()[:, 0]
        return x[rows], y[texts], torch.searchsorted(rows, ids[texts])

    found: dict[tuple[str, str], list[tuple[float, float]]] = {(g, j): [] for g in GRIDS for j in JUDGES}
    for seed in range(options.seeds):
        order = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(1000 + seed))]
        test, dev = part(order[:HELD_OUT]), part(order[HELD_OUT : 2 * HELD_OUT])
        images, texts, owner = part(order[2 * HELD_OUT : 2 * HELD_OUT + options.images])
        covariance = RunningCovariance(x.shape[1], y.shape[1])
        covariance.update(images[owner], texts)
        whitening = Whitening(covariance)
        for (grid, judge), reached in found.items():
            best, _ = choose_settings(whitening, *dev, grid=GRIDS[grid], metric=JUDGES[judge])
            maps = best.solved(whitening)
            u, v = maps.embed_images(test[0]), maps.embed_texts(test[1])
            reached.append((mean_recall_at_1(u, v, test[2]), mean_of_recalls(u, v, test[2])))
        print(f"seed {seed} done", file=sys.stderr)
    rows = [
        single(
            f"{figure} on images held out, {options.images} images, {options.seeds} seeds",
            f"{grid}, judged by {judge}",
            100 * statistics.mean(both[place] for both in reached),
            "%",
            packages=["torch", "numpy"],
        )
        for place, figure in enumerate(("mean R@1", "mean R@1/5/10"))
        for (grid, judge), reached in found.items()
    ]
    if options.json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row.subject}: {row.contender:34} {row.value:5.2f}")


if __name__ == "__main__":
    main()
