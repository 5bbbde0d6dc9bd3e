"""The dual encoder: two towers, two projection heads and the logit scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from varalign.encoders.adapters import ADAPTER, add_adapters
from varalign.encoders.base import Encoder, ImageEncoder, TextEncoder, parameters_of
from varalign.encoders.ensemble import MEMBER_DIM, EnsembleHead
from varalign.encoders.heads import build_head
from varalign.encoders.residual import ResidualHead
from varalign.encoders.specs import SpecError

Side = Literal["image", "text"]
SIDES: tuple[Side, Side] = ("image", "text")

MAX_LOGIT_SCALE = 100.0
INITIAL_LOGIT_SCALE = 1 / 0.07
NO_DECAY_MODULES = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Embedding,
)


class DualEncoder(nn.Module):
    """Images and texts into one space of unit vectors.

    Without a tower (features computed before, `--features`) its side takes features of the given width as they are.

    Args:
        image_encoder: the image tower, or None.
        text_encoder: the text tower, or None.
        embedding_dim: D, width of the shared space.
        image_feature_dim: width of the image features where there is no image tower.
        text_feature_dim: width of the text features where there is no text tower.
        head: "linear", "mlp", or "residual" and "ensemble", which `take_heads` fills.
        hidden_dim: width inside the head's perceptrons; 2 D by default. 0 leaves a residual head's perceptron out.
        dropout: inside them.
        input_noise: deviation of the noise on the heads' inputs while training, in deviations of each feature.
        train_map: whether the linear map of a residual head has a gradient.
        members, member_dim: perceptrons of an ensemble head, and the width of each.
        logit_scale: α at the start, within [1, 100].

    Raises:
        ValueError: a side with neither or both of tower and feature width; sizes or rates out of range.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder | None,
        text_encoder: TextEncoder | None,
        *,
        embedding_dim: int = 256,
        image_feature_dim: int | None = None,
        text_feature_dim: int | None = None,
        head: str = "linear",
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        input_noise: float = 0.0,
        train_map: bool = True,
        members: int = 0,
        member_dim: int = MEMBER_DIM,
        logit_scale: float = INITIAL_LOGIT_SCALE,
    ) -> None:
        super().__init__()
        self.image_feature_dim = _feature_dim("image", image_encoder, image_feature_dim)
        self.text_feature_dim = _feature_dim("text", text_encoder, text_feature_dim)
        hidden_dim = 2 * embedding_dim if hidden_dim is None else hidden_dim
        if embedding_dim < 1 or hidden_dim < (0 if head == "residual" else 1):
            raise ValueError(f"embedding_dim and hidden_dim are at least 1, not {embedding_dim} and {hidden_dim}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is within [0, 1), not {dropout}")
        if not 1.0 <= logit_scale <= MAX_LOGIT_SCALE:
            raise ValueError(f"logit_scale is within [1, {MAX_LOGIT_SCALE:.0f}], not {logit_scale}")
        self.embedding_dim = embedding_dim
        self.head = head
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.input_noise = input_noise
        self.train_map = train_map
        self.members, self.member_dim = members, member_dim
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        shape: dict[str, Any] = {
            "hidden_dim": hidden_dim,
            "dropout": dropout,
            "noise": input_noise,
            "train_map": train_map,
            "members": members,
            "member_dim": member_dim,
        }
        self.image_head = build_head(head, self.image_feature_dim, embedding_dim, **shape)
        self.text_head = build_head(head, self.text_feature_dim, embedding_dim, **shape)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale), dtype=torch.float32))
        # Side → number of unfrozen blocks, for the frozen sides only.
        self.frozen: dict[Side, int] = {}
        # Side → rank of its adapters, and what its tower's fingerprint was without them.
        self.adapters: dict[Side, int] = {}
        self._fingerprints: dict[Side, str] = {}

    @property
    def logit_scale(self) -> Tensor:
        """α = exp(log_logit_scale), a scalar with gradient; not clamped here, where a clamp would stop the gradient."""
        return self.log_logit_scale.exp()

    @property
    def evaluation_scale(self) -> Tensor:
        """α to read similarities with outside training; an ensemble's is chosen together with its share."""
        return self.image_head.logit_scale if isinstance(self.image_head, EnsembleHead) else self.logit_scale.detach()

    @torch.no_grad()
    def take_heads(
        self,
        image_head: ResidualHead | EnsembleHead,
        text_head: ResidualHead | EnsembleHead,
        logit_scale: float = INITIAL_LOGIT_SCALE,
    ) -> None:
        """Go to the start that a closed form gives, in the shared space that it found.

        Args:
            image_head: takes features of `image_feature_dim`.
            text_head: takes features of `text_feature_dim`; both are of one kind and have one embedding width, hidden
                width and rates.
            logit_scale: α of training, within [1, 100].
        """
        shape: dict[str, Any] = dict(image_head.to_config())
        self.head = "ensemble" if isinstance(image_head, EnsembleHead) else "residual"
        self.embedding_dim, self.hidden_dim = shape["embedding_dim"], shape["hidden_dim"]
        self.dropout, self.input_noise, self.train_map = (
            shape["dropout"],
            shape["noise"],
            shape.get("train_linear", True),
        )
        self.members, self.member_dim = shape.get("members", 0), shape.get("member_dim", MEMBER_DIM)
        device = self.log_logit_scale.device
        self.image_head, self.text_head = image_head.to(device), text_head.to(device)
        self.log_logit_scale.fill_(math.log(logit_scale))
        self.train(self.training)

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Bring log α back into [log 1, log 100], in place, after an optimiser step."""
        self.log_logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features (B, image_feature_dim) of pixels (B, 3, S, S); without a tower, of features as they are."""
        if self.image_encoder is None:
            return pixels
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fully_frozen("image")):
            features: Tensor = self.image_encoder(pixels)
        return features

    def encode_texts(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Text features (B, text_feature_dim) of ids (B, L) and lengths (B,), best left on the CPU.

        Without a tower `ids` are the features (B, text_feature_dim) and come back as they are.
        """
        if self.text_encoder is None:
            return ids
        if lengths is None:
            raise TypeError("encode_texts wants the lengths of the texts beside their ids")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fully_frozen("text")):
            features: Tensor = self.text_encoder(ids, lengths)
        return features

    def project_images(self, features: Tensor) -> Tensor:
        """Unit image embeddings (B, embedding_dim) of image features; float32 under autocast, float64 stays."""
        return _unit(self.image_head(features))

    def project_texts(self, features: Tensor) -> Tensor:
        """Unit text embeddings (B, embedding_dim) of text features; float32 under autocast, float64 stays."""
        return _unit(self.text_head(features))

    def forward(self, pixels: Tensor, ids: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, D) of images and of texts, or of both sides' features where there are no towers."""
        return self.project_images(self.encode_images(pixels)), self.project_texts(self.encode_texts(ids, lengths))

    def encoder(self, side: Side) -> Encoder | None:
        """The tower of a side, or None."""
        return self.image_encoder if side == "image" else self.text_encoder

    def freeze(self, tower: Side, unfreeze: int = 0) -> None:
        """Keep a tower as it is: no gradients, and in eval mode even while training (BatchNorm and dropout too).

        Args:
            tower: "image" or "text"; nothing happens on a side without a tower.
            unfreeze: how many of its last blocks train all the same, with what stands behind them (final norm,
                projection). Embeddings and stem stay frozen.

        Raises:
            SpecError: `unfreeze` is negative or more than the tower has blocks.
        """
        encoder = self.encoder(tower)
        if unfreeze < 0:
            raise SpecError(f"unfreeze is a number of blocks, 0 or more, not {unfreeze}")
        if encoder is None:
            return
        encoder.requires_grad_(False)
        if unfreeze > 0:
            blocks = encoder.blocks()
            if unfreeze > len(blocks):
                raise SpecError(
                    f"unfreeze {unfreeze}: the {tower} tower '{encoder.spec}' has {len(blocks)} blocks; "
                    f"pass at most {len(blocks)}, or train the whole tower"
                )
            for parameter in parameters_of([*blocks[-unfreeze:], *encoder.tail()]):
                parameter.requires_grad_(True)
        self.frozen[tower] = unfreeze
        self.train(self.training)

    def adapt(self, tower: Side, rank: int) -> None:
        """Let low-rank adapters, which at first change nothing, train beside the linear layers of a frozen tower.

        Args:
            tower: "image" or "text", with a frozen pretrained tower. The adapters' names hold `.lora_`.
            rank: R, at least 1.

        Raises:
            SpecError: the tower is not frozen whole, has no such layers, or the package peft is not there.

        Source: Hu et al., LoRA, ICLR 2022.
        """
        encoder = self.encoder(tower)
        if encoder is None or not encoder.has_source or self.frozen.get(tower) != 0:
            raise SpecError(f"adapters go beside a frozen pretrained tower, and the {tower} tower is none")
        self._fingerprints[tower] = encoder.weights_fingerprint()
        add_adapters(encoder, rank)
        self.adapters[tower] = rank
        self.train(self.training)

    def fully_frozen(self, tower: Side) -> bool:
        """Whether a tower is there and none of it trains: its features can be computed once and kept."""
        return self.encoder(tower) is not None and self.frozen.get(tower) == 0 and tower not in self.adapters

    def train(self, mode: bool = True) -> DualEncoder:
        """Training mode for what trains; the frozen parts stay in eval mode."""
        super().train(mode)
        for side, unfreeze in self.frozen.items():
            encoder = self.encoder(side)
            if encoder is None:
                continue
            encoder.eval()
            if unfreeze > 0:
                for part in [*encoder.blocks()[-unfreeze:], *encoder.tail()]:
                    if isinstance(part, nn.Module):
                        part.train(mode)
        return self

    def parameter_groups(
        self, lr: float, tower_lr: float, weight_decay: float, *, map_lr: float = 1.0
    ) -> list[dict[str, Any]]:
        """The trainable parameters as groups for an optimiser.

        Heads, adapters, and towers that start from random weights, train at `lr`; pretrained towers at `tower_lr`; the
        maps that residual heads got from a closed form at `map_lr` times `lr`. No decay for biases, norms, embeddings
        (word, position, class) and the logit scale: decay would pull them to zero, where they
        mean something else, instead of keeping a map small.

        Returns:
            Dicts with `name`, `params`, `lr` and `weight_decay`; empty groups are left out, every trainable parameter
            is in exactly one. A schedule of the rate multiplies each group's own `lr`.
        """
        undecayed = _undecayed(self)
        pretrained = tuple(f"{side}_encoder." for side in SIDES if getattr(self.encoder(side), "has_source", False))
        towers = tuple(f"{side}_encoder." for side in SIDES)
        maps = {f"{side}_head.linear.weight" for side in SIDES} if self.head == "residual" else set()
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for key, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            name = (
                "adapters"
                if ADAPTER in key
                else "pretrained_towers"
                if key.startswith(pretrained)
                else "towers"
                if key.startswith(towers)
                else "maps"
                if key in maps
                else "heads"
            )
            decays = id(parameter) not in undecayed
            group = groups.setdefault(
                (name, decays),
                {
                    "name": name if decays else f"{name}_no_decay",
                    "params": [],
                    "lr": tower_lr if name == "pretrained_towers" else lr * map_lr if name == "maps" else lr,
                    "weight_decay": weight_decay if decays else 0.0,
                },
            )
            group["params"].append(parameter)
        return list(groups.values())

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The state dict without the weights of towers that are frozen whole and can be read again from their source.

        Those are known by their spec and fingerprint (`to_config`), so a checkpoint over CLIP and BERT is a few
        megabytes. Adapters are in it; a tower with unfrozen blocks, or with random weights, is in it whole.
        """
        left_out = tuple(f"{side}_encoder." for side in ("image", "text") if self._from_source(side))
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if ADAPTER in name or not name.startswith(left_out)
        }

    def load_checkpoint_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `checkpoint_state` gave, in place.

        Raises:
            ValueError: tensors are missing or not known.
        """
        expected = self.checkpoint_state().keys()
        missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
        if missing or unknown:
            raise ValueError(
                f"checkpoint does not fit this dual encoder: {len(missing)} tensors missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}"
            )
        self.load_state_dict(dict(state), strict=False)

    def to_config(self) -> dict[str, Any]:
        """JSON values from which `dual_encoder_from_config` builds the model again; the weights are the checkpoint's.

        Call it after `freeze`. A tower that `checkpoint_state` leaves out is recorded with its fingerprint, which
        takes about a second for a large one.
        """
        config: dict[str, Any] = {
            "embedding_dim": self.embedding_dim,
            "head": self.head,
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout,
            "input_noise": self.input_noise,
            "train_map": self.train_map,
            "members": self.members,
            "member_dim": self.member_dim,
            "image_feature_dim": self.image_feature_dim,
            "text_feature_dim": self.text_feature_dim,
            "frozen": dict(self.frozen),
            "adapters": dict(self.adapters),
            "image_encoder": None if self.image_encoder is None else self.image_encoder.to_config(),
            "text_encoder": None if self.text_encoder is None else self.text_encoder.to_config(),
        }
        for side in ("image", "text"):
            encoder = self.encoder(side)
            if encoder is not None:
                fingerprint = None
                if self._from_source(side):
                    fingerprint = self._fingerprints.get(side) or encoder.weights_fingerprint()
                config[f"{side}_encoder"]["weights_fingerprint"] = fingerprint
        return config

    def _from_source(self, side: Side) -> bool:
        encoder = self.encoder(side)
        return encoder is not None and encoder.has_source and self.frozen.get(side) == 0


def _feature_dim(side: str, encoder: Encoder | None, given: int | None) -> int:
    if encoder is None:
        if given is None or given < 1:
            raise ValueError(f"without an {side} tower {side}_feature_dim says how wide the features are; got {given}")
        return given
    if given is not None and given != encoder.feature_dim:
        raise ValueError(f"'{encoder.spec}' gives {encoder.feature_dim} {side} features, not {given}")
    return encoder.feature_dim


def _unit(vectors: Tensor) -> Tensor:
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return nn.functional.normalize(vectors, dim=-1)


def _undecayed(model: nn.Module) -> set[int]:
    """Ids of the parameters without weight decay: those of fewer than two dimensions, of norms, and embeddings."""
    found = {
        id(p) for module in model.modules() if isinstance(module, NO_DECAY_MODULES) for p in module.parameters(False)
    }
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith(("positional_embedding", "class_embedding", "pos_embed", "cls_token")):
            found.add(id(parameter))
    return found
