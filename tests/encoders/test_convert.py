"""Archives and pickles become safetensors without anything in them being run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from varalign.encoders.convert import convert
from varalign.encoders.torchscript import read_torchscript
from varalign.encoders.weights import WeightsError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Archived(nn.Module):
    """Parameters, buffers, a tensor that is neither, half precision, a transposed view, and QuickGELU's factor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4).half().float())
        self.fp16 = nn.Parameter(torch.randn(3, 2, dtype=torch.float16))
        self.view = nn.Parameter(torch.randn(4, 5).t())
        self.mask = torch.ones(2)
        self.empty = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.linear(x))
        return self.inner(x * torch.sigmoid(1.702 * x)) @ self.view.t() + self.mask[0]


class OpenAI(nn.Module):
    """The three sizes that OpenAI's archives carry as tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(3, 2).half())
        for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_archive_gives_its_state_dict(tmp_path: Path, how: str) -> None:
    torch.manual_seed(0)
    model = Archived().eval()
    archive = torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.randn(2, 4))
    torch.jit.save(archive, tmp_path / "in.pt")
    done = convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    found, wanted = load_file(tmp_path / "out.safetensors"), archive.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert done.tensors == len(wanted)
    assert str(done).startswith(f"{tmp_path / 'out.safetensors'}: {len(wanted)} tensors, ")


def test_the_activation_and_openais_sizes_become_metadata(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Archived()), tmp_path / "quick.pt")
    convert(tmp_path / "quick.pt", tmp_path / "quick.safetensors")
    torch.jit.save(torch.jit.script(OpenAI()), tmp_path / "openai.pt")
    convert(tmp_path / "openai.pt", tmp_path / "openai.safetensors")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "plain.pt")
    convert(tmp_path / "plain.pt", tmp_path / "plain.safetensors")
    metadata = {}
    for name in ("quick", "openai", "plain"):
        with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
            metadata[name] = file.metadata()
    assert metadata["quick"] == {"format": "pt", "quick_gelu": "true"}
    assert metadata["plain"] == {"format": "pt"}
    assert metadata["openai"]["source"] == "openai"
    assert metadata["openai"]["quick_gelu"] == "true"
    assert metadata["openai"]["context_length"] == "77"
    assert list(load_file(tmp_path / "openai.safetensors")) == ["proj"]


def test_a_pickled_state_dict_keeps_dtypes_and_tied_weights(tmp_path: Path) -> None:
    tied = torch.randn(2, 3, dtype=torch.bfloat16)
    torch.save({"state_dict": {"a": tied, "b": tied, "c": tied.t()}}, tmp_path / "in.bin")
    convert(tmp_path / "in.bin", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["a"], tied)
    assert torch.equal(found["b"], tied)
    assert torch.equal(found["c"], tied.t())


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, malicious: Any) -> None:
    made = tmp_path / "made"
    torch.save({"a": malicious(made)}, tmp_path / "in.pt")
    with pytest.raises(WeightsError, match="refused"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert not made.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_archive_is_refused_and_not_run(tmp_path: Path, malicious: Any, protocol: int) -> None:
    made = tmp_path / "made"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "in.pt", "w") as bad:
        for name in good.namelist():
            evil = name.endswith("/data.pkl")
            bad.writestr(name, pickle.dumps(malicious(made), protocol) if evil else good.read(name))
    with pytest.raises(WeightsError, match=rf"calls for {os.mkdir.__module__}\.mkdir, which no tensor needs; refused"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert not made.exists()


def test_an_archive_cut_short(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(8, 8)), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "in.pt", "w") as short:
        for name in good.namelist():
            data = good.read(name)
            short.writestr(name, data[: len(data) // 2] if "/data/" in name else data)
    with pytest.raises(WeightsError, match="cut short"):
        read_torchscript(tmp_path / "in.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(WeightsError, match="not a whole TorchScript archive"):
        read_torchscript(tmp_path / "text.pt")


def test_targets(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pt")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        convert(tmp_path / "none.pt", tmp_path / "out.safetensors")
    with pytest.raises(WeightsError, match=r"is a \.safetensors file, not out\.pt"):
        convert(tmp_path / "in.pt", tmp_path / "out.pt")
    with pytest.raises(FileNotFoundError, match="no folder"):
        convert(tmp_path / "in.pt", tmp_path / "none" / "out.safetensors")
    convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    with pytest.raises(WeightsError, match="is there already"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.safetensors"]
