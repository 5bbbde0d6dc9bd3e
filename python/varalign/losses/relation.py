"""Which images and texts of a batch belong together, by ids: a text to the images that have its id among theirs."""

from __future__ import annotations

import torch
from torch import Tensor


def positive_pairs(image_ids: Tensor, text_image_ids: Tensor) -> Tensor:
    """(..., M, N) bool: whether the text belongs to the image.

    Args:
        image_ids: (..., M), or (..., M, K) where an image has several ids.
        text_image_ids: (..., N).
    """
    if image_ids.ndim == text_image_ids.ndim:
        return image_ids[..., :, None] == text_image_ids[..., None, :]
    return (image_ids[..., :, :, None] == text_image_ids[..., None, None, :]).any(-2)


def checked_ids(name: str, ids: Tensor, queries: int, *, several: bool) -> Tensor:
    """The ids as (queries,) or, where images have several, (queries, K) int64; an error says what is wrong."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, not {type(ids).__name__}")
    shape = tuple(ids.shape)
    fits = shape == (queries,) or (several and len(shape) == 2 and shape[0] == queries and shape[1] > 0)
    if not fits or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        wanted = f"({queries},) or ({queries}, K)" if several else f"({queries},)"
        raise ValueError(f"{name} must be {wanted} integers, not {shape} of {ids.dtype}")
    if ids.ndim == 2 and not (ids.is_cuda or torch.compiler.is_compiling()):  # a GPU would make the host wait
        ordered = ids.sort(1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(1).nonzero()
        if len(twice):
            raise ValueError(f"{name}: the ids of an image must differ, those of row {int(twice[0])} do not")
    ids = ids.to(torch.int64)
    return ids[:, 0] if ids.ndim == 2 and ids.shape[1] == 1 else ids
