"""Archives and pickles become safetensors without anything in them being run."""

from __future__ import annotations

import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from varalign.data.errors import DataError
from varalign.encoders.conversion import convert
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
    with pytest.raises(DataError, match="is there already; name another file, or pass --overwrite"):
        convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    convert(tmp_path / "in.pt", tmp_path / "out.safetensors", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.safetensors"]


# Archives made to cost more than they weigh.

RECORD = b"c__torch__\nM\n)\x81"  # GLOBAL, EMPTY_TUPLE, NEWOBJ: a module without attributes


def named(**attributes: bytes) -> bytes:
    """Operations that give the module on the stack its attributes."""
    items = b"".join(
        b"X" + len(name).to_bytes(4, "little") + name.encode() + value for name, value in attributes.items()
    )
    return b"}(" + items + b"ub"


def write_archive(path: Path, pickled: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + pickled + b".", zipfile.ZIP_STORED)
        archive.writestr("m/constants.pkl", b"", zipfile.ZIP_STORED)
        for key, data in (storages or {}).items():
            archive.writestr(f"m/data/{key}", data)
    return path


def tensor(key: str, stored: int, size: int, stride: int = 1) -> bytes:
    """Operations that make a float tensor of `size` over `stored` elements."""

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    text = (b"X\x07\0\0\0storage", b"ctorch\nFloatStorage\n", b"X\x01\0\0\0" + key.encode(), b"X\x03\0\0\0cpu")
    storage = b"(" + b"".join(text) + number(stored) + b"tQ"
    made = storage + number(0) + number(size) + b"\x85" + number(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + made + b"\x89ccollections\nOrderedDict\n)RtR"


def refused(path: Path, reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        convert(path, path.with_name("out.safetensors"))
    assert not list(path.parent.glob("*out.safetensors*"))


def test_what_the_made_archives_are_variants_of_is_read(tmp_path: Path) -> None:
    raw = torch.arange(4.0)
    path = write_archive(
        tmp_path / "in.pt",
        RECORD + named(weight=tensor("0", 4, 4), child=RECORD + named(half=tensor("0", 4, 2))),
        {"0": raw.numpy().tobytes()},
    )
    found, _ = read_torchscript(path)
    assert found.keys() == {"weight", "child.half"}
    assert torch.equal(found["weight"], raw) and torch.equal(found["child.half"], raw[:2])


@pytest.mark.parametrize("size", [5, 1 << 30])
def test_a_tensor_has_no_more_elements_than_are_stored(tmp_path: Path, size: int) -> None:
    """2^30 elements of stride 0 over 16 bytes would be a file of 4.3 GB."""
    pickled = RECORD + named(weight=tensor("0", 4, size, stride=0))
    refused(write_archive(tmp_path / "in.pt", pickled, {"0": bytes(16)}), f"{size:,} elements over 4 stored ones")
    torch.save({"weight": torch.ones(4).as_strided((size,), (0,))}, tmp_path / "state.pt")
    refused(tmp_path / "state.pt", "has more elements than the file stores")


def test_many_tensors_over_the_same_bytes_are_limited(tmp_path: Path) -> None:
    many = {f"w{number}": tensor("0", 4096, 4096) for number in range(100)}
    refused(write_archive(tmp_path / "in.pt", RECORD + named(**many), {"0": bytes(16384)}), "stored ones; refused")
    shared = torch.ones(4096)
    torch.save({name: shared.view(64, 64).t() for name in many}, tmp_path / "state.pt")
    refused(tmp_path / "state.pt", "has more elements than the file stores")


def test_tensors_are_stored_and_not_deflated(tmp_path: Path) -> None:
    """A deflated entry of gigabytes of zeros weighs megabytes."""
    pickled = RECORD + named(weight=tensor("0", 1 << 20, 4))
    refused(
        write_archive(tmp_path / "in.pt", pickled, {"0": bytes(4 << 20)}, compression=zipfile.ZIP_DEFLATED),
        "data/0 is compressed, or of another size",
    )
    refused(
        write_archive(tmp_path / "larger.pt", RECORD + named(w=tensor("0", 4, 4)), {"0": bytes(99)}), "another size"
    )
    torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "state.pt") as good, zipfile.ZipFile(tmp_path / "small.pt", "w", 8) as small:
        for name in good.namelist():
            small.writestr(name, good.read(name))
    refused(tmp_path / "small.pt", "its entries are compressed")


def doubled(depth: int) -> bytes:
    """A module whose two children are one, whose two children are one, and so on: 2^depth paths."""
    pickled = RECORD + named(weight=tensor("0", 4, 4)) + b"q\x00"
    for level in range(depth):
        child = b"h" + bytes([level])
        pickled += RECORD + named(a=child, b=child) + b"q" + bytes([level + 1])
    return pickled


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (RECORD + b"q\x00" + named(a=b"h\x00"), "modules more than 64 deep"),  # a module within itself
        (doubled(100), "more than 100,000 modules|modules more than 64 deep"),
        (doubled(40), "more than 100,000 modules"),
        (b"(" * 1_000_000, "not what torch.jit writes"),
        (b"}(" + b")" + b"\x85" * 1_000_000 + b"Nu", "a tuple in the place of a str"),  # its hash overflows the stack
        (b"N" + b"r\xff\xff\xff\x7f", "holds no tensors"),  # the 2^31st entry of a memo that is a table elsewhere
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", "not what torch.jit writes"),  # 2^63 bytes
        (RECORD + named(weight=tensor("0", 4, -1)), "not what torch.jit writes"),
        (RECORD + named(weight=tensor("1", 4, 4)), "not a whole TorchScript archive"),
        (b"cbuiltins\neval\nX\x01\0\0\x001\x85R", "calls for builtins.eval, which no tensor needs"),
        (b"ccollections\nOrderedDict\n)R)R", "a OrderedDict is called"),
    ],
)
def test_work_without_end_is_refused(tmp_path: Path, pickled: bytes, reason: str) -> None:
    refused(write_archive(tmp_path / "in.pt", pickled, {"0": bytes(16)}), reason)


def test_openais_sizes_are_numbers_and_names_are_text(tmp_path: Path) -> None:
    sizes = {name: torch.tensor(float("nan")) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({"proj": torch.ones(1), **sizes}, tmp_path / "in.pt")
    refused(tmp_path / "in.pt", "input_resolution is no whole number")
    torch.save({"proj": torch.ones(1), **dict.fromkeys(sizes, torch.ones(2))}, tmp_path / "in.pt")
    refused(tmp_path / "in.pt", "input_resolution is no whole number")
    torch.save({"\ud800": torch.ones(1)}, tmp_path / "in.pt")
    refused(tmp_path / "in.pt", "cannot be written")


@pytest.fixture(scope="module")
def good_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "good.pt"
    torch.jit.save(torch.jit.script(Archived()), path)
    return path


EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


def edited(data: bytes, edits: list[tuple[float, int]]) -> bytes:
    """The bytes with some replaced, each at a share of the length."""
    changed = bytearray(data)
    for place, value in edits if changed else ():
        changed[int(place * len(changed))] = value
    return bytes(changed)


@pytest.mark.parametrize("examples", [200, pytest.param(20_000, marks=pytest.mark.long)])
def test_damaged_archives_are_read_or_refused(good_archive: Path, tmp_path: Path, examples: int) -> None:
    """Any bytes: tensors no larger than the archive allows, or one of our errors."""
    with zipfile.ZipFile(good_archive) as good:
        entries = {name: good.read(name) for name in good.namelist()}
    path, target = tmp_path / "in.pt", tmp_path / "out.safetensors"

    @settings(max_examples=examples, deadline=None)
    @given(EDITS, st.sampled_from(["file", "/data.pkl", "/code"]))
    def converts(edits: list[tuple[float, int]], where: str) -> None:
        if where == "file":
            path.write_bytes(edited(good_archive.read_bytes(), edits))
        else:
            with zipfile.ZipFile(path, "w") as bad:
                for name, data in entries.items():
                    bad.writestr(name, edited(data, edits) if where in name else data)
        target.unlink(missing_ok=True)
        with suppress(WeightsError):
            assert convert(path, target).bytes <= 8 * path.stat().st_size

    converts()
