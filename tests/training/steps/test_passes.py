"""A step in parts has the gradients of the whole batch, and advances the schedule once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import varalign
from torch import Tensor
from varalign.cli import main
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.towers import Towers
from varalign.options.config import TrainConfig
from varalign.training.steps.passes import has_batch_norms
from varalign.training.steps.step_guard import StepGuard

ClipFolder = Callable[..., tuple[Path, Any]]


class Ended(BaseException):
    """Ends a run after two steps."""


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_parts_have_the_gradients_of_the_whole(
    clip_folder: ClipFolder,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Any,
    tolerance: float,
) -> None:
    """A CLIP's last block and an LSTM with dropout train. In bfloat16 the sums over a part are rounded one by one."""
    clip, _ = clip_folder()
    plain, found = StepGuard._make, []

    def kept(self: StepGuard, value: Tensor) -> Tensor:
        gradients = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        found.append((gradients, copy.deepcopy(self.loss.state_dict())))
        if len(found) % 2 == 0:
            raise Ended
        return plain(self, value)

    monkeypatch.setattr(StepGuard, "_make", kept)
    for accumulate in (1, 8):
        config = TrainConfig(
            data=str(image_folder),
            image_encoder=f"clip:ViT-tiny@{clip}",
            unfreeze=1,
            accumulate=accumulate,
            precision=precision,
            lr=1e-6,
            epochs=1,
            batch_size=20,
            out=str(tmp_path / f"run-{accumulate}"),
            hub_correction="off",
            device="cpu",
        )
        with pytest.raises(Ended):
            varalign.train(config, say=lambda _: None, progress=False)
    assert len(found) == 4
    for (whole, schedule), (parts, other) in zip(found[:2], found[2:], strict=True):
        assert parts.keys() == whole.keys()
        assert any("image_encoder" in name for name in whole) and any("text_encoder.lstm" in name for name in whole)
        largest = max(float(gradient.abs().max()) for gradient in whole.values())
        for name, gradient in whole.items():
            assert float((parts[name] - gradient).abs().max()) < tolerance * largest, name
        for name, value in schedule.items():
            torch.testing.assert_close(other[name], value, rtol=tolerance, atol=0)


def test_batch_norms_count_where_they_train() -> None:
    towers = Towers(build_image_encoder("resnet18"), build_text_encoder("lstm", captions=["a dog"]))
    model = DualEncoder(towers, HeadShape(8)).eval()
    assert has_batch_norms(model) and not any(module.training for module in model.modules())
    model.freeze("image")
    assert not has_batch_norms(model)
    model.freeze("image", unfreeze=1)
    assert has_batch_norms(model)


def test_a_frozen_text_encoder_and_a_few_of_the_images_go_with_parts(
    image_folder: Path, bert_folder: Path, tmp_path: Path
) -> None:
    places = (
        f"--data {image_folder} --out {tmp_path / 'run'} --cache {tmp_path / 'cache'} --text-encoder bert:{bert_folder}"
    )
    sizes = "--image-size 32 --batch-size 20 --dataset-size 40 --epochs 1 --accumulate 2 --device cpu"
    assert main(["train", *places.split(), *sizes.split()]) == 0
