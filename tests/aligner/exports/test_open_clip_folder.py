"""Exports that open_clip reads: one CLIP with linear heads, the rest refused with what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import varalign
from exported import Train, images_of
from PIL import Image
from safetensors.torch import load_file
from varalign.cli import main
from varalign.data.errors import DataError


@pytest.mark.parametrize(
    "options", [{"hub_correction": "train"}, {"head": "linear", "voices": "none", "epochs": 1}, {"voices": "zero-shot"}]
)
def test_the_library_gives_our_vectors(
    options: dict[str, Any], trained: Train, image_folder: Path, tmp_path: Path
) -> None:
    model = varalign.load(trained("clip", **options), device="cpu")
    made = model.export(tmp_path / "out", to="open_clip")
    assert max(made["differences"].values()) < 1e-5
    name = f"local-dir:{made['folder']}"
    library, _, preprocess = open_clip.create_model_and_transforms(name)
    files, texts = images_of(image_folder), ["A red square, left, on blue .", "a dog"]
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(file)) for file in files])
        images = library.eval().encode_image(pixels, normalize=True)
        words = library.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    assert torch.allclose(words, torch.from_numpy(model.embed_texts(texts)), atol=1e-5)
    # torchvision's scaling of a Pillow image is Pillow's; one level in two thousand differs from ours.
    assert torch.allclose(images, torch.from_numpy(model.embed_images(files)), atol=1e-3)
    correction = model.hub.correction
    assert bool(made["notes"]) == (correction is not None)
    if correction is not None:  # the formula that the card states
        bank = load_file(tmp_path / "out" / "hub_correction.safetensors")
        mean, covariance, tau = bank["images.mean"], bank["images.covariance"], correction.tau
        b = images @ mean + tau / 2 * ((images @ covariance) * images).sum(1)
        wanted = varalign.load(trained("clip", **options), device="cpu")._subject(False).hub.correction
        assert wanted is not None and torch.allclose(b, wanted.image_prior(images), atol=1e-5)


def test_what_it_cannot_hold_is_refused(trained: Train, voices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = voices.parent / "never"
    assert main(["export", str(voices), str(out), "--to", "open_clip"]) == 2
    assert "both of one CLIP" in capsys.readouterr().err
    members = trained("clip", voices="closed-form,members", members=2, epochs=1)
    with pytest.raises(DataError, match="closed-form and 2 members.: train with --voices closed-form, or with --head"):
        varalign.load(members, device="cpu").export(out, to="open_clip")
    assert not out.exists()
