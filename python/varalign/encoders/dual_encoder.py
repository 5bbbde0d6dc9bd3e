"""The dual encoder: two towers, two projection heads and the logit scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from varalign.data.tokens.lexicon import Lexicon
from varalign.encoders.adapters import ADAPTER
from varalign.encoders.ensemble import EnsembleHead
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.heads import build_head
from varalign.encoders.sharding import split_as
from varalign.encoders.specs import SIDES, Side
from varalign.encoders.towers import Towers
from varalign.encoders.voices_head import VoicesHead

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


class DualEncoder(Towers):
    """Maps images and texts to unit vectors of one space.

    Args:
        towers: the towers; the dual encoder uses the same modules and keeps what is frozen.
        shape: kind and sizes of the heads.
        heads: the image head and the text head, of that shape; None builds them with random weights.
        logit_scale: α at the start, within [1, 100].

    Attributes:
        lexicon: makes the lexical vectors that follow the text features, where a voice reads them.

    Raises:
        ValueError: an unknown kind of head, or a scale out of range.
    """

    def __init__(
        self,
        towers: Towers,
        shape: HeadShape = HeadShape(),  # noqa: B008 - frozen
        *,
        heads: tuple[nn.Module, nn.Module] | None = None,
        logit_scale: float = INITIAL_LOGIT_SCALE,
    ) -> None:
        dims = {"image_feature_dim": towers.image_feature_dim, "text_feature_dim": towers.text_feature_dim}
        super().__init__(towers.image_encoder, towers.text_encoder, **dims)
        self.frozen, self.adapters, self.fingerprints = towers.frozen, towers.adapters, towers.fingerprints
        self.inside = towers.inside
        if not 1.0 <= logit_scale <= MAX_LOGIT_SCALE:
            raise ValueError(f"logit_scale is within [1, {MAX_LOGIT_SCALE:.0f}], not {logit_scale}")
        self.shape = shape
        if heads is None:
            heads = build_head(self.image_feature_dim, shape), build_head(self.text_feature_dim, shape, "text")
        self.image_head, self.text_head = heads
        self.lexicon: Lexicon | None = None
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale), dtype=torch.float32))
        self.train(self.training)

    @property
    def logit_scale(self) -> Tensor:
        """α = exp(log_logit_scale), a scalar with gradient; it is not clamped here, as that would stop the gradient."""
        return self.log_logit_scale.exp()

    @property
    def evaluation_scale(self) -> Tensor:
        """α for evaluation; that of an ensemble, or of voices, is chosen together with their weights."""
        head = self.image_head
        return head.logit_scale if isinstance(head, EnsembleHead | VoicesHead) else self.logit_scale.detach()

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Clamp log α to [log 1, log 100] in place; call it after each optimiser step."""
        self.log_logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))

    def project_images(self, features: Tensor) -> Tensor:
        """Unit image embeddings (B, embedding_dim) of image features: float64 for float64 features, else float32."""
        return _unit(self.image_head(features))

    def project_texts(self, features: Tensor) -> Tensor:
        """Unit text embeddings (B, embedding_dim) of text features: float64 for float64 features, else float32."""
        return _unit(self.text_head(features))

    def forward(self, pixels: Tensor, ids: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, D) of images and of texts; a side without a tower takes features."""
        return self.project_images(self.encode_images(pixels)), self.project_texts(self.encode_texts(ids, lengths))

    def parameter_groups(
        self, lr: float, tower_lr: float, weight_decay: float, *, map_lr: float = 1.0
    ) -> list[dict[str, Any]]:
        """The trainable parameters as groups for an optimiser.

        Heads, adapters, and towers that start from random weights train at `lr`, pretrained towers at `tower_lr`, and
        the closed-form maps in residual heads at `map_lr` times `lr`. Biases, norms, embeddings (word, position, class)
        and the logit scale have no decay, because zero is not a neutral value for them.

        Returns:
            Dicts with `name`, `params`, `lr` and `weight_decay`, without empty groups; every trainable parameter is in
            exactly one. A learning rate schedule multiplies each group's own `lr`.
        """
        undecayed = _undecayed(self)
        rates = {"pretrained_towers": tower_lr, "maps": lr * map_lr}
        groups: dict[str, dict[str, Any]] = {}
        for key, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            kind = self._group_of(key)
            decays = id(parameter) not in undecayed
            name = kind if decays else f"{kind}_no_decay"
            settings = {"lr": rates.get(kind, lr), "weight_decay": weight_decay if decays else 0.0}
            groups.setdefault(name, {"name": name, "params": [], **settings})["params"].append(parameter)
        return list(groups.values())

    def _group_of(self, key: str) -> str:
        if ADAPTER in key:
            return "adapters"
        side, _, part = key.partition("_")
        if part.startswith("encoder."):
            encoder = self.encoder(cast(Side, side))
            return "pretrained_towers" if encoder is not None and encoder.has_source else "towers"
        return "maps" if part == "head.linear.weight" and self.shape.head == "residual" else "heads"

    def checkpoint_state(self, *, whole: bool = False) -> dict[str, Tensor]:
        """The state dict without the weights of fully frozen towers that can be read again from their source.

        `whole`: with them.

        `to_config` records such a tower by its spec and fingerprint, so a checkpoint over CLIP and BERT takes a few
        megabytes. Adapters are always included; a tower with unfrozen blocks or random weights is included whole.
        """
        left_out = tuple(f"{side}_encoder." for side in SIDES if self.from_source(side) and not whole)
        state, places = {}, set()
        for name, tensor in self.state_dict().items():
            if ADAPTER in name or not name.startswith(left_out):
                # Tied weights, T5's embedding, share their memory, which safetensors refuses.
                state[name] = tensor.clone() if tensor.numel() and tensor.data_ptr() in places else tensor
                places.add(tensor.data_ptr())
        return state

    def load_checkpoint_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `checkpoint_state`, in place; the weights of a tower that this model lacks are ignored.

        Raises:
            ValueError: tensors are missing or not known.
        """
        absent = tuple(f"{side}_encoder." for side in SIDES if self.encoder(side) is None)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(absent)}
        expected = self.checkpoint_state().keys()
        missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
        if missing or unknown:
            raise ValueError(
                f"checkpoint does not fit this dual encoder: {len(missing)} tensors missing {missing[:3]}, "
                f"{len(unknown)} unknown {unknown[:3]}"
            )
        if self.sharded:
            own = self.state_dict()
            state = {name: split_as(tensor, own[name]) for name, tensor in state.items()}
        self.load_state_dict(state, strict=False)

    def to_config(self) -> dict[str, Any]:
        """JSON values from which `dual_encoder_from_config` rebuilds the model; the checkpoint has the weights.

        Call it after `freeze`. A tower that `checkpoint_state` leaves out is recorded with its fingerprint, which takes
        about a second for a large tower.
        """
        config: dict[str, Any] = {
            **asdict(self.shape),
            "image_feature_dim": self.image_feature_dim,
            "text_feature_dim": self.text_feature_dim,
            "frozen": dict(self.frozen),
            "adapters": dict(self.adapters),
        }
        for side in SIDES:
            encoder, fingerprint = self.encoder(side), None
            if encoder is not None and self.from_source(side):
                fingerprint = self.fingerprints.get(side) or encoder.weights_fingerprint()
            described = None if encoder is None else {**encoder.to_config(), "weights_fingerprint": fingerprint}
            config[f"{side}_encoder"] = described
        return config


def without_heads(towers: Towers) -> DualEncoder:
    """Two towers that share a space, as published: their features are the embeddings.

    Fully trained CLIP checkpoints all have their scale at the clamp, 100.
    """
    return DualEncoder(towers, HeadShape(towers.image_feature_dim, "identity"), logit_scale=MAX_LOGIT_SCALE)


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
