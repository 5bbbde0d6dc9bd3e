"""Batch norm over ranks equals that of one process with all rows: outputs, gradients and running statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked_ranks import forked
from torch import nn
from varalign.data.ranks import Ranks
from varalign.encoders.rank_norm import share_batch_norms

SIZES = (3, 5)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    values = 100 + torch.randn(sum(SIZES), 4, 3, 2, generator=generator, dtype=torch.float64)
    return values, torch.randn(values.shape, generator=generator, dtype=torch.float64)


def norm() -> nn.Sequential:
    layer = nn.Sequential(nn.BatchNorm2d(4)).double()
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    return layer


def passed(layer: nn.Module, values: torch.Tensor, upstream: torch.Tensor) -> dict[str, torch.Tensor]:
    values = values.clone().requires_grad_()
    output = layer(values)
    output.backward(upstream)
    found = {"output": output.detach(), "gradient": values.grad}
    found |= {f"{name}.grad": parameter.grad for name, parameter in layer.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers()}


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    layer = norm()
    share_batch_norms(layer, Ranks(rank, len(SIZES), dist.group.WORLD))
    first = sum(SIZES[:rank])
    rows = slice(first, first + SIZES[rank])
    torch.save(passed(layer, *(part[rows] for part in data())), f"{folder}/{rank}.pt")


def test_ranks_of_uneven_batches_equal_one_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    expected = passed(norm(), *data())
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(SIZES))]
    for name, value in expected.items():
        parts = [rank[name] for rank in ranks]
        whole = torch.cat(parts) if name in ("output", "gradient") else sum(parts) if "grad" in name else parts[0]
        torch.testing.assert_close(whole, value, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_a_norm_without_a_form_for_ranks_is_refused() -> None:
    with pytest.raises(TypeError, match="BatchNorm3d has no form for several processes"):
        share_batch_norms(nn.Sequential(nn.BatchNorm3d(2)), Ranks(0, 2))


if __name__ == "__main__":
    forked(len(SIZES), lambda rank: work(rank, sys.argv[1]), 60)
