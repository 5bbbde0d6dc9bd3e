"""Weight files are read as tensors; whatever would have to be run is refused and not run."""

from __future__ import annotations

import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from varalign.encoders.conversion import convert
from varalign.encoders.specs import SpecError
from varalign.encoders.weights import (
    WeightsError,
    is_torchscript,
    load_exactly,
    named_file,
    read_state_dict,
    read_weights,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_state_dicts(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / name))


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


LOSS = torch.tensor(0.5)
OTHER = {"a.weight": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (STATE, ""),
        ({"state_dict": STATE, "epoch": 3, "loss": LOSS}, "'state_dict'"),
        ({"model_state_dict": STATE, "optimizer": {"state": {0: {"step": LOSS}}}}, "'model_state_dict'"),
        ({"net": STATE, "acc": 71.2}, "'net'"),
        ({"ema": STATE}, "'ema'"),
        ({"model": STATE, "ema": OTHER}, "'model' of its parts model, ema"),
        ({"model": {"state_dict": STATE}, "loss": LOSS}, "'model'; 'state_dict'"),
        ({"model": {"width": 3}, "state_dict": STATE}, "'state_dict'"),
        (prefixed("module._orig_mod."), "prefix 'module.' removed; prefix '_orig_mod.' removed"),
        (prefixed("_orig_mod.module."), "prefix '_orig_mod.' removed; prefix 'module.' removed"),
        (
            {"state_dict": prefixed("model._orig_mod.")},
            "'state_dict'; prefix 'model.' removed; prefix '_orig_mod.' removed",
        ),
        ({"n_averaged": torch.tensor(4), **prefixed("module.")}, "prefix 'module.' removed"),
    ],
)
def test_checkpoints_as_training_scripts_write_them(tmp_path: Path, content: Any, taken: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert same(weights.state)
    assert weights.taken == taken
    done = convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert done.tensors == 2
    assert same(load_file(tmp_path / "w.safetensors"))
    assert str(done).endswith(f"w.pt{f' ({taken})' if taken else ''}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"loss": LOSS}, r"holds no tensors but single numbers \(loss\)"),
        ({"model": {"loss": LOSS}}, r"holds no tensors but single numbers \(loss\)"),
        ({"loss": LOSS, "generator": STATE, "critic": OTHER}, "its tensors are under 'generator', 'critic', and a"),
        ({"scale": torch.ones(1), "encoder": {"model": STATE}}, "its tensors are under 'encoder', and a model is"),
        ({"model": [torch.ones(1)], "epoch": 3}, "holds no tensors$"),
    ],
)
def test_a_checkpoint_without_a_model_that_can_be_told_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "w.pt", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert same(read_state_dict(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, malicious: Any, zipped: bool) -> None:
    made = tmp_path / "made"
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1), "b": malicious(made)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="Python objects besides tensors, which would have to be run; refused"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(malicious(made)))
    with pytest.raises(WeightsError):
        read_state_dict(path)
    assert not made.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused_with_the_line_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    assert is_torchscript(path)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    assert f"`varalign convert {path} {tmp_path / 'w.safetensors'}`" in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("w.pt", b""), ("w.pt", b"text"), ("w.safetensors", b"text")])
def test_broken_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=r"is not a whole|is not a weights file"):
        read_state_dict(tmp_path / name)


def test_cut_short(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    save_file(STATE, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError):
            read_state_dict(tmp_path / name)


def test_no_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_state_dict(tmp_path / "w.pt")
    torch.save([torch.ones(1)], tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds a list, not a state dict"):
        read_state_dict(tmp_path / "w.pt")


def test_named_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'resnet18@x.pt': weights file 'x.pt' is not there"):
        named_file("x.pt", "resnet18@x.pt")
    with pytest.raises(SpecError, match="is a folder, not a file"):
        named_file(str(tmp_path), "resnet18@folder")


def test_load_exactly_says_what_does_not_fit(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(WeightsError) as caught:
        load_exactly(layer, {"weight": torch.ones(3, 3), "other": torch.ones(1)}, tmp_path / "w.pt", "spec")
    message = str(caught.value)
    assert "1 missing (bias); 1 unknown (other); 1 of another shape (weight (3, 3) instead of (2, 3))" in message
    load_exactly(layer, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "w.pt", "spec")
    assert torch.equal(layer.weight, torch.ones(2, 3))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_nested_too_deep_is_refused(tmp_path: Path, zipped: bool) -> None:
    """The hash of a tuple in a tuple, a million times, would overflow the stack and end the process."""
    path, pickled = tmp_path / "w.pt", b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"Nu\xff"
    if zipped:
        torch.save(STATE, tmp_path / "good.pt")
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                bad.writestr(name, pickled if name.endswith("data.pkl") else good.read(name))
    else:
        path.write_bytes(pickled)
    with pytest.raises(WeightsError, match="nested more than 500 deep"):
        read_state_dict(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_save_is_not_deep(tmp_path: Path, zipped: bool) -> None:
    layer = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    many = {f"w{number}": torch.ones(1) for number in range(3000)}
    content = {"model": {**layer.state_dict(), **many}, "optimizer": optimiser.state_dict(), "args": [1, (2, {"a": 3})]}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert len(read_state_dict(tmp_path / "w.pt")) == 3002


def test_tensors_without_bytes_of_their_own_are_refused(tmp_path: Path) -> None:
    for tensor in (torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(1).expand(1 << 40)):
        torch.save({"a": tensor}, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="has more elements than the file stores"):
            read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("examples", [60, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "w.safetensors"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str, examples: int) -> None:
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=name == "zip.pt")
    whole = path.read_bytes()

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=6))
    def reads(edits: list[tuple[int, int]]) -> None:
        changed = bytearray(whole)
        for place, value in edits:
            changed[place] = value
        path.write_bytes(changed)
        with suppress(WeightsError):
            assert sum(t.numel() * t.itemsize for t in read_state_dict(path).values()) <= 8 * len(changed)

    reads()
