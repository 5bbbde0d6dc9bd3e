"""Embedding whatever a caller has, and models in other threads and processes."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varalign
from PIL import Image
from varalign.aligner.hub_bank import Chosen
from varalign.canonical.hub_correction import HubCorrection
from varalign.data.bar import Bar
from varalign.data.errors import DataError
from varalign.data.waiting import _SILENT
from varalign.inputs import tower_loop
from varalign.options.config import TrainConfig


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "squares"
    small: dict[str, Any] = {"image_size": 32, "epochs": 1, "batch_size": 16, "embedding_dim": 8}
    places: dict[str, Any] = {"data": str(image_folder), "out": str(out), "device": "cpu", "threads": 1}
    varalign.train(TrainConfig(**small, **places, hub_correction="off"), say=lambda _: None)
    return out


@pytest.fixture(scope="module")
def files(image_folder: Path) -> list[Path]:
    return sorted((image_folder / "Images").glob("*.jpg"))[:3]


def test_every_kind_of_input_has_its_vector(run: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = varalign.load(run, device="cpu")
    images, texts = model.embed_images(files), model.embed_texts(["a red square"])
    picture, array = Image.open(files[1]), np.asarray(Image.open(files[2]))
    found = model.encode([files[0], "a red square", picture, array, files[0].read_bytes()])
    assert np.allclose(found, np.stack([images[0], texts[0], images[1], images[2], images[0]]), atol=1e-6)
    assert model.encode("a red square").shape == (8,) and model.encode([]).shape == (0, 8)
    as_tensor = model.encode(files, batch_size=1, convert_to_tensor=True)
    assert isinstance(as_tensor, torch.Tensor) and np.allclose(as_tensor.numpy(), images, atol=1e-6)
    long = model.encode(files, normalize_embeddings=False)
    norms = np.linalg.norm(long, axis=1, keepdims=True)
    assert np.allclose(long / norms, images, atol=1e-6) and not np.allclose(norms, 1)
    assert torch.allclose(model.similarity(texts, images), torch.from_numpy(texts @ images.T))
    assert np.array_equal(model.encode_query(files), model.encode(files))
    shown: list[bool] = []
    monkeypatch.setattr(tower_loop, "waiting", lambda what, total: shown.append(not _SILENT.get()) or Bar())
    model.encode("a"), model.encode("a", show_progress_bar=True)
    assert shown == [False, True]
    with pytest.raises(DataError, match=r"^inputs\[1\]: "):
        model.encode([files[0], b"no image"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode("a", batch_size=0)


def test_queries_and_documents_give_corrected_scores(run: Path, files: list[Path]) -> None:
    model = varalign.load(run, device="cpu")
    images, texts = (torch.from_numpy(part) for part in (model.embed_images(files), model.embed_texts(["a", "b c"])))
    correction = HubCorrection.of(images, texts, 10.0, source="dev")
    vars(model)["hub"] = Chosen(correction, "made")
    documents = model.encode_document([files[0], "b c", files[1]])
    assert documents.shape == (3, 9) and model.encode_document(files[0]).shape == (9,)
    scores = model.similarity(model.encode_query("a"), documents)
    among = torch.stack([images[0], texts[1], images[1]])
    prior = torch.cat(
        [correction.image_prior(images[:1]), correction.text_prior(texts[1:]), correction.image_prior(images[1:2])]
    )
    assert torch.allclose(scores, texts[:1] @ among.T - prior, atol=1e-5)
    with pytest.raises(ValueError, match="8 and 9 dimensions: with a hub correction"):
        model.similarity(images, documents)


def _child(model: Any, files: list[Path], answers: Any) -> None:
    answers.put((model.encode(files), model.encode("a red square")))


def test_a_model_is_copied_and_works_in_other_processes_and_threads(run: Path, files: list[Path]) -> None:
    fresh, used = varalign.load(run, device="cpu"), varalign.load(run, device="cpu")
    images, text = used.embed_images(files), used.embed_texts(["a red square"])[0]
    fresh.encode("a")  # one tower alone
    recall = used.evaluate("test")["i2t_recall@1"]  # the data are open
    for model in (varalign.load(run, device="cpu"), fresh, used):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert np.array_equal(other.encode(files), images) and np.array_equal(other.encode("a red square"), text)
    assert pickle.loads(pickle.dumps(used)).evaluate("test")["i2t_recall@1"] == recall
    for way in ("fork", "spawn"):
        context = get_context(way)
        answers = context.Queue()
        process = context.Process(target=_child, args=(used, files, answers))
        process.start()
        found = answers.get(timeout=120)
        process.join()
        assert np.allclose(found[0], images, atol=1e-6) and np.allclose(found[1], text, atol=1e-6)
    model = varalign.load(run, device="cpu")
    with ThreadPoolExecutor(4) as pool:
        for place, found in enumerate(pool.map(model.encode, [*files, *files])):
            assert np.allclose(found, images[place % 3], atol=1e-6)
        texts = list(pool.map(model.encode, ["a red square"] * 8))
    assert all(np.allclose(found, text, atol=1e-6) for found in texts)
