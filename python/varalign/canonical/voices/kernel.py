"""The kernel voice: the closed form on Nyström features of a Gaussian kernel.

Features are centred and divided by the root of their total variance. Beside lexical vectors l of unit length, as the
voice of `varalign.canonical.voices.lexical` has them, a text is [features, l] / √2. With k(a, b) = exp(−γ‖a − b‖²) and
m anchors A drawn from the data, φ(x) = k(x, A) V Λ^(−1/2) for the eigenvectors V and eigenvalues Λ of k(A, A), those
below 1e-6 of the largest dropped: φ(a)·φ(b) is k(a, b) as far as the anchors tell. The closed form is then solved on φ
of both sides.

Source: Lai & Fyfe 2000, Akaho 2001 (kernel CCA); Williams & Seeger 2001 (Nyström).

B batch, F features, L lexical dimensions, m anchors, k dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from varalign.canonical.choice import FEW
from varalign.canonical.covariance import RunningCovariance
from varalign.canonical.evenly import evenly
from varalign.canonical.maps import ClosedForm, Whitening
from varalign.canonical.voices.voice_pairs import Pairs
from varalign.evaluation.products import exact_products

NAME = "kernel"
GAMMA = 0.3
ANCHORS = 1000
SMALLEST = 1e-6  # of the largest eigenvalue
ROWS = 4096  # lifted at a time


class KernelSide(nn.Module):
    """One side: normalise(k(x, anchors) · map − offset).

    Args:
        features: F.
        lexical: L, the columns after the features.
        anchors: m.
        dimensions: k.
    """

    mean: Tensor
    scale: Tensor
    anchors: Tensor
    map: Tensor
    offset: Tensor

    def __init__(self, features: int, lexical: int, anchors: int, dimensions: int) -> None:
        super().__init__()
        self.lexical = lexical
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("anchors", torch.zeros(anchors, features + lexical))
        self.register_buffer("map", torch.zeros(anchors, dimensions))
        self.register_buffer("offset", torch.zeros(dimensions))

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments that build another one of these."""
        anchors, dimensions = self.map.shape
        return {
            "features": len(self.mean),
            "lexical": self.lexical,
            "anchors": anchors,
            "dimensions": dimensions,
        }

    def normalised(self, features: Tensor) -> Tensor:
        """(B, at least F + L) to the (B, F + L) that the kernel compares."""
        width = len(self.mean)
        found = (features[:, :width].to(self.mean.dtype) - self.mean) * self.scale
        if not self.lexical:
            return found
        return torch.cat([found, features[:, width : width + self.lexical].to(found.dtype)], dim=1) / math.sqrt(2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, at least F + L) to (B, k) unit vectors."""
        with torch.autocast(features.device.type, enabled=False):  # differences of kernel values need float32
            found = kernel(self.normalised(features), self.anchors) @ self.map - self.offset
        return nn.functional.normalize(found.float(), dim=-1)


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """(B, m) of exp(−γ‖a − b‖²) for rows of a (B, D) and b (m, D)."""
    with exact_products():
        distances = torch.addmm((a * a).sum(1, keepdim=True) + (b * b).sum(1), a, b.T, alpha=-2.0)
    return distances.clamp_(min=0).mul_(-GAMMA).exp_()


def side_of(sizes: Mapping[str, int]) -> KernelSide:
    """A side of these sizes, its tensors 0."""
    return KernelSide(**sizes)


def _some(rows: Tensor) -> Tensor:
    """At most four times as many of the rows as there are anchors, evenly spread."""
    return rows[evenly(len(rows), 4 * ANCHORS, rows.device)]


class _Lift:
    """φ of one side: anchors drawn from its rows, and V Λ^(−1/2)."""

    def __init__(self, rows: Tensor, lexical: int, generator: torch.Generator) -> None:
        width = rows.shape[1] - lexical
        count = min(len(rows), ANCHORS)
        self.side = KernelSide(width, lexical, count, 1).to(rows.device)
        plain = rows[:, :width].double()
        self.side.mean.copy_(plain.mean(0))
        variance = plain.var(0, correction=0).sum()
        self.side.scale.copy_(variance.rsqrt() if variance > 0 else torch.ones(()))
        drawn = torch.randperm(len(rows), generator=generator)[:count].sort().values.to(rows.device)
        self.side.anchors.copy_(self.side.normalised(rows[drawn]))
        values, vectors = torch.linalg.eigh(kernel(self.side.anchors, self.side.anchors).double())
        kept = values > SMALLEST * values[-1]
        self.root = vectors[:, kept] * values[kept].rsqrt()  # (m, r) float64

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, F + L) to φ (n, r) float32."""
        narrow = self.root.float()
        with exact_products():
            parts = [kernel(self.side.normalised(part), self.side.anchors) @ narrow for part in rows.split(ROWS)]
        return torch.cat(parts)

    def solved(self, mean: Tensor, linear_map: Tensor) -> KernelSide:
        """The side with the closed form's map (r, k) of φ and its mean (r,) in it."""
        sizes = {**self.side.sizes, "dimensions": linear_map.shape[1]}
        side = side_of(sizes).to(linear_map.device)
        for name in ("mean", "scale", "anchors"):
            getattr(side, name).copy_(getattr(self.side, name))
        side.map.copy_(self.root @ linear_map)
        side.offset.copy_(mean @ linear_map)
        return side


class Fit:
    """The kernel voice of some pairs, to be solved for any setting."""

    grid = FEW
    reads_lexical = False

    def __init__(self, pairs: Pairs, *, seed: int = 0, pool: Pairs | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._width = pairs.texts.shape[1] - (0 if self.reads_lexical else pairs.lexical)
        images, texts = pairs.images, pairs.texts
        if pool is not None:  # anchors among unpaired rows too: 60 images alone span 60 dimensions
            images, texts = (torch.cat([a, _some(b)]) for a, b in ((images, pool.images), (texts, pool.texts)))
        self._images = _Lift(images, 0, generator)
        self._texts = _Lift(texts[:, : self._width], pairs.lexical if self.reads_lexical else 0, generator)
        dx, dy = (lift.root.shape[1] for lift in (self._images, self._texts))
        covariance = RunningCovariance(dx, dy, pairs.images.device)
        for part in pairs.chunks():
            covariance.update_owned(*self.lifted(part), part.owner, part.weights)
        self.covariance = covariance
        self.whitening = Whitening(covariance)

    def lifted(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """What the linear maps of `whitening` take of other pairs."""
        return self._images(pairs.images), self._texts(pairs.texts[:, : self._width])

    def sides(self, found: ClosedForm) -> tuple[nn.Module, nn.Module]:
        """The image side and the text side of a solution."""
        images = self._images.solved(found.image_mean, found.image_map)
        return images, self._texts.solved(found.text_mean, found.text_map)
