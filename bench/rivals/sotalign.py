"""SOTAlign: a linear teacher from the pairs; linear heads learn from them and, by its transport plans, from the rest.

With S the heads' similarities of a batch of unpaired images and texts, S* the teacher's, and P, P* their entropic
transport plans (uniform marginals) at ε and ε*, the term is α KL(P* ‖ P), whose gradient by S is α (P − P*) / ε. The
teacher is our closed form, as canonical correlation is one of the paper's teachers. ε = 0.05 and ε* = 0.005 as there.

Source: Roschmann et al., SOTAlign, arXiv 2602.23353.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from drawn import Draw
from torch import Tensor
from varalign.canonical import Grid, choose_settings, negative_loss

from rivals import Model, whitening_of
from rivals.heads import BATCH, DIMENSIONS, Heads, trained

SHARP, TEACHER_SHARP = 0.05, 0.005
ALTERNATIONS = 50
SETTINGS = ((True, 3e-4, 1.0), (True, 3e-4, 10.0), (False, 1e-3, 1.0), (False, 1e-3, 10.0))  # from the teacher, rate, α


def plan(s: Tensor, sharp: float) -> Tensor:
    """(n, m) float64 the transport plan of least −⟨P, s⟩ + ε · negative entropy, with uniform marginals."""
    kernel = ((s.double() - s.max()) / sharp).exp().clamp_min(1e-290)
    n, m = s.shape
    rows, columns = torch.ones(n, dtype=torch.float64), torch.full((m,), 1 / m, dtype=torch.float64)
    for _ in range(ALTERNATIONS):
        rows = 1 / n / (kernel @ columns)
        columns = 1 / m / (rows @ kernel)
    return rows[:, None] * kernel * columns


def models(draw: Draw) -> Iterator[Model]:
    """Every setting; nothing where the draw left no unpaired images or texts."""
    if not (len(draw.unpaired_x) and len(draw.unpaired_y)):
        return
    whitening, dev = whitening_of(draw), draw.dev
    grid = Grid(dimensions=(DIMENSIONS,))
    teacher = choose_settings(whitening, dev.x, dev.y, dev.owner, grid=grid, metric=negative_loss)[0].solved(whitening)
    for from_teacher, lr, strength in SETTINGS:
        heads = Heads(draw, draw.seed)
        if from_teacher:
            heads.start_from(teacher.image_map, teacher.text_map)
        generator = torch.Generator().manual_seed(draw.seed)

        def term(
            x: Tensor,
            y: Tensor,
            u: Tensor,
            v: Tensor,
            heads: Heads = heads,
            strength: float = strength,
            generator: torch.Generator = generator,
        ) -> Tensor:
            x, y = (
                loose[torch.randint(len(loose), (BATCH,), generator=generator)]
                for loose in (draw.unpaired_x, draw.unpaired_y)
            )
            s = heads.images(x) @ heads.texts(y).T
            with torch.no_grad():
                wanted = plan(teacher.embed_images(x) @ teacher.embed_texts(y).T, TEACHER_SHARP)
                slope = (plan(s, SHARP) - wanted).float() / SHARP
            return strength * (slope * s).sum()  # its gradient is the divergence's; its value is not used

        yield trained("SOTAlign, unpaired data", heads, draw, term, lr=lr)
