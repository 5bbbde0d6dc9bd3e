"""What training and evaluation work on: data, towers or the whole model, and the sources that feed them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.specs import SIDES
from varalign.encoders.towers import Towers
from varalign.inputs.open_data import Data
from varalign.inputs.sources import FeatureRows, ImageSource, LexicalTexts, Rows, TextSource, readable, with_lexical
from varalign.options.config import TrainConfig
from varalign.options.device import pick_precision, training_precision
from varalign.runs.folder import RunFolder


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The arithmetic that `--precision` names, for towers and heads; losses and metrics stay outside."""
    return _autocast(pick_precision(precision, device), device)


def _autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@dataclass
class Inputs:
    """Data, and towers with the sources that feed them.

    Attributes:
        config: the options, with the data folder resolved.
        data: images and captions, or their features.
        towers: the towers, on the device.
        images, texts: where inputs come from.
        device: where the towers are.
    """

    config: TrainConfig
    data: Data
    towers: Towers
    images: ImageSource
    texts: TextSource
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the options' `precision`."""
        return autocast(self.config.precision, self.device)

    @property
    def train_rows(self) -> Rows:
        """Training images that features could be made for; images that are decoded at each step are all there."""
        rows = self.data.rows("train")
        return readable(rows, self.images.unreadable) if isinstance(self.images, FeatureRows) else rows

    def with_model(self, model: DualEncoder, config: TrainConfig) -> Parts:
        """The parts of a run whose model has these towers."""
        texts = self.texts.source if isinstance(self.texts, LexicalTexts) else self.texts
        texts = with_lexical(texts, model.lexicon, self.data.caption_texts, self.device)
        return Parts(config, self.data, model, self.images, texts, self.device)


@dataclass
class Parts(Inputs):
    """`Inputs` whose towers have heads: the whole model."""

    towers: DualEncoder

    @property
    def model(self) -> DualEncoder:
        """The dual encoder, on the device."""
        return self.towers

    @property
    def name(self) -> str:
        """The encoders in short, for tables."""
        if self.config.features:
            return f"features:{Path(self.config.features).name}"
        return f"{short(self.config.image_spec)} + {short(self.config.text_spec)}"

    @property
    def step_dtype(self) -> torch.dtype:
        """The floating-point type of the towers in a training step: where one trains, a CPU may take bfloat16."""
        model = self.model
        trained = any(model.encoder(side) is not None and not model.fully_frozen(side) for side in SIDES)
        return (training_precision if trained else pick_precision)(self.config.precision, self.device)

    def step_autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of a training step."""
        return _autocast(self.step_dtype, self.device)

    def bad_images(self) -> dict[str, str]:
        """Names of the images found unreadable so far, with the reason."""
        found = sorted(self.images.unreadable.items())
        names = self.data.image_names
        return {str(row) if names is None else names[row]: reason for row, reason in found}

    def save_assets(self, run: RunFolder) -> dict[str, Any]:
        """Write what the model is rebuilt from into the run folder; returns its description for `config.json`."""
        save_assets(self.model, run.assets)
        return self.model.to_config()


def save_assets(model: DualEncoder, folder: Path) -> None:
    """Write the tokenizer and the lexicon of a model into a folder, where it has them."""
    if model.text_encoder is not None:
        folder.mkdir(exist_ok=True)
        model.text_encoder.tokenizer.save(folder)
    if model.lexicon is not None:
        model.lexicon.save(folder)


def short(spec: str) -> str:
    """A spec with only the last part of a path in it: `clip:ViT-B-32@/a/b/c.pt` → `clip:ViT-B-32@c.pt`."""
    head, mark, place = spec.rpartition("@" if "@" in spec else ":")
    return head + mark + Path(place).name if Path(place).is_absolute() or Path(place).exists() else spec
