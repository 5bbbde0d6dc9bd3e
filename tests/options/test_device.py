"""Which device and floating-point type a run takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from varalign.options.declaration import ConfigError
from varalign.options.device import pick_device, pick_precision, training_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two CUDA devices, bfloat16 and no Apple GPU, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def test_the_fastest_device_is_taken_where_none_is_named(machine: pytest.MonkeyPatch) -> None:
    assert pick_device(None) == CUDA
    machine.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None) == CPU
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device(None) == torch.device("mps")


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_named_device_is_taken(machine: pytest.MonkeyPatch, name: str) -> None:
    assert pick_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("abacus", "--device 'abacus' is not known: it takes cpu, cuda, cuda:N or mps"),
        ("meta", "--device 'meta' is not known"),
        ("", "--device '' is not known"),
        ("cuda:2", "--device cuda:2: torch sees 2 CUDA devices here"),
        ("mps", "--device mps: torch sees no Apple GPU here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(machine: pytest.MonkeyPatch, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pick_device(name)
    assert str(caught.value).startswith(words)


def test_precision_by_name_and_by_device(machine: pytest.MonkeyPatch) -> None:
    assert pick_precision("auto", CUDA) is torch.bfloat16
    assert pick_precision("auto", CPU) is pick_precision("fp32", CUDA) is torch.float32
    assert pick_precision("bf16", CPU) is torch.bfloat16 and pick_precision("fp16", CUDA) is torch.float16
    machine.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert pick_precision("auto", CUDA) is torch.float32
    with pytest.raises(ConfigError, match="--precision fp16 needs a GPU"):
        pick_precision("fp16", CPU)


@pytest.mark.parametrize(("capability", "wanted"), [("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)])
def test_encoders_train_in_bfloat16_where_the_cpu_multiplies_it(
    machine: pytest.MonkeyPatch, capability: str, wanted: torch.dtype
) -> None:
    machine.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert training_precision("auto", CPU) is wanted and training_precision("auto", CUDA) is torch.bfloat16
    assert training_precision("fp32", CPU) is torch.float32


def test_the_room_of_options_imports_no_torch() -> None:
    code = (
        "import pkgutil, sys, varalign.options as room\n"
        "from importlib import import_module\n"
        "for module in pkgutil.iter_modules(room.__path__):\n    import_module(f'varalign.options.{module.name}')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
