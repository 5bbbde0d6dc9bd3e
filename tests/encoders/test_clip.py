"""CLIP's towers agree with open_clip's own on the same weights, however these are named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from varalign.data.images import Preprocess
from varalign.encoders.build import (
    build_image_encoder,
    build_text_encoder,
    image_encoder_from_config,
    text_encoder_from_config,
)
from varalign.encoders.conversion import convert
from varalign.encoders.specs import SpecError, WeightsUnavailable
from varalign.encoders.weights import WeightsError

TEXTS = ["a dog", "Two cats sit on the mat!", "", "a red ball in the snow " * 10]
Folder = Callable[..., tuple[Path, Any]]


def compare(spec: str, model: Any, size: int, context: int, tolerance: float) -> None:
    image_encoder, text_encoder = build_image_encoder(spec).eval(), build_text_encoder(spec).eval()
    pixels = torch.randn(3, 3, size, size)
    batch = text_encoder.tokenizer(TEXTS)
    ids, lengths = torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)
    wanted_ids = open_clip.SimpleTokenizer(context_length=context)(TEXTS)
    assert torch.equal(ids, wanted_ids)
    with torch.no_grad():
        torch.testing.assert_close(image_encoder(pixels), model.encode_image(pixels), atol=tolerance, rtol=0)
        wanted = model.encode_text(wanted_ids)
        torch.testing.assert_close(text_encoder(ids, lengths), wanted, atol=tolerance, rtol=0)
        # Short texts alone: their padding is cut off, the features stay.
        torch.testing.assert_close(text_encoder(ids[:3], lengths[:3]), wanted[:3], atol=tolerance, rtol=0)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_folder_gives_open_clips_features(clip_folder: Folder, quick_gelu: bool) -> None:
    folder, model = clip_folder(quick_gelu=quick_gelu)
    compare(f"clip:small@{folder}", model, 32, 20, 1e-5)


def test_texts_are_cut_at_max_length(clip_folder: Folder) -> None:
    folder, model = clip_folder()
    encoder = build_text_encoder(f"clip:small@{folder}", max_length=9).eval()
    batch = encoder.tokenizer(TEXTS)
    cut = open_clip.SimpleTokenizer(context_length=9)(TEXTS)
    assert torch.equal(torch.from_numpy(batch.ids), cut)
    with torch.no_grad():
        found = encoder(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
        wanted = model.encode_text(torch.nn.functional.pad(cut, (0, 11)))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    with pytest.raises(SpecError, match="reads at most 20 tokens: give --max-length 20"):
        build_text_encoder(f"clip:small@{folder}", max_length=21)


def test_the_folder_says_the_preprocessing(clip_folder: Folder) -> None:
    folder, _ = clip_folder()
    encoder = build_image_encoder(f"clip:small@{folder}")
    assert encoder.preprocess == Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", "squash")
    assert encoder.feature_dim == 24
    assert encoder.has_source


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"])
def test_pickled_weights_in_a_folder(clip_folder: Folder, name: str) -> None:
    folder, model = clip_folder()
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 1}, folder / name)
    compare(f"clip:small@{folder}", model, 32, 20, 1e-5)


def test_a_file_with_the_whole_vit_b_32_agrees_with_open_clip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32-quickgelu")).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    compare(f"clip:ViT-B-32-quickgelu@{tmp_path / 'w.safetensors'}", model, 224, 77, 1e-5)


def test_custom_text_state_dicts_are_the_same_model(clip_folder: Folder, clip_config: dict[str, Any]) -> None:
    folder, model = clip_folder()
    custom = open_clip.CustomTextCLIP(**clip_config)
    from open_clip.model import convert_to_custom_text_state_dict

    custom.load_state_dict(convert_to_custom_text_state_dict(model.state_dict()))
    save_file(custom.state_dict(), folder / "open_clip_model.safetensors")
    compare(f"clip:small@{folder}", model, 32, 20, 1e-5)


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip_config: dict[str, Any]) -> str:
    """A name that open_clip knows, for a small model."""
    from open_clip import factory
    from varalign.encoders import specs

    monkeypatch.setitem(factory._MODEL_CONFIGS, "small-32", clip_config)
    monkeypatch.setattr(specs, "clip_models", lambda: ("small-32",))
    tags = {
        "gelu": {"hf_hub": "o/gelu/"},
        "openai": {"hf_hub": "o/openai/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3)},
    }
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: tags.get(tag, {}))
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(tags))
    tags["gelu"]["mean"] = (0.1, 0.2, 0.3)
    return "small-32"


def test_a_tag_and_a_file_that_records_its_activation_are_one(
    small_model: str, clip_folder: Folder, nothing_local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = clip_folder(quick_gelu=True)
    weights = folder / "open_clip_model.safetensors"
    recorded = nothing_local / "recorded.safetensors"
    save_file(load_file(weights), recorded, metadata={"quick_gelu": "true"})
    put_into_cache(nothing_local / "hub", "o/openai", weights)
    by_tag = build_image_encoder(f"clip:{small_model}@openai").eval()
    by_file = build_image_encoder(f"clip:{small_model}@{recorded}").eval()
    assert by_tag.weights_fingerprint() == by_file.weights_fingerprint()
    assert by_tag.preprocess.mean == by_file.preprocess.mean == (0.1, 0.2, 0.3)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(by_tag(pixels), model.encode_image(pixels), atol=1e-5, rtol=0)


def test_a_file_without_record_gets_the_names_activation_and_a_line(
    small_model: str, clip_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder, model = clip_folder()
    path = folder / "open_clip_model.safetensors"
    with caplog.at_level(logging.WARNING, logger="varalign"):
        encoder = build_image_encoder(f"clip:{small_model}@{path}").eval()
    assert f"records no activation and gets GELU, as {small_model} says" in caplog.text
    assert f"clip:{small_model}-quickgelu@{path}" in caplog.text
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), model.encode_image(pixels), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_openais_archive_converted_is_quickgelu(small_model: str, clip_folder: Folder, tmp_path: Path) -> None:
    _, model = clip_folder(quick_gelu=True)
    sizes = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(20),
        "vocab_size": torch.tensor(49408),
    }
    archived = {**{name: tensor.half() for name, tensor in model.state_dict().items()}, **sizes}
    torch.jit.save(torch.jit.script(module_tree(archived)), tmp_path / "openai.pt")
    with pytest.raises(WeightsError, match=r"`varalign convert .*openai\.pt .*openai\.safetensors`"):
        build_image_encoder(f"clip:{small_model}@{tmp_path / 'openai.pt'}")
    convert(tmp_path / "openai.pt", tmp_path / "openai.safetensors")
    encoder = build_image_encoder(f"clip:{small_model}@{tmp_path / 'openai.safetensors'}").eval()
    model.load_state_dict({name: tensor.float() for name, tensor in archived.items() if name not in sizes})
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), model.encode_image(pixels), atol=1e-5, rtol=0)


def test_the_activation_is_in_the_fingerprint(clip_folder: Folder) -> None:
    one, _ = clip_folder("one")
    other, _ = clip_folder("other", quick_gelu=True)
    assert (one / "open_clip_model.safetensors").read_bytes() == (other / "open_clip_model.safetensors").read_bytes()
    prints = {build_image_encoder(f"clip:x@{folder}").weights_fingerprint() for folder in (one, other)}
    assert len(prints) == 2


def test_half_precision_files_become_float32(clip_folder: Folder) -> None:
    folder, model = clip_folder()
    path = folder / "open_clip_model.safetensors"
    save_file({k: v.half() for k, v in model.state_dict().items()}, path)
    encoder = build_image_encoder(f"clip:x@{folder}")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert torch.equal(encoder.state_dict()["visual.proj"], model.visual.proj.half().float())


def test_another_image_size_interpolates_as_open_clip_does(clip_folder: Folder, clip_config: dict[str, Any]) -> None:
    folder, _ = clip_folder()
    larger = {**clip_config, "vision_cfg": {**clip_config["vision_cfg"], "image_size": 48}}
    model = open_clip.CLIP(**larger).eval()
    open_clip.load_checkpoint(model, str(folder / "open_clip_model.safetensors"))
    encoder = build_image_encoder(f"clip:x@{folder}", image_size=48).eval()
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), model.encode_image(pixels), atol=1e-5, rtol=0)
    again = image_encoder_from_config(encoder.to_config(), load_weights=True)
    assert again.preprocess.size == 48
    assert again.weights_fingerprint() == encoder.weights_fingerprint()


def test_configs_build_it_again_with_the_folder_gone(clip_folder: Folder) -> None:
    folder, _ = clip_folder(quick_gelu=True)
    image_encoder, text_encoder = build_image_encoder(f"clip:x@{folder}"), build_text_encoder(f"clip:x@{folder}")
    image_config, text_config = (json.loads(json.dumps(e.to_config())) for e in (image_encoder, text_encoder))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    image_again = image_encoder_from_config(image_config, load_weights=False)
    text_again = text_encoder_from_config(text_config, tokenizer=text_encoder.tokenizer, load_weights=False)
    image_again.load_state_dict(image_encoder.state_dict())
    text_again.load_state_dict(text_encoder.state_dict())
    assert image_again.weights_fingerprint() == image_encoder.weights_fingerprint()
    assert text_again.weights_fingerprint() == text_encoder.weights_fingerprint()
    assert image_again.preprocess == image_encoder.preprocess
    with pytest.raises(
        SpecError, match=r"'clip:x@.*' is no file or folder, and none of open_clip's tags for x: it has none"
    ):
        image_encoder_from_config(image_config, load_weights=True)


def test_blocks_and_tail(clip_folder: Folder) -> None:
    folder, _ = clip_folder()
    image_encoder, text_encoder = build_image_encoder(f"clip:x@{folder}"), build_text_encoder(f"clip:x@{folder}")
    assert len(image_encoder.blocks()) == len(text_encoder.blocks()) == 3
    assert len(image_encoder.tail()) == len(text_encoder.tail()) == 2
    names = {name.partition(".")[0] for name in image_encoder.state_dict()}
    assert names == {"visual"}, "the text tower is not kept"


def test_what_is_refused(clip_folder: Folder, tmp_path: Path, clip_config: dict[str, Any]) -> None:
    with pytest.raises(
        SpecError, match=r"'opnai' is no file or folder, and none of open_clip's tags for ViT-B-32: openai, "
    ):
        build_image_encoder("clip:ViT-B-32@opnai")
    with pytest.raises(SpecError, match=r"has no open_clip_config\.json, which says what the model is$"):
        build_image_encoder(f"clip:ViT-B-32@{tmp_path}")
    folder, _ = clip_folder()
    with pytest.raises(SpecError, match="is another model than ViT-B-32: vision_cfg has head_width 16 instead of None"):
        build_image_encoder(f"clip:ViT-B-32@{folder}")
    with pytest.raises(WeightsError, match="do not fit this architecture"):
        build_text_encoder(f"clip:ViT-B-32-quickgelu@{folder / 'open_clip_model.safetensors'}")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(SpecError, match=r"has no weights: open_clip_model\.safetensors, "):
        build_text_encoder(f"clip:x@{folder}")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": clip_config}))
    save_file({"a": torch.ones(1)}, folder / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match="holds no tensors 'visual"):
        build_image_encoder(f"clip:x@{folder}")
    with pytest.raises(SpecError, match="is a CoCa model"):
        build_image_encoder("clip:coca_ViT-B-32@laion2b_s13b_b90k", load_weights=False)


def test_a_tag_with_no_hub_in_reach(nothing_local: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        build_text_encoder("clip:ViT-B-32@openai")
    message = str(caught.value)
    assert message.startswith("'clip:ViT-B-32@openai': its weights are not on this machine and cannot be downloaded (")
    assert message.endswith(
        "where there is a network, download open_clip_model.safetensors or open_clip_pytorch_model.bin from "
        "https://huggingface.co/timm/vit_base_patch32_clip_224.openai to this machine and pass "
        "--text-encoder clip:ViT-B-32-quickgelu@FILE"
    )


class Node(torch.nn.Module):
    """A module that only holds others and tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def module_tree(state: dict[str, torch.Tensor]) -> Node:
    """Modules whose state dict is `state`."""
    root = Node()
    for name, tensor in state.items():
        node, *path = root, *name.split(".")
        for part in path[:-1]:
            if not hasattr(node, part):
                node.add_module(part, Node())
            node = getattr(node, part)
        node.register_buffer(path[-1], tensor)
    return root


def put_into_cache(cache: Path, repo: str, weights: Path) -> None:
    """Lay a file into a Hugging Face cache as its client does."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / weights.name).write_bytes(weights.read_bytes())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (b"text", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "lacks embed_dim, vision_cfg or text_cfg"),
        ({"embed_dim": "x"}, "embed_dim 'x', but it must be a number from 1 on"),
        ({"vision_cfg": [1]}, "lacks embed_dim, vision_cfg or text_cfg"),
        ({"vision_cfg": {"width": "a"}}, "open_clip cannot build a model of its config"),
        ({"vision_cfg": {"patch_size": 0}}, "open_clip cannot build a model of its config"),
        ({"vision_cfg": {"timm_model_name": "none"}}, "open_clip cannot build a model of its config"),
        ({"vision_cfg": {"image_size": "big"}}, "its preprocessing cannot be used"),
        ({"preprocess_cfg": {"mean": [1]}}, "its preprocessing cannot be used"),
        ({"preprocess_cfg": {"std": [0, 0, 0]}}, "its preprocessing cannot be used"),
        ({"preprocess_cfg": {"resize_mode": [1]}}, "resized in a way varalign has not"),
    ],
)
def test_damaged_configs_of_a_folder_end_in_a_sentence(clip_folder, changes, reason) -> None:  # type: ignore[no-untyped-def]
    folder, _ = clip_folder()
    file = folder / "open_clip_config.json"
    if isinstance(changes, bytes):
        file.write_bytes(changes)
    else:
        config = json.loads(file.read_text())
        for part, values in changes.items():
            place = config if part == "preprocess_cfg" else config["model_cfg"]
            place[part] = {**place[part], **values} if isinstance(values, dict) else values
        file.write_text(json.dumps(config))
    with pytest.raises(SpecError, match=reason):
        build_image_encoder(f"clip:x@{folder}")
