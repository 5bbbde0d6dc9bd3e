"""A module of sentence-transformers that runs a model of varalign: any heads, texts and images, hub correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from varalign.aligner.aligner import Aligner
from varalign.aligner.load import load
from varalign.canonical.hub_correction import as_items, as_queries
from varalign.data.errors import DataError
from varalign.data.images import load_images
from varalign.inputs.given import Given, as_image_files
from varalign.inputs.live import LiveCaptions
from varalign.inputs.sources import with_lexical


class VaralignModule(InputModule):  # type: ignore[misc]
    """Texts and images to `sentence_embedding`, the unit vectors of a model of varalign.

    With a hub correction `encode_query` gives [q, 1] and `encode_document` [g, −b(g)]; `encode` gives unit vectors.

    Args:
        aligner: the model.
    """

    forward_kwargs = {"task"}  # noqa: RUF012 - declared so by the library
    save_in_root = False

    def __init__(self, aligner: Aligner) -> None:
        super().__init__()
        self.aligner, self.encoder = aligner, aligner.model

    @property
    def modalities(self) -> list[Any]:
        """What it takes."""
        return ["text", "image"]

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.encoder.shape.embedding_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Pixels of the images, and ids, lengths and lexical vectors of the texts; `texts` and `images`: their places.

        Raises:
            DataError: an image cannot be read.
        """
        given = Given.of(list(inputs))
        found: dict[str, Any] = {side: torch.from_numpy(given.rows(side)) for side in ("image", "text")}
        images = {place: given.items[place] for place in given.rows("image").tolist()}
        texts = [(prompt or "") + given.items[place] for place in given.rows("text").tolist()]
        if images:
            image = self.encoder.image_encoder
            assert image is not None
            with as_image_files(images) as files:
                preprocess = replace(image.preprocess, decode=self.aligner.config.decode)
                pixels, errors = load_images(files, preprocess)
                if errors:
                    raise DataError(errors[0][1])
            found["pixel_values"] = torch.from_numpy(pixels)
        if texts:
            text, device = self.encoder.text_encoder, torch.device("cpu")
            assert text is not None
            source = with_lexical(LiveCaptions(texts, text.tokenizer, device), self.encoder.lexicon, texts, device)
            names = ("input_ids", "lengths", "lexical")
            found |= dict(zip(names, source.inputs(np.arange(len(texts))), strict=False))
        return found

    def forward(self, features: dict[str, Any], task: str | None = None, **_: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` (N, D), or (N, D + 1) of a query or document under a hub correction."""
        model = self.encoder
        parts: list[tuple[Tensor, Tensor, Any]] = []  # places, vectors and what gives their priors
        correction = self.aligner.hub.correction if task in ("query", "document") else None
        if "pixel_values" in features:
            vectors = model.project_images(model.encode_images(features["pixel_values"]))
            parts.append((features["image"], vectors, correction and correction.image_prior))
        if "input_ids" in features:
            encoded = [model.encode_texts(features["input_ids"], features["lengths"].cpu())]
            encoded += [features["lexical"]] if "lexical" in features else []
            vectors = model.project_texts(torch.cat(encoded, dim=1))
            parts.append((features["text"], vectors, correction and correction.text_prior))
        made = [vectors if of is None else _sided(vectors, of, task) for _, vectors, of in parts]
        order = torch.cat([places for places, *_ in parts]).argsort()
        features["sentence_embedding"] = torch.cat(made)[order.to(made[0].device)]
        return features

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Write the model in varalign's own format."""
        self.aligner.export(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> VaralignModule:
        """The module of a folder, or of a repository of the hub."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        of_hub = {name: options[name] for name in names if name in options}
        folder = cls.load_dir_path(model_name_or_path, subfolder=subfolder, **of_hub)
        return cls(load(Path(str(folder)), device="cpu"))


def _sided(vectors: Tensor, prior_of: Any, task: str | None) -> Tensor:
    return as_queries(vectors) if task == "query" else as_items(vectors, prior_of(vectors))
