"""Linear heads trained by the symmetric contrastive loss and a term of the rival's own; the best step on dev counts."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from drawn import Draw
from torch import Tensor, nn
from torch.nn.functional import normalize
from varalign.losses.pair_loss import pair_losses

from rivals import Model

BATCH, STEPS, LOOKS = 256, 400, 10
DIMENSIONS = 128


class Heads(nn.Module):
    """One linear map a side, of features that are centred and divided by their overall deviation."""

    def __init__(self, draw: Draw, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for side, features in (("x", draw.pair_x), ("y", draw.pair_y)):
            self.register_buffer(f"mean_{side}", features.mean(0))
            self.register_buffer(f"spread_{side}", (features - features.mean(0)).square().mean().sqrt())
            setattr(self, side, nn.Linear(features.shape[1], DIMENSIONS, bias=False))
        self.log_scale = nn.Parameter(torch.tensor(14.0).log())

    def start_from(self, image_map: Tensor, text_map: Tensor) -> None:
        """Take linear maps (d, k) of centred features, k at most DIMENSIONS, as the first weights; the rest is 0."""
        with torch.no_grad():
            for side, found, spread in ((self.x, image_map, self.spread_x), (self.y, text_map, self.spread_y)):
                side.weight.zero_()[: found.shape[1]] = found.T.float() * spread

    def images(self, x: Tensor) -> Tensor:
        """(n, DIMENSIONS) unit vectors."""
        return normalize(self.x((x - self.mean_x) / self.spread_x), dim=1)

    def texts(self, y: Tensor) -> Tensor:
        """(n, DIMENSIONS) unit vectors."""
        return normalize(self.y((y - self.mean_y) / self.spread_y), dim=1)

    def model(self, name: str) -> Model:
        """The heads as they are now."""
        kept = copy.deepcopy(self).requires_grad_(False)
        return Model(name, kept.images, kept.texts)


Term = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From a batch's features (B, dx), (B, dy) and embeddings (B, D), (B, D) to a term of the loss, ()."""


def trained(name: str, heads: Heads, draw: Draw, term: Term, *, lr: float, weight_decay: float = 0.01) -> Model:
    """`STEPS` steps of AdamW, a caption an image drawn for each batch; the model of least dev loss among `LOOKS`."""
    optimiser = torch.optim.AdamW(heads.parameters(), lr=lr, weight_decay=weight_decay)
    own = torch.unique(draw.pair_x, dim=0, return_inverse=True)[1]
    order, counts = own.argsort(stable=True), torch.bincount(own)
    starts = counts.cumsum(0) - counts
    generator = torch.Generator().manual_seed(draw.seed)
    best = heads.model(name)
    least = best.dev_loss(draw)
    for step in range(STEPS):
        images = torch.randperm(len(counts), generator=generator)[:BATCH]
        drawn = (torch.rand(len(images), generator=generator) * counts[images]).long()
        rows = order[starts[images] + drawn]
        x, y = draw.pair_x[rows], draw.pair_y[rows]
        u, v = heads.images(x), heads.texts(y)
        loss = pair_losses(u @ v.T, heads.log_scale.exp()).mean() + term(x, y, u, v)  # type: ignore[arg-type]
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - step / STEPS)
        optimiser.step()
        if (step + 1) % (STEPS // LOOKS) == 0:
            found = heads.model(name)
            if (reached := found.dev_loss(draw)) < least:
                least, best = reached, found
    return best
