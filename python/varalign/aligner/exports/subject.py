"""What is exported: a whole model on the CPU, its hub correction as it may be given away, and inputs to compare by."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.aligner.hub_bank import Chosen
from varalign.canonical.hub_correction import HubCorrection, QueryBank
from varalign.data.errors import DataError
from varalign.encoders.adapters import merge_adapters
from varalign.encoders.base import ImageEncoder, TextEncoder
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.specs import SIDES
from varalign.inputs.live import LiveCaptions
from varalign.inputs.sources import LexicalTexts, with_lexical
from varalign.options.config import TrainConfig
from varalign.runs.folder import RunFolder

TEXTS = ("two dogs run in the snow", "a red square, left, on blue .", "", "The man with a black ball sits on a mat!")
"""Texts by which an export is compared with the model."""


@dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        model: whole, on the CPU, in evaluation mode, adapters merged into the towers.
        name: of the model.
        config: its options.
        hub: its hub correction, as it is given away.
        run: its run folder; None where it was not trained here.
        state: plain values of its checkpoint.
        with_bank: whether the hub correction keeps embeddings of training data.
    """

    model: DualEncoder
    name: str
    config: TrainConfig
    hub: Chosen
    run: RunFolder | None
    state: Mapping[str, Any]
    with_bank: bool

    def towers(self, target: str) -> tuple[ImageEncoder, TextEncoder]:
        """Both towers.

        Raises:
            DataError: the model was trained on features.
        """
        image, text = self.model.image_encoder, self.model.text_encoder
        if image is None or text is None:
            raise DataError(
                f"--to {target}: {self.name} was trained on a features file, so it has no encoders: train from --data"
            )
        return image, text

    def pixels(self, count: int = 3) -> Tensor:
        """(count, 3, S, S) made-up pixels, normalised as the image tower wants them."""
        image = self.model.image_encoder
        assert image is not None
        size = image.preprocess.size
        levels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
        mean, std = (torch.tensor(part)[:, None, None] for part in (image.preprocess.mean, image.preprocess.std))
        return (levels - mean) / std

    def text_inputs(self) -> tuple[Tensor, ...]:
        """Ids (T, L) and lengths (T,) of `TEXTS`, and their lexical vectors where the model reads them."""
        text = self.model.text_encoder
        assert text is not None
        device = torch.device("cpu")
        source = with_lexical(LiveCaptions(TEXTS, text.tokenizer, device), self.model.lexicon, TEXTS, device)
        assert isinstance(source, LiveCaptions | LexicalTexts)
        return source.inputs(np.arange(len(TEXTS)))

    @torch.no_grad()
    def embedded(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors of `pixels()` and of `TEXTS` in float32, by the model itself."""
        ids, lengths, *lexical = self.text_inputs()
        features = self.model.encode_texts(ids, lengths)
        images = self.model.project_images(self.model.encode_images(self.pixels()))
        texts = self.model.project_texts(torch.cat([features, *lexical], dim=1))
        return images.numpy(), texts.numpy()

    def wanted(self) -> dict[str, list[Tensor]]:
        """`embedded()` by the names of the graphs, each followed by its priors where there is a hub correction."""
        images, texts = (torch.from_numpy(part) for part in self.embedded())
        found = self.hub.correction
        return {
            "vision_model": [images] + ([] if found is None else [found.image_prior(images)]),
            "text_model": [texts] + ([] if found is None else [found.text_prior(texts)]),
        }


def given_away(chosen: Chosen, *, with_bank: bool) -> Chosen:
    """The hub correction with the mean and covariance of its bank in place of the embeddings that the bank holds."""
    found = chosen.correction
    if found is None or found.form != "bank" or with_bank:
        return chosen
    banks = {side: QueryBank.of(getattr(found, side).tensors["queries"], "variance") for side in ("images", "texts")}
    line = f"{chosen.line}; by the mean and covariance of the bank alone"
    return Chosen(HubCorrection(found.source, "variance", found.tau, **banks), line)


def whole_on_cpu(model: DualEncoder) -> DualEncoder:
    """The model on the CPU in evaluation mode, adapters merged; a copy where that changes anything."""
    if model.adapters or model.log_logit_scale.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
        for side in SIDES:
            encoder = model.encoder(side)
            if encoder is not None and side in model.adapters:
                merge_adapters(encoder)
        model.adapters.clear()
        model.fingerprints.clear()
    return model.eval()
