"""Exports that sentence-transformers reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import varalign
from exported import images_of
from PIL import Image
from sentence_transformers import SentenceTransformer


def test_the_library_gives_our_vectors_and_corrected_scores(voices: Path, image_folder: Path, tmp_path: Path) -> None:
    model = varalign.load(voices, device="cpu")
    made = model.export(tmp_path / "out", to="sentence-transformers", with_bank=True)
    assert max(made["differences"].values()) < 1e-5
    library = SentenceTransformer(made["folder"], device="cpu", trust_remote_code=True)
    pictures = [Image.open(file) for file in images_of(image_folder)]
    texts = ["A red square, left, on blue .", "a dog", ""]
    assert library.get_embedding_dimension() == model.model.shape.embedding_dim
    for inputs in (pictures, texts):
        assert np.allclose(library.encode(inputs), model.encode(inputs), atol=1e-5)
    q, d = library.encode_query(texts), library.encode_document(pictures)
    assert q.shape[1] == d.shape[1] == library.get_embedding_dimension() + 1
    wanted = model.similarity(model.encode_query(texts), model.encode_document(pictures))
    assert np.allclose(library.similarity(q, d), wanted, atol=1e-5)
    library.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    assert np.array_equal(again.encode(texts), library.encode(texts))
