"""Features of image models are those of transformers, on the same pixels and from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_models import write_image_model
from PIL import Image
from text_models import change_json, write_model
from varalign.data.images import load_images
from varalign.encoders.build import (
    build_image_encoder,
    build_text_encoder,
    image_encoder_from_config,
    text_encoder_from_config,
)
from varalign.encoders.hf_image import _preprocess, _processor
from varalign.encoders.specs import EncoderSpec, SpecError, WeightsUnavailable

FAMILIES = [
    *("clip", "clip-vision", "siglip", "dinov2", "dinov3", "dinov3-convnext", "vit", "vit-classifier", "convnext")
]


def reference(folder: Path, family: str, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
    """transformers' own features of pixels."""
    from transformers import AutoModel, CLIPVisionModelWithProjection

    with torch.no_grad():
        if family == "clip-vision":
            found = CLIPVisionModelWithProjection.from_pretrained(folder).eval()(pixels, **options).image_embeds
        elif family in ("clip", "siglip"):
            model = AutoModel.from_pretrained(folder).eval()
            found = model.get_image_features(pixel_values=pixels, **options)
            found = getattr(found, "pooler_output", found)
        else:
            output = AutoModel.from_pretrained(folder).eval()(pixels, **options)
            found = output.last_hidden_state[:, 0] if family == "vit-classifier" else output.pooler_output
    wanted: torch.Tensor = found
    return wanted


def pictures(folder: Path) -> list[Path]:
    """Smooth pictures of several shapes, as photographs are."""
    random = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate([(90, 60), (60, 90), (64, 64), (200, 120)]):
        coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_transformers(tmp_path: Path, family: str) -> None:
    from transformers import AutoImageProcessor

    folder = write_image_model(tmp_path / "m", family)
    encoder = build_image_encoder(f"hf:{folder}").eval()
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found = encoder(pixels)
    torch.testing.assert_close(found, reference(folder, family, pixels), atol=1e-5, rtol=0)
    assert encoder.feature_dim == found.shape[1]
    assert len(encoder.blocks()) == (4 if "convnext" in family else 2)
    files = pictures(tmp_path)
    processed = AutoImageProcessor.from_pretrained(folder)([Image.open(file) for file in files], return_tensors="pt")
    wanted = reference(folder, family, processed["pixel_values"])
    read, _ = load_images(files, encoder.preprocess)
    with torch.no_grad():
        cosines = torch.cosine_similarity(encoder(torch.from_numpy(read)), wanted)
    assert cosines.min() >= 0.999
    edge = (encoder.preprocess.size - 32) // 2
    inner = read[:, :, edge : edge + 32, edge : edge + 32]
    assert np.abs(inner - processed["pixel_values"].numpy()).mean() < 0.02


@pytest.mark.parametrize(("short", "crop"), [(36, 32), (37, 32), (32, 32), (33, 30)])
@pytest.mark.parametrize("family", ["dinov2", "convnext"])
def test_odd_margins_are_halved_as_transformers_does(tmp_path: Path, family: str, short: int, crop: int) -> None:
    """Pictures already of the resized height, so that only the place of the crop can differ: every level is equal."""
    from transformers import AutoImageProcessor

    folder, side = write_image_model(tmp_path / "m", family), {"height": crop, "width": crop}
    if family == "dinov2":
        change_json(folder / "preprocessor_config.json", size={"shortest_edge": short}, crop_size=side)
    else:
        change_json(folder / "preprocessor_config.json", size={"shortest_edge": crop}, crop_pct=crop / (short + 0.5))
    preprocess, inner = _preprocess(_processor(folder, EncoderSpec("hf", str(folder))), None, EncoderSpec("hf", "m"))
    assert (preprocess.size, inner) == (short, crop)
    random, files = np.random.default_rng(0), []
    for extra in range(8):
        for shape in ((short, short + extra, 3), (short + extra, short, 3)):
            files.append(tmp_path / f"{len(files)}.png")
            Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(files[-1])
    pixels, _ = load_images(files, preprocess)
    edge = (short - crop) // 2
    found = pixels[:, :, edge : edge + crop, edge : edge + crop]
    wanted = AutoImageProcessor.from_pretrained(folder)([Image.open(file) for file in files], return_tensors="pt")
    np.testing.assert_allclose(found, wanted["pixel_values"].numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["clip", "dinov2", "dinov3", "vit", "siglip", "convnext"])
def test_another_image_size_is_resampled(tmp_path: Path, family: str) -> None:
    folder = write_image_model(tmp_path / "m", family)
    encoder = build_image_encoder(f"hf:{folder}", image_size=48).eval()
    pixels = torch.randn(2, 3, 48, 48)
    options = {} if family in ("dinov2", "dinov3", "convnext") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        found = encoder(pixels)
    torch.testing.assert_close(found, reference(folder, family, pixels, **options), atol=1e-5, rtol=0)
    assert encoder.preprocess.size == {"dinov2": 54, "convnext": 54}.get(family, 48)


@pytest.mark.parametrize("family", ["clip", "dinov2", "vit-classifier"])
def test_a_saved_run_needs_no_folder(tmp_path: Path, family: str) -> None:
    folder = write_image_model(tmp_path / "m", family)
    encoder = build_image_encoder(f"hf:{folder}", image_size=40).eval()
    config = json.loads(json.dumps(encoder.to_config()))
    restored = image_encoder_from_config(config, load_weights=True)
    assert restored.weights_fingerprint() == encoder.weights_fingerprint()
    assert restored.preprocess == encoder.preprocess
    shutil.rmtree(folder)
    again = image_encoder_from_config(config, load_weights=False)
    again.load_state_dict(encoder.state_dict())
    pixels = torch.randn(2, 3, encoder.preprocess.size, encoder.preprocess.size)
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels), encoder(pixels))
    assert again.weights_fingerprint() == encoder.weights_fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 1}, r"resizes by resample 1 \(2 and 3 are bilinear and bicubic\), which varalign has not"),
        ({"do_resize": False}, "does not resize"),
        ({"do_center_crop": False}, "makes no squares"),
        ({"crop_size": {"height": 32, "width": 16}}, "makes no squares"),
        ({"do_pad": True}, "sets do_pad, which varalign has not"),
        ({"image_mean": [0.5]}, r"normalises by image_mean .*0.5.*, not three numbers each"),
    ],
)
def test_preprocessing_that_varalign_has_not_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_image_model(tmp_path / "m", "dinov2")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(SpecError, match=message):
        build_image_encoder(f"hf:{folder}")


def test_a_rescale_factor_is_obeyed(tmp_path: Path) -> None:
    folder = write_image_model(tmp_path / "m", "vit")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1]}))
    preprocess = build_image_encoder(f"hf:{folder}").preprocess
    assert preprocess.mean == pytest.approx((0.5, 0.5, 0.5))
    assert preprocess.std == pytest.approx((0.25, 0.25, 0.25))


def test_what_is_refused(tmp_path: Path, nothing_local: Path) -> None:
    folder = write_image_model(tmp_path / "m", "vit")
    with pytest.raises(SpecError, match="its ViTModel takes no images of 4 x 4 pixels"):
        build_image_encoder(f"hf:{folder}", image_size=4)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(SpecError, match="lacks preprocessor_config.json or processor_config.json"):
        build_image_encoder(f"hf:{folder}")
    with pytest.raises(WeightsUnavailable, match="huggingface.co/facebook/dinov2-small .*--image-encoder hf:FOLDER"):
        build_image_encoder("hf:facebook/dinov2-small")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_clip_hands_a_folder_of_transformers_over(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both towers of CLIP and SigLIP, whose vectors are those that transformers compares."""
    from transformers import AutoModel

    folder = write_image_model(tmp_path / "m", family)
    plain = write_model(tmp_path / "tokenizer", "roberta")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / file, folder)
    change_json(folder / "tokenizer_config.json", eos_token="dog")
    images = build_image_encoder(f"clip:ViT-B-32@{folder}").eval()
    texts = build_text_encoder(f"clip:ViT-B-32@{folder}").eval()
    assert f"'clip:ViT-B-32@{folder}' is read as hf:{folder}" in caplog.text
    assert images.spec == texts.spec == f"hf:{folder}"
    assert texts.tokenizer.max_length == 16
    model, pixels = AutoModel.from_pretrained(folder).eval(), torch.randn(2, 3, 32, 32)
    batch = texts.tokenizer(["do a", "a"])
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask().astype(np.int64))
    with torch.no_grad():
        wanted = model.get_text_features(input_ids=ids, attention_mask=mask if family == "clip" else None)
        wanted = getattr(wanted, "pooler_output", wanted)
        found = texts(ids, torch.from_numpy(batch.lengths))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(images(pixels), reference(folder, family, pixels), atol=1e-5, rtol=0)
    assert texts.feature_dim == images.feature_dim == found.shape[1]
    again = text_encoder_from_config(texts.to_config(), tokenizer=texts.tokenizer, load_weights=False).eval()
    again.load_state_dict(texts.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids, torch.from_numpy(batch.lengths)), found)
