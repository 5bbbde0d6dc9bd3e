"""The base classes of all encoders: a tower has a feature dimension, blocks that can be unfrozen, and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varalign.data.images import Preprocess
from varalign.data.tokens.tokenizers import Tokenizer
from varalign.encoders.specs import SpecError


@dataclass(frozen=True)
class ImageOptions:
    """The options of an image encoder, besides its spec.

    Attributes:
        image_size: S, side of the images in pixels; None: the architecture's own (224 for resnet18).
        load_weights: False builds the architecture with random weights for a checkpoint to fill, without hub or file.
        architecture: the values of `ImageEncoder.architecture()` of a saved run; then no source is looked up.
    """

    image_size: int | None = None
    load_weights: bool = True
    architecture: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TextOptions:
    """The options of a text encoder, besides its spec; each kind reads those that it has.

    Attributes:
        captions: the training captions; `lstm` builds its word vocabulary from them.
        tokenizer: a saved run's tokenizer; then no vocabulary is built or read.
        pooling: over the tokens: "mean", "cls" or "last" for `bert` and `hf`, "mean" or "last" for `lstm`; "auto" is
            what the encoder's folder says, else "mean"; `clip` has its own.
        bidirectional: whether the `lstm` reads in both directions.
        word_vectors: file of word vectors that the `lstm`'s word embedding starts from.
        max_length: maximum number of tokens; longer texts are cut. None: 40 for `lstm`, for `bert` and `hf` 64 or what
            a sentence-transformers folder says, the context length for `clip`.
        load_weights: False builds the architecture with random weights for a checkpoint to fill, without hub or file
            (`bert`, `hf` and `clip` from a folder need `architecture` and `tokenizer` for that).
        architecture: the values of `TextEncoder.architecture()` of a saved run; then no source is looked up.
    """

    captions: Sequence[str] | None = None
    tokenizer: Tokenizer | None = None
    pooling: str = "auto"
    bidirectional: bool = False
    word_vectors: str | None = None
    max_length: int | None = None
    load_weights: bool = True
    architecture: Mapping[str, Any] | None = None


class Encoder(nn.Module):
    """A tower: images or texts in, features out.

    Attributes:
        feature_dim: width of the features.
        spec: the spec string that it was built from.
        has_source: whether its weights came from a file, a folder or a hub, and can be read from there again.
    """

    feature_dim: int
    spec: str
    has_source: bool

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first to last; `unfreeze` lets the last ones train.

        Raises:
            SpecError: this architecture has no list of blocks that varalign knows.
        """
        raise NotImplementedError

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """The parts after the last block (final norm, pooling, projection); unfrozen together with it."""
        return []

    def checkpoint_activations(self, beside_adapters: bool = False) -> None:
        """Let a pass with gradient keep what enters each block alone; the backward pass computes the rest again.

        Args:
            beside_adapters: whether the blocks stay in evaluation mode while adapters beside their layers train.

        Raises:
            SpecError: this architecture has no such pass.
        """
        raise SpecError(f"'{self.spec}' keeps what it computes for the backward pass: it has no gradient checkpointing")

    def architecture(self) -> dict[str, Any]:
        """Everything except the weights that the features depend on, as JSON values; enough to rebuild the tower."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """JSON values from which `varalign.encoders.build` rebuilds the tower without a hub; weights not included."""
        return {"spec": self.spec, "architecture": self.architecture()}

    def identity(self) -> dict[str, Any]:
        """The part of the architecture that the fingerprint covers, without values that do not affect the features."""
        return self.architecture()

    def weights_fingerprint(self) -> str:
        """Hex SHA-256 over the architecture and the state dict: encoders with equal fingerprints give equal features.

        It does not cover the source: a file and a tag with the same tensors have the same fingerprint. It reads every
        weight once, which takes about a second for ViT-B/32.
        """
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            # Viewed as uint8, since NumPy has no bfloat16. The host waits for the device here.
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
            digest.update(memoryview(flat.numpy()))
        return digest.hexdigest()


class ImageEncoder(Encoder):
    """A tower for images: pixels (B, 3, S, S) float32, normalised as `preprocess` says, to (B, feature_dim).

    Attributes:
        preprocess: size, mean, deviation, interpolation and cropping that the weights expect.
    """

    preprocess: Preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        """Image features (B, feature_dim) of pixels (B, 3, S, S)."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """As `Encoder.to_config`, with the image size."""
        return {"spec": self.spec, "image_size": self.preprocess.size, "architecture": self.architecture()}


class TextEncoder(Encoder):
    """A tower for texts: ids (B, L) int64 and lengths (B,) int64 to (B, feature_dim).

    Attributes:
        tokenizer: makes the ids and lengths.
    """

    tokenizer: Tokenizer

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Text features (B, feature_dim) of ids (B, L) padded after `lengths` (B,).

        Keep `lengths` on the CPU: columns that are padding in every text are then cut off, which saves work without
        changing the features or waiting for the device.
        """
        raise NotImplementedError


def cut_padding(ids: Tensor, lengths: Tensor) -> Tensor:
    """`ids` without the columns that are padding in every text; unchanged if `lengths` is not on the CPU.

    Unchanged too in a program that torch.export records, whose shapes cannot follow from values.
    """
    if lengths.device.type != "cpu" or lengths.numel() == 0 or torch.compiler.is_exporting():
        return ids
    return ids[:, : max(1, int(lengths.max()))]


def token_mask(ids: Tensor, lengths: Tensor) -> Tensor:
    """(B, L) bool: True for tokens, False for padding. The first position of an empty text is True."""
    positions = torch.arange(ids.shape[1], device=ids.device)
    return positions[None, :] < lengths.to(ids.device, non_blocking=True).clamp(min=1)[:, None]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """(B, D) mean over the tokens of states (B, L, D); mask (B, L) bool has a True in every row."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def known_blocks(tower: nn.Module, paths: tuple[str, ...], spec: str) -> list[nn.Module]:
    """The children of the first of `paths` (dotted attribute names) in `tower`; SpecError if it has none of them."""
    for path in paths:
        found: Any = tower
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, (nn.ModuleList, nn.Sequential)) and len(found) > 0:
            return list(found)
    if all(hasattr(tower, f"layer{i}") for i in range(1, 5)):
        return [getattr(tower, f"layer{i}") for i in range(1, 5)]
    raise SpecError(f"'{spec}': varalign knows no list of blocks in this architecture, so it cannot unfreeze its last")


def present(tower: nn.Module, names: tuple[str, ...]) -> list[nn.Module | nn.Parameter]:
    """The attributes of `tower` among `names` that are modules or parameters."""
    values = (getattr(tower, name, None) for name in names)
    return [value for value in values if isinstance(value, (nn.Module, nn.Parameter))]


def refuse_batch_norms(encoder: Encoder) -> None:
    """SpecError where gradient checkpointing would let batch norms take in the statistics of each batch twice."""
    if any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        raise SpecError(f"'{encoder.spec}' has batch norms, which gradient checkpointing would show each batch twice")


def parameters_of(parts: list[nn.Module | nn.Parameter]) -> Iterator[nn.Parameter]:
    """All parameters of a list of modules and parameters."""
    for part in parts:
        if isinstance(part, nn.Parameter):
            yield part
        else:
            yield from part.parameters()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` after a round trip through JSON (tuples become lists), so that they compare equal to a saved config."""
    result: dict[str, Any] = json.loads(json.dumps(dict(values), sort_keys=True))
    return result
