"""What every encoder is: a tower with a feature dimension, blocks that can be unfrozen, and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varalign.data.images import Preprocess
from varalign.data.tokenizers import Tokenizer
from varalign.encoders.specs import SpecError


@dataclass(frozen=True)
class ImageOptions:
    """What an image encoder is built with, besides its spec.

    Attributes:
        image_size: S, pixels a side, instead of the architecture's own (224 for resnet18).
        load_weights: False builds the architecture with random weights, for a checkpoint to fill; no hub, no file.
        architecture: what `ImageEncoder.architecture()` once gave, so that nothing has to be looked up.
    """

    image_size: int | None = None
    load_weights: bool = True
    architecture: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TextOptions:
    """What a text encoder is built with, besides its spec; a kind reads what concerns it.

    Attributes:
        captions: the training captions; `lstm` builds its word vocabulary from them.
        tokenizer: a saved run's tokenizer; then no vocabulary is built or read.
        pooling: over the tokens: "mean" or "cls" for `bert`, "mean" or "last" for `lstm`; `clip` has its own.
        bidirectional: `lstm` reads both ways.
        max_length: longest text in tokens; longer ones are cut. `lstm` 40, `bert` 64, `clip` its context length.
        load_weights: False builds the architecture with random weights, for a checkpoint to fill; no hub, no file
            (`bert` and `clip` from a folder need `architecture` and `tokenizer` for that).
        architecture: what `TextEncoder.architecture()` once gave, so that nothing has to be looked up.
    """

    captions: Sequence[str] | None = None
    tokenizer: Tokenizer | None = None
    pooling: str = "mean"
    bidirectional: bool = False
    max_length: int | None = None
    load_weights: bool = True
    architecture: Mapping[str, Any] | None = None


class Encoder(nn.Module):
    """A tower: images or texts in, features out.

    Attributes:
        feature_dim: width of the features.
        spec: the spec string that it was built from.
        has_source: whether its weights came from a file, a folder or a hub, so that they can be read again.
    """

    feature_dim: int
    spec: str
    has_source: bool

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first to last; the last ones are what `unfreeze` frees.

        Raises:
            SpecError: this architecture has no list of blocks that varalign knows.
        """
        raise NotImplementedError

    def tail(self) -> list[nn.Module | nn.Parameter]:
        """The parts after the last block (final norm, pooling, projection); unfrozen together with it."""
        return []

    def architecture(self) -> dict[str, Any]:
        """Everything but the weights that the features depend on, as JSON values: enough to build the tower again."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """JSON values from which `varalign.encoders.build` makes the tower again, hub or no hub; the weights apart."""
        return {"spec": self.spec, "architecture": self.architecture()}

    def identity(self) -> dict[str, Any]:
        """What the fingerprint covers besides the tensors: the architecture, less what changes without changing it."""
        return self.architecture()

    def weights_fingerprint(self) -> str:
        """Hex SHA-256 over the architecture and the state dict: equal fingerprints, equal features.

        Where the weights came from is not in it: a file and a tag with the same tensors have the same fingerprint.
        Reads every weight once (about a second for ViT-B/32).
        """
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            # Bytes through uint8, since NumPy has no bfloat16. Waits for the device.
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
        """Text features (B, feature_dim) of ids (B, L) padded behind `lengths` (B,).

        Keep `lengths` on the CPU: then padding that no text of the batch needs is cut off (the features stay the
        same, the work does not), and nothing waits for the device.
        """
        raise NotImplementedError


def cut_padding(ids: Tensor, lengths: Tensor) -> Tensor:
    """`ids` without the columns that no text of the batch reaches; unchanged when `lengths` is not on the CPU."""
    if lengths.device.type != "cpu" or lengths.numel() == 0:
        return ids
    return ids[:, : max(1, int(lengths.max()))]


def token_mask(ids: Tensor, lengths: Tensor) -> Tensor:
    """(B, L) bool: True on tokens, False on padding. A text without any token keeps its first position."""
    positions = torch.arange(ids.shape[1], device=ids.device)
    return positions[None, :] < lengths.to(ids.device, non_blocking=True).clamp(min=1)[:, None]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens: states (B, L, D), mask (B, L) bool with a True in every row, to (B, D)."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def known_blocks(tower: nn.Module, paths: tuple[str, ...], spec: str) -> list[nn.Module]:
    """The children of the first of `paths` (dotted attribute names) that `tower` has."""
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
    """Those attributes of `tower` among `names` that hold a module or a parameter."""
    values = (getattr(tower, name, None) for name in names)
    return [value for value in values if isinstance(value, (nn.Module, nn.Parameter))]


def parameters_of(parts: list[nn.Module | nn.Parameter]) -> Iterator[nn.Parameter]:
    """The parameters of modules and parameters alike."""
    for part in parts:
        if isinstance(part, nn.Parameter):
            yield part
        else:
            yield from part.parameters()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON would give them back (tuples become lists), so that a saved config compares equal."""
    result: dict[str, Any] = json.loads(json.dumps(dict(values), sort_keys=True))
    return result
