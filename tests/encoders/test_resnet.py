"""ResNet-18 is torchvision's, whatever its weights come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18
from varalign.encoders.build import build_image_encoder, image_encoder_from_config
from varalign.encoders.resnet import IMAGENET_WEIGHTS
from varalign.encoders.specs import SpecError, WeightsUnavailable
from varalign.encoders.weights import WeightsError


def reference(seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module]:
    """torchvision's model whole, and without its classifier."""
    torch.manual_seed(seed)
    whole, cut = resnet18(num_classes=10), resnet18()
    cut.fc = torch.nn.Identity()
    cut.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")})
    return whole, cut.eval()


def test_a_torchvision_file_gives_torchvisions_features(tmp_path: Path) -> None:
    whole, cut = reference()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    encoder = build_image_encoder(f"resnet18@{tmp_path / 'w.pth'}", image_size=64).eval()
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), cut(pixels))
    assert encoder.feature_dim == 512
    assert encoder.has_source
    assert len(encoder.blocks()) == 4
    assert (encoder.preprocess.size, encoder.preprocess.interpolation) == (64, "bilinear")
    assert encoder.preprocess.mean == (0.485, 0.456, 0.406)


def test_first_weights_gradients_and_statistics_are_torchvisions() -> None:
    torch.manual_seed(5)
    theirs = resnet18()
    theirs.fc = torch.nn.Identity()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    ours = build_image_encoder("resnet18")
    assert torch.equal(torch.rand(3), drawn), "as many random numbers are drawn"
    assert [f"net.{name}" for name in theirs.state_dict()] == list(ours.state_dict())
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for model in (theirs, ours):
        model.train()(pixels).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    assert ResNet18_Weights.IMAGENET1K_V1.url == IMAGENET_WEIGHTS


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_without_batch_norm_counters_gives_the_same_features(tmp_path: Path, zipped: bool) -> None:
    """torchvision's published file has 102 tensors (46.8 MB): it is older than BatchNorm's counters."""
    whole, cut = reference()
    state = {name: value for name, value in whole.state_dict().items() if "num_batches_tracked" not in name}
    assert len(state) == 102
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    encoder = build_image_encoder(f"resnet18@{tmp_path / 'w.pth'}").eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), cut(pixels))


def test_random_weights_come_from_the_seed() -> None:
    prints = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        encoder = build_image_encoder("resnet18")
        prints.append(encoder.weights_fingerprint())
    assert prints[0] == prints[1] != prints[2]
    assert encoder.preprocess.size == 224
    assert not encoder.has_source


def test_imagenet_weights_lie_where_torch_hub_keeps_them(nothing_local: Path) -> None:
    whole, cut = reference(3)
    path = nothing_local / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save(whole.state_dict(), path)
    encoder = build_image_encoder("resnet18@imagenet").eval()
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), cut(pixels))
    assert encoder.spec == "resnet18@imagenet"


def test_imagenet_weights_that_are_not_to_be_had(nothing_local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable) as caught:
        build_image_encoder("resnet18@imagenet")
    path = nothing_local / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    assert str(caught.value) == (
        "'resnet18@imagenet': its weights are not on this machine and HF_HUB_OFFLINE is set; "
        f"download https://download.pytorch.org/models/resnet18-f37072fd.pth, put it at {path} "
        "(or anywhere, and pass --image-encoder resnet18@FILE)"
    )


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is not there"):
        build_image_encoder(f"resnet18@{tmp_path / 'none.pth'}")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"do not fit this architecture: 100 missing \(conv1.weight, .*1 unknown \(a\)"
    ):
        build_image_encoder(f"resnet18@{tmp_path / 'w.pth'}")
    with pytest.raises(ValueError, match="image_size is a number of pixels, at least 1, not 0"):
        build_image_encoder("resnet18", image_size=0)


def test_config_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = reference()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    monkeypatch.chdir(tmp_path)
    encoder = build_image_encoder("resnet18@w.pth", image_size=48)
    monkeypatch.chdir("/")
    again = image_encoder_from_config(encoder.to_config(), load_weights=True)
    assert again.weights_fingerprint() == encoder.weights_fingerprint()
    assert again.preprocess == encoder.preprocess
    empty = image_encoder_from_config(encoder.to_config(), load_weights=False)
    assert empty.weights_fingerprint() != encoder.weights_fingerprint()
    empty.load_state_dict(encoder.state_dict())
    assert empty.weights_fingerprint() == encoder.weights_fingerprint()
