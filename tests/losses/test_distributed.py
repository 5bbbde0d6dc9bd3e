"""Several gloo processes on the CPU give what one process with all the data gives; so do the kernels, interpreted."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from varalign.losses.contrastive import ContrastiveLoss, ContrastiveOutput

DIMENSIONS = 12


def batch(image_sizes: list[int], text_sizes: list[int], several: bool) -> tuple[torch.Tensor, ...]:
    """Every rank's data, one after the other; ids repeat across ranks, and some have no partner.

    With `several` an image has three ids, so that a text may belong to images of all ranks.
    """
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(sum(image_sizes), DIMENSIONS, generator=generator, dtype=torch.float64)
    texts = torch.randn(sum(text_sizes), DIMENSIONS, generator=generator, dtype=torch.float64)
    image_ids = torch.randint(0, 2 * len(images), (len(images),), generator=generator) // 3
    text_ids = torch.randint(0, 2 * len(images), (len(texts),), generator=generator) // 3
    if several:
        image_ids = torch.stack([image_ids, image_ids + 1, image_ids + 3], 1)
    weights = [torch.rand(len(part), generator=generator, dtype=torch.float64) for part in (images, texts)]
    return images, texts, image_ids, text_ids, *weights


def step(
    weight: torch.Tensor, log_scale: torch.Tensor, data: tuple[torch.Tensor, ...], duplicates: str, group: Any
) -> ContrastiveOutput:
    """One forward and backward pass of a linear tower each, sharing a weight, with a learned logit scale."""
    images, texts, image_ids, text_ids, *weights = data
    given = dict(zip(("image_weights", "text_weights"), weights, strict=True)) if duplicates == "ignore" else {}
    loss = ContrastiveLoss("variance", duplicates, group=group)
    unit_images = torch.nn.functional.normalize(images @ weight, dim=1)
    unit_texts = torch.nn.functional.normalize(texts @ weight.T, dim=1)
    output = loss(unit_images, unit_texts, log_scale.exp(), image_ids, text_ids, **given)
    output.loss.backward()
    return output


def parameters() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64, requires_grad=True)
    return weight, torch.tensor(2.0, dtype=torch.float64, requires_grad=True)


def work(
    rank: int, folder: str, image_sizes: list[int], text_sizes: list[int], duplicates: str, backend: str, several: bool
) -> None:
    torch.set_num_threads(1)
    # By its name: the package's attribute `contrastive` is the function.
    importlib.import_module("varalign.losses.contrastive").choose_backend = lambda embeddings: backend
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(image_sizes))
    data = batch(image_sizes, text_sizes, several)
    i, t = sum(image_sizes[:rank]), sum(text_sizes[:rank])
    rows, columns = slice(i, i + image_sizes[rank]), slice(t, t + text_sizes[rank])
    weight, log_scale = parameters()
    data = tuple(part[columns if place % 2 else rows] for place, part in enumerate(data))
    output = step(weight, log_scale, data, duplicates, dist.group.WORLD)
    for gradient in (weight.grad, log_scale.grad):  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= len(image_sizes)
    results = {
        "loss": output.loss.detach(),
        "weights": output.weights,
        "weight": weight.grad,
        "log_scale": log_scale.grad,
        "i2t": output.stats_i2t.stacked(),
        "t2i": output.stats_t2i.stacked(),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


CASES = {
    "even": ([8, 8], [8, 8], "positive", "reference", False),
    "uneven": ([3, 8], [9, 2], "positive", "reference", False),
    "uneven, several ids": ([3, 8], [9, 2], "positive", "reference", True),
    "four uneven, ignored, weighted": ([7, 2, 5, 1], [3, 9, 1, 6], "ignore", "reference", False),
}
if importlib.util.find_spec("triton") is not None:
    CASES["uneven, kernels"] = ([3, 8], [9, 2], "positive", "triton", False)
    CASES["uneven, several ids, ignored, weighted, kernels"] = ([7, 2], [3, 9], "ignore", "triton", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all cases, from one clean process that forks the ranks (forking the test's own threads may hang)."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return folder


def run_cases(folder: Path) -> None:
    for name, (image_sizes, *rest) in CASES.items():
        (folder / name).mkdir()
        arguments = (str(folder / name), image_sizes, *rest)
        multiprocessing.start_processes(work, arguments, nprocs=len(image_sizes), start_method="fork")


@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_one_process(folders: Path, case: str) -> None:
    image_sizes, text_sizes, duplicates, _, several = CASES[case]
    weight, log_scale = parameters()
    whole = step(weight, log_scale, batch(image_sizes, text_sizes, several), duplicates, None)
    ranks = [torch.load(folders / case / f"{rank}.pt", weights_only=True) for rank in range(len(image_sizes))]
    close = {"rtol": 1e-10, "atol": 1e-12}
    for result in ranks:
        torch.testing.assert_close(result["loss"], whole.loss.detach(), **close)
        torch.testing.assert_close(result["weights"], whole.weights, rtol=1e-6, atol=0)
        assert torch.equal(result["weights"], ranks[0]["weights"])
        torch.testing.assert_close(result["weight"], weight.grad, **close)
        torch.testing.assert_close(result["log_scale"], log_scale.grad, **close)
    for direction, stats in (("i2t", whole.stats_i2t), ("t2i", whole.stats_t2i)):
        torch.testing.assert_close(torch.cat([r[direction] for r in ranks], dim=1), stats.stacked(), **close)


if __name__ == "__main__":
    run_cases(Path(sys.argv[1]))
