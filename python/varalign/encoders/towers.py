"""The two towers of a dual encoder: they compute the features, and parts of them can be frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varalign.encoders.adapters import add_adapters
from varalign.encoders.base import Encoder, ImageEncoder, TextEncoder, parameters_of
from varalign.encoders.specs import SIDES, Side, SpecError


class Towers(nn.Module):
    """An image tower and a text tower; each trains whole, is frozen, is frozen except its last blocks, or has adapters.

    A side without a tower (with `--features`) takes features of the given width and returns them unchanged.

    Args:
        image_encoder: the image tower, or None.
        text_encoder: the text tower, or None.
        image_feature_dim: width of the image features, needed without an image tower.
        text_feature_dim: width of the text features, needed without a text tower.

    Attributes:
        frozen: side → number of unfrozen blocks; frozen sides only.
        adapters: side → rank of its adapters.
        fingerprints: side → its tower's fingerprint before adapters were added.
        sharded: side → the modules of its tower whose weights are split over processes (see `sharding`).
        inside: sides whose frozen tower is in the saved model, which leaves no tower to its source.

    Raises:
        ValueError: a side with neither tower nor width, or a width other than the tower's.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder | None,
        text_encoder: TextEncoder | None,
        *,
        image_feature_dim: int | None = None,
        text_feature_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.image_feature_dim = _feature_dim("image", image_encoder, image_feature_dim)
        self.text_feature_dim = _feature_dim("text", text_encoder, text_feature_dim)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.frozen: dict[Side, int] = {}
        self.adapters: dict[Side, int] = {}
        self.fingerprints: dict[Side, str] = {}
        self.sharded: dict[Side, list[nn.Module]] = {}
        self.inside: frozenset[Side] = frozenset()

    def encoder(self, side: Side) -> Encoder | None:
        """The tower of a side, or None."""
        return self.image_encoder if side == "image" else self.text_encoder

    def share_a_space(self) -> bool:
        """Whether both towers are frozen ones of one CLIP, so that the cosine of their features is zero-shot CLIP's."""
        image, text = self.image_encoder, self.text_encoder
        if image is None or text is None or (image.spec, image.feature_dim) != (text.spec, text.feature_dim):
            return False
        return self.fully_frozen("image") and self.fully_frozen("text")

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features (B, image_feature_dim) of pixels (B, 3, S, S); without a tower, `pixels` are the features."""
        return pixels if self.image_encoder is None else self._encoded("image", pixels)

    def encode_texts(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Text features (B, text_feature_dim) of ids (B, L) and lengths (B,), which are best on the CPU.

        Without a tower, `ids` are the features (B, text_feature_dim) and are returned unchanged.
        """
        if self.text_encoder is None:
            return ids
        if lengths is None:
            raise TypeError("encode_texts wants the lengths of the texts beside their ids")
        return self._encoded("text", ids, lengths)

    def _encoded(self, side: Side, *inputs: Tensor) -> Tensor:
        encoder = self.encoder(side)
        assert encoder is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fully_frozen(side)):
            features: Tensor = encoder(*inputs)
        return features

    def freeze(self, side: Side, unfreeze: int = 0) -> None:
        """Freeze a tower: it gets no gradients and stays in eval mode during training (BatchNorm and dropout too).

        Args:
            side: "image" or "text"; nothing happens on a side without a tower.
            unfreeze: number of its last blocks that still train, with the parts after them (final norm, projection).
                Embeddings and stem stay frozen.

        Raises:
            SpecError: `unfreeze` is negative or more than the tower has blocks.
        """
        encoder = self.encoder(side)
        if unfreeze < 0:
            raise SpecError(f"unfreeze is a number of blocks, 0 or more, not {unfreeze}")
        if encoder is None:
            return
        encoder.requires_grad_(False)
        if unfreeze > 0:
            blocks = encoder.blocks()
            if unfreeze > len(blocks):
                raise SpecError(
                    f"unfreeze {unfreeze}: the {side} tower '{encoder.spec}' has {len(blocks)} blocks; "
                    f"pass at most {len(blocks)}, or train the whole tower"
                )
            for parameter in parameters_of([*blocks[-unfreeze:], *encoder.tail()]):
                parameter.requires_grad_(True)
        self.frozen[side] = unfreeze
        self.train(self.training)

    def adapt(self, side: Side, rank: int) -> None:
        """Add trainable low-rank adapters to the linear layers of a frozen tower; they start with zero effect.

        Args:
            side: "image" or "text", with a frozen pretrained tower. The adapters' names contain `.lora_`.
            rank: R, at least 1.

        Raises:
            SpecError: the tower is not fully frozen, has no such layers, or the package peft is not installed.

        Source: Hu et al., LoRA, ICLR 2022.
        """
        encoder = self.encoder(side)
        if encoder is None or not self.from_source(side):
            raise SpecError(f"adapters go beside a frozen pretrained tower, and the {side} tower is none")
        self.fingerprints[side] = encoder.weights_fingerprint()
        add_adapters(encoder, rank)
        self.adapters[side] = rank
        self.train(self.training)

    def checkpoint_activations(self) -> None:
        """Let the towers that train compute their activations again in the backward pass, instead of keeping them.

        Raises:
            SpecError: no tower that trains can.
        """
        refused, done = [], False
        for side in SIDES:
            encoder = self.encoder(side)
            if encoder is None or self.fully_frozen(side):
                continue
            try:
                encoder.checkpoint_activations(side in self.adapters)
                done = True
            except SpecError as error:
                refused.append(str(error))
        if not done:
            raise SpecError(f"--gradient-checkpointing: {'; '.join(refused) or 'no encoder trains'}: leave it out")

    def training_parts(self, side: Side) -> list[nn.Module | nn.Parameter]:
        """The parts of a side's tower that are in training mode while the model is."""
        encoder, unfrozen = self.encoder(side), self.frozen.get(side)
        if encoder is None or unfrozen == 0:
            return []
        return [encoder] if unfrozen is None else [*encoder.blocks()[-unfrozen:], *encoder.tail()]

    def fully_frozen(self, side: Side) -> bool:
        """Whether a side has a tower of which nothing trains, so that its features can be cached."""
        return self.encoder(side) is not None and self.frozen.get(side) == 0 and side not in self.adapters

    def from_source(self, side: Side) -> bool:
        """Whether a tower's own weights are frozen at those of its source, so that a checkpoint can leave them out."""
        encoder = self.encoder(side)
        kept = encoder is not None and encoder.has_source and side not in self.inside
        return kept and self.frozen.get(side) == 0

    def train(self, mode: bool = True) -> Any:
        """Set training mode; frozen parts stay in eval mode."""
        super().train(mode)
        for side in self.frozen:
            encoder = self.encoder(side)
            if encoder is None:
                continue
            encoder.eval()
            for part in self.training_parts(side):
                if isinstance(part, nn.Module):
                    part.train(mode)
        return self


def _feature_dim(side: str, encoder: Encoder | None, given: int | None) -> int:
    if encoder is None:
        if given is None or given < 1:
            raise ValueError(f"without an {side} tower {side}_feature_dim says how wide the features are; got {given}")
        return given
    if given is not None and given != encoder.feature_dim:
        raise ValueError(f"'{encoder.spec}' gives {encoder.feature_dim} {side} features, not {given}")
    return encoder.feature_dim
