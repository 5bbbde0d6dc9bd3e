"""The linear map that a head is, where it is one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varalign.aligner.exports.subject import Subject
from varalign.canonical.voices.closed_form import LinearSide
from varalign.canonical.voices.zero_shot import PlainSide
from varalign.data.errors import DataError
from varalign.encoders.heads import NoisyHead
from varalign.encoders.residual import ResidualHead
from varalign.encoders.voices_head import VoicesHead


def linear_map(head: nn.Module, features: int) -> tuple[Tensor, Tensor] | None:
    """W (D, F) and b (D,), float64, of a head whose unit vector is that of W x + b; None for another head.

    Args:
        head: of a `DualEncoder`, in evaluation mode.
        features: F.
    """
    if isinstance(head, NoisyHead):
        head = head[0]
    if isinstance(head, VoicesHead) and head.members is None and len(head.fixed) == 1:
        head = next(iter(head.fixed.values()))
    if isinstance(head, nn.Identity | PlainSide):
        return torch.eye(features, dtype=torch.float64), torch.zeros(features, dtype=torch.float64)
    if isinstance(head, nn.Linear):
        return head.weight.detach().double(), head.bias.detach().double()
    if isinstance(head, LinearSide):
        weight = head.map.double().T
        return weight, -weight @ head.mean.double()
    if isinstance(head, ResidualHead) and head.residual is None:
        weight = head.linear.weight.detach().double()
        return weight, -weight @ head.mean.double()
    return None


def linear_maps(subject: Subject, target: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`linear_map` of both heads.

    Raises:
        DataError: they are none, with the options that train one.
    """
    model = subject.model
    image = linear_map(model.image_head, model.image_feature_dim)
    text = linear_map(model.text_head, model.text_feature_dim)
    if image is None or text is None:
        kind = ", ".join(model.shape.voices) if model.shape.head == "voices" else model.shape.head
        kind += f" and {model.shape.members} members" if model.shape.members else ""
        raise DataError(
            f"--to {target} holds linear heads alone, and these are no linear map ({kind}): train with --voices "
            "closed-form, or with --head linear"
        )
    return image, text
