"""Embedding of whatever a caller has: the methods that sentence-transformers' models have, and varalign's own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.aligner.hub_bank import Chosen
from varalign.canonical.hub_correction import as_items, as_queries
from varalign.data.waiting import silent
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.specs import SIDES, Side
from varalign.inputs.given import Given, as_image_files
from varalign.inputs.sources import Rows
from varalign.inputs.tower_loop import IMAGE_BATCH, TEXT_BATCH, embedded_files, embedded_texts, readable_files
from varalign.options.config import TrainConfig

Vectors = NDArray[np.float32]


class Encodes:
    """A model that embeds texts and images; the subclass says which.

    Attributes:
        config: the options, of which decoding, threads and precision are read here.
    """

    config: TrainConfig

    @property
    def hub(self) -> Chosen:
        """The hub correction."""
        raise NotImplementedError

    def _with_tower(self, side: Side) -> DualEncoder:
        """A model with at least the tower of this side."""
        raise NotImplementedError

    def embed_images(self, files: Sequence[Path | str]) -> Vectors:
        """Unit vectors (N, D) of N image files.

        Raises:
            DataError: a file cannot be read as an image, or the model was trained on features.
            TypeError: `files` is one path.
        """
        if isinstance(files, (str, bytes, Path)):
            raise TypeError(f"files must be a list of paths, got one {type(files).__name__}; put it into a list")
        return embedded_files(self._with_tower("image"), self.config, files)

    def embed_readable(self, files: Sequence[Path]) -> tuple[Rows, Vectors, dict[int, str]]:
        """Those of N image files that can be read: rows (M,), unit vectors (M, D), and why each other one cannot be.

        Raises:
            DataError: the model was trained on features.
        """
        return readable_files(self._with_tower("image"), self.config, files)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors (N, D) of N texts.

        Raises:
            DataError: the model was trained on features.
        """
        return embedded_texts(self._with_tower("text"), self.config, texts)

    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        show_progress_bar: bool = False,
    ) -> Any:
        """Vectors of texts, images, or both mixed.

        Args:
            inputs: one input or a list. A `str` is a text; an image is a `Path`, the bytes of a file, a Pillow image,
                or a uint8 array (H, W, 3) or (H, W). An array (N, H, W, 3) is N images.
            batch_size: inputs that are encoded together; None: 64 images or 256 texts.
            convert_to_tensor: give a tensor on the model's device, else a NumPy array.
            normalize_embeddings: scale to unit length; False: as the heads give them (an ensemble's, or those of
                voices, have unit length already).
            show_progress_bar: show a bar on standard error, once the work has taken a second.

        Returns:
            (D,) float32 of one input, (N, D) of a list.

        Raises:
            TypeError: an input is none of these.
            DataError: an image cannot be read, or the model was trained on features.
        """
        given = Given.of(inputs)
        found = self._encoded(given, batch_size, normalize_embeddings, show_progress_bar)
        return _returned(found, given.single, convert_to_tensor)

    def encode_query(self, inputs: Any, **options: Any) -> Any:
        """`encode` of what is looked for; with a hub correction [q, 1], (D + 1,) or (N, D + 1).

        Args:
            inputs, options: as of `encode`.
        """
        return self._one_side(inputs, options, query=True)

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        """`encode` of what is looked through; with a hub correction [g, −b(g)], (D + 1,) or (N, D + 1).

        The inner product with `encode_query` of the other side is then the corrected score.

        Args:
            inputs, options: as of `encode`.
        """
        return self._one_side(inputs, options, query=False)

    def similarity(self, a: Any, b: Any) -> Tensor:
        """(A, B) inner products of vectors (A, D) and (B, D), of unit length the cosines; (D,) is (1, D).

        Raises:
            ValueError: the widths differ, as those of `encode` and `encode_query` do under a hub correction.
        """
        a, b = (torch.as_tensor(part) for part in (a, b))
        a, b = (part[None] if part.ndim == 1 else part for part in (a, b))
        if a.shape[1] != b.shape[1]:
            raise ValueError(
                f"vectors of {a.shape[1]} and {b.shape[1]} dimensions: with a hub correction take encode_query on one "
                "side and encode_document on the other, or encode on both"
            )
        return a @ b.to(a.device).T

    def _one_side(self, inputs: Any, options: dict[str, Any], *, query: bool) -> Any:
        correction = self.hub.correction
        if correction is None:
            return self.encode(inputs, **options)
        given, as_tensor = Given.of(inputs), options.pop("convert_to_tensor", False)
        found = self.encode(given.items, convert_to_tensor=True, **options)
        if query or not len(found):
            return _returned(as_queries(found), given.single, as_tensor)
        prior = torch.empty(len(found), device=found.device)
        for side, prior_of in zip(SIDES, (correction.image_prior, correction.text_prior), strict=True):
            rows = torch.from_numpy(given.rows(side)).to(found.device)
            prior[rows] = prior_of(found[rows])
        return _returned(as_items(found, prior), given.single, as_tensor)

    def _encoded(self, given: Given, batch_size: int | None, unit: bool, shown: bool) -> Tensor:
        """(N, D) on the model's device."""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        found: Tensor | None = None
        for side in SIDES:
            rows = given.rows(side)
            if not len(rows) and (given.items or side == "image"):  # of nothing, the text tower gives (0, D)
                continue
            model, items = self._with_tower(side), {int(row): given.items[row] for row in rows}
            with nullcontext() if shown else silent():
                if side == "image":
                    with as_image_files(items) as files:
                        part = embedded_files(model, self.config, files, size=batch_size or IMAGE_BATCH, unit=unit)
                else:
                    texts = list(items.values())
                    part = embedded_texts(model, self.config, texts, size=batch_size or TEXT_BATCH, unit=unit)
            if found is None:
                found = torch.empty(len(given.items), part.shape[1], device=model.log_logit_scale.device)
            found[torch.from_numpy(rows).to(found.device)] = torch.from_numpy(part).to(found.device)
        assert found is not None
        return found


def _returned(found: Tensor, single: bool, as_tensor: bool) -> Any:
    found = found[0] if single else found
    return found if as_tensor else found.cpu().numpy()
