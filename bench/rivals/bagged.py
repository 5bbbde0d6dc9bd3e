"""Bagging: the mean of the cosines of closed forms, each of a bootstrap of the training images.

Source: Breiman 1996, of our closed form.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from drawn import Draw
from varalign.canonical import Grid, choose_settings, negative_loss

from rivals import Model, whitening_of

BAGS = 10
PARTS = (0.1, 0.3, 1.0)  # of the whole closed form's ridges: averages want less


def models(draw: Draw) -> Iterator[Model]:
    """`BAGS` closed forms with the settings of the whole one, and with smaller ridges."""
    dev = draw.dev
    best, _ = choose_settings(whitening_of(draw), dev.x, dev.y, dev.owner, grid=Grid(), metric=negative_loss)
    own = torch.unique(draw.pair_x, dim=0, return_inverse=True)[1]
    images = int(own.max()) + 1
    rows_of = own.argsort(stable=True).split(torch.bincount(own).tolist())
    generator = torch.Generator().manual_seed(draw.seed)
    bags = []
    for _ in range(BAGS):
        rows = torch.cat([rows_of[i] for i in torch.randint(images, (images,), generator=generator).tolist()])
        bags.append(whitening_of(draw, rows))
    for part in PARTS:
        maps = [
            bag.solve(
                ridge=part * best.ridge,
                text_ridge=part * best.text_ridge,
                power=best.power,
                dimensions=min(best.dimensions, 128),
            )
            for bag in bags
        ]
        yield Model(
            "bagged closed forms",
            lambda x, maps=maps: torch.cat([one.embed_images(x) for one in maps], 1) / BAGS**0.5,  # type: ignore[misc]
            lambda y, maps=maps: torch.cat([one.embed_texts(y) for one in maps], 1) / BAGS**0.5,  # type: ignore[misc]
        )
