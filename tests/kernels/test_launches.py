"""How much the loss launches on a GPU, counted without one; a step that made the host wait would fail here too."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

pytest.importorskip("triton", reason="triton is not installed here")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "bench"))
    return importlib.import_module("launches")


@pytest.mark.parametrize(("n", "ceiling"), [(1024, 30), (4096, 30), (8192, 45)])
def test_a_small_batch_takes_few_launches(launches: ModuleType, n: int, ceiling: int) -> None:
    """Forward, variance schedule and backward; a sort of ids, at N = 8,192, is eleven of them."""
    found = launches.count_launches(launches.scheduled("variance"), n, 512, torch.bfloat16)
    assert found.total() <= ceiling, found
    # Nothing that is of the size of the batch is left to chains of single operations.
    assert (
        sum(times for (where, name), times in found.items() if "kernel" not in name and name not in ("mm", "sort")) <= 6
    )


@pytest.mark.parametrize(("duplicates", "more"), [("positive", 1), ("ignore", 2)])
def test_several_ids_an_image_take_a_launch_more_for_each_sum_over_positives(
    launches: ModuleType, duplicates: str, more: int
) -> None:
    one, two = (
        launches.count_launches(launches.scheduled("variance", duplicates, ids=ids), 1024, 64, torch.float32).total()
        for ids in (1, 2)
    )
    assert two == one + more


def test_what_is_counted(launches: ModuleType) -> None:
    def loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (images[1:] * scale).sum() + texts.view(-1).sum()

    names = sorted(name for where, name in launches.count_launches(loss, 4, 8, torch.float32).elements())
    # Forward a product, two sums and their sum; backward the rest: views and allocations cost nothing.
    assert names[:2] == ["add", "mul"] and names.count("sum") >= 2 and "slice" not in names and "view" not in names

    def waits(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return images.sum() if scale > 0 else texts.sum()

    with pytest.raises(DataDependentOutputException):
        launches.count_launches(waits, 4, 8, torch.float32)


def test_a_kernel_is_compiled_once_for_what_triton_specialises_on() -> None:
    """Integers that are 1 or multiples of 16, aligned pointers, dtypes and constants; other numbers change nothing."""
    host = importlib.import_module("varalign.kernels.host")
    launched: list[tuple[object, ...]] = []

    class Compiled:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *arguments: launched.append((grid, *arguments))

    class Jit:
        arg_names = ("X", "N", "SIZE")
        compiled = 0

        def __getitem__(self, grid: tuple[int, ...]) -> object:
            def compile_(*arguments: object, **constants: object) -> Compiled:
                Jit.compiled += 1
                return Compiled()

            return compile_

    kernel = object.__new__(host.Kernel)
    kernel.jit, kernel.compiled = Jit(), {}
    x = torch.zeros(64)
    kernel[(3,)](x, 18, SIZE=8, num_warps=1)
    kernel[(5, 2)](x, 19, SIZE=8, num_warps=1)
    assert Jit.compiled == 1 and launched[0][0] == (5, 2, 1) and launched[0][2:] == (19, 8)
    for count, (tensor, number, size) in enumerate(
        ((x, 16, 8), (x, 1, 8), (x[1:], 18, 8), (x.double(), 18, 8), (x, 18, 4))
    ):
        kernel[(3,)](tensor, number, SIZE=size, num_warps=1)
        assert Jit.compiled == count + 2
