"""The decoded cache as one tensor on a device: crops, mirrors, colours and normalisation are made there, in batches.

What comes out is what `ImagePipeline` makes of the same cache: the draws of a row are the core's own, and the levels
are those of `rust/src/image/resize.rs`, to the bit. That is no luck. The weights of an axis have 16 bits, as there, and
levels are counted from -128: so every sum of a product of the two matrices is a whole number below 2^24, which float32
holds whatever the order of summation. (Beyond four kept pixels for each one of the result on an axis weights get finer
and sums longer, and one level in some thousands may be off by one; the cache keeps 1.5, so crops rarely pass 2.)

Pictures of different sizes lie back to back, so a batch is: one gather of every crop's pixels into a block of the
largest crop's size; one product of matrices with the weights across, one with those down; rounding to levels after
each. `down first` pictures (the core's choice for tall ones) are gathered with their axes exchanged. Only the draws go
to the device, some hundred bytes a picture, and nothing is waited for.

B batch, S side of the result, F pixels along the axis that is resampled first, N along the next, T taps of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.data.decoded import DecodedCache
from varalign.data.images import Augment, Preprocess, prepare

WORKING_MEMORY = 256 << 20
"""Bytes that making a batch may take beside its result; larger batches are made in parts."""

_BLOCK = 64 << 20
"""Bytes that are read from the file at a time."""

_MOST_BITS = 22
"""Bits after the point of a weight, at most (`rust/src/image/weights.rs`)."""

_GREY = [float(np.float32(share)) for share in (0.2989, 0.587, 0.114)]

Floats = NDArray[np.float64]


def send(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; towards CUDA from pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Normalisation:
    """Levels to normalised float32 on a device, as the core computes them: `(level / 255 - mean) / std`."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        # Tensors: dividing by a number, CUDA multiplies by its inverse, which rounds otherwise.
        self._most, self._mean, self._std = (
            torch.tensor(value, dtype=torch.float32, device=device)
            for value in (255.0, preprocess.mean, preprocess.std)
        )

    def __call__(self, levels: Tensor) -> Tensor:
        """(..., 3), of any type, to float32."""
        return (levels.float() / self._most - self._mean) / self._std


class DeviceCache:
    """The pictures of a decoded cache on a device.

    cache: made with the same `preprocess` and with `augment` or without. device: "cpu" or a CUDA device. augment: the
    random crops, mirrors and colours; None for finished squares. seed: of the draws.

    Raises MemoryError where the device has no room for the pictures, naming how much they take, and ValueError for a
    device without float64 (mps), a cache of another kind, or a setting out of range.
    """

    def __init__(
        self,
        cache: DecodedCache,
        preprocess: Preprocess,
        device: torch.device | str,
        *,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "mps":
            raise ValueError("crops are made on a device in float64, which mps has not")
        cache.check(preprocess, augment)
        self.preprocess, self.augment = preprocess, augment
        self._preparation = prepare(preprocess, augment, seed)
        self._index = cache.index
        self._pixels = _load(cache, self.device).view(-1, 3)
        self._normalised = Normalisation(preprocess, self.device)

    @property
    def nbytes(self) -> int:
        """Bytes that the pictures take on the device."""
        return self._pixels.numel()

    def holds(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row's picture is kept."""
        return self._index[rows, 1] > 0

    @torch.no_grad()
    def batch(
        self, rows: NDArray[np.int64], *, epoch: int = 0, dtype: Literal["float32", "uint8"] = "float32"
    ) -> Tensor:
        """The samples of these rows, (B, 3, S, S) channels last on the device: normalised float32, or uint8 levels.

        Nothing here waits for the device. Raises KeyError where a row is not kept.
        """
        if dtype not in ("float32", "uint8"):
            raise ValueError(f"dtype must be 'float32' or 'uint8', got {dtype!r}")
        outside = (rows < 0) | (rows >= len(self._index))
        if outside.any():
            raise KeyError(f"rows {rows[outside][:3].tolist()} are not among the {len(self._index)} of the data set")
        if not self.holds(rows).all():
            raise KeyError(f"rows {rows[~self.holds(rows)][:3].tolist()} are not in the decoded cache")
        size = self.preprocess.size
        kind = torch.float32 if dtype == "float32" else torch.uint8
        out = torch.empty(len(rows), size, size, 3, dtype=kind, device=self.device)
        if len(rows):
            plan = self._plan(rows, epoch) if self.augment is not None else None
            shape = (size, size) if plan is None else (plan.first, plan.following)
            part = max(1, WORKING_MEMORY // _bytes_of(size, *shape))
            table = send(self._squares(rows) if plan is None else plan.table, self.device)
            for begin in range(0, len(rows), part):
                chosen = slice(begin, begin + part)
                # Autocast would round the products to 16 bits.
                with torch.autocast(self.device.type, enabled=False):
                    levels = self._levels(table[chosen]) if plan is None else self._crops(table[chosen], plan)
                out[chosen] = self._normalised(levels) if dtype == "float32" else levels
        return out.permute(0, 3, 1, 2)

    def _squares(self, rows: NDArray[np.int64]) -> Floats:
        """Where finished squares lie, in the columns of `_levels`."""
        size = self.preprocess.size
        ones = np.ones(len(rows))
        return np.stack([self._index[rows, 0] / 3, ones * size, ones, ones * size, ones * size], 1)

    def _plan(self, rows: NDArray[np.int64], epoch: int) -> _Plan:
        """The draws of these rows, and where that is in the pictures as they are kept."""
        offset, width, height, *full = self._index[rows].T.astype(np.float64)
        drawn = self._preparation.draws(self._index[rows, 3:], rows, epoch)
        across = _Axis.of(drawn[:, 0], drawn[:, 2], width / full[0])
        down = _Axis.of(drawn[:, 1], drawn[:, 3], height / full[1])
        size = self.preprocess.size
        shorter, narrower = down.length - size, across.length - size
        swapped = (shorter > 0) & (shorter > 2 * narrower)  # down first, as Pillow chooses
        steps = np.stack([np.ones(len(rows)), width], 1)
        mirrored = np.stack([drawn[:, 4], np.zeros(len(rows))], 1)
        axes = np.stack([across.table(mirrored[:, 0], steps[:, 0]), down.table(mirrored[:, 1], steps[:, 1])], 1)
        axes[swapped] = axes[swapped, ::-1]
        base = offset / 3 + across.pixel + down.pixel * width
        first, following = axes[:, 0], axes[:, 1]
        table = np.concatenate(
            [
                np.stack([base, first[:, 0], following[:, 0], first[:, 1], following[:, 1]], 1),
                first[:, 1:],
                following[:, 1:],
                swapped[:, None],
                drawn[:, 5:],
            ],
            axis=1,
        )
        longest = [int(axis[:, 1].max()) for axis in (first, following)]
        stretch = [max(1.0, float(axis[:, 4].max()) / size) for axis in (first, following)]
        half = 2 if self.preprocess.interpolation == "bicubic" else 1
        taps = tuple(int(2 * half * value) + 2 for value in stretch)
        return _Plan(table, longest[0], longest[1], (taps[0], taps[1]), bool(swapped.any()))

    def _levels(self, table: Tensor, first: int | None = None, following: int | None = None) -> Tensor:
        """The pixels (B, F, N, 3), uint8, from a table of base, step and step, count and count.

        Beyond a picture's own counts its last pixels stand again: their weights are zero.
        """
        base, step, next_step, count, next_count = table[:, :5].long().T[:, :, None, None]
        size = self.preprocess.size
        along = torch.arange(first or size, device=self.device).view(1, -1, 1)
        aside = torch.arange(following or size, device=self.device).view(1, 1, -1)
        index = base + torch.minimum(along, count - 1) * step + torch.minimum(aside, next_count - 1) * next_step
        return self._pixels[index]

    def _crops(self, table: Tensor, plan: _Plan) -> Tensor:
        """Levels (B, S, S, 3), whole numbers in float32."""
        size = self.preprocess.size
        pixels = self._levels(table, plan.first, plan.following)
        count = len(table)
        passes = [
            self._weights(table[:, at : at + 5], taps, length)
            for at, taps, length in ((5, plan.taps[0], plan.first), (10, plan.taps[1], plan.following))
        ]
        levels = pixels.view(count, plan.first, -1).float().sub_(128)
        levels = _resampled(*passes[0], levels).view(count, size, plan.following, 3)
        levels = levels.sub_(128).transpose(1, 2).reshape(count, plan.following, -1)
        levels = _resampled(*passes[1], levels).view(count, size, size, 3)
        if plan.any_swapped:
            levels = torch.where(table[:, 15, None, None, None] > 0, levels.transpose(1, 2), levels)
        if self.augment is not None and any(self.augment.jitter):
            levels = _jittered(levels, table[:, 16:])
        return levels

    def _weights(self, axis: Tensor, taps: int, length: int) -> tuple[Tensor, Tensor]:
        """Weights (B, S, F) of an axis in whole numbers, and what one is worth (B, 1, 1); `fill` and `round` there."""
        size, half = self.preprocess.size, 2 if self.preprocess.interpolation == "bicubic" else 1
        _, begin, end, stretched, mirrored = axis.T[:, :, None, None]
        place = torch.arange(size, device=self.device).view(1, -1, 1)
        place = torch.where(mirrored > 0, size - 1 - place, place)
        scale = stretched / size
        wide = scale.clamp(min=1)
        centre = begin + (place + 0.5) * scale
        start = (centre - half * wide + 0.5).clamp(min=0).floor()
        stop = torch.minimum((centre + half * wide + 0.5).floor(), end.ceil())
        pixel = start + torch.arange(taps, device=self.device)
        inside = torch.minimum(end, pixel + 1) - torch.maximum(begin, pixel)
        kernel = _cubic if half == 2 else _triangle
        exact = torch.where(pixel < stop, kernel((pixel - centre + 0.5) * (1 / wide)) * inside, 0)
        total = exact.sum(-1, keepdim=True)
        exact = exact / torch.where(total == 0, 1, total)
        powers = 2.0 ** torch.arange(_MOST_BITS + 1, dtype=exact.dtype, device=self.device)
        fits = exact.abs().amax((1, 2))[:, None] * powers + 1 <= 32767
        unit = (2.0 ** (fits.sum(-1) - 1))[:, None, None]
        # Running sums are rounded, halves away from zero: the weights' sum stays 1.
        sums = exact.cumsum(-1) * unit.to(exact.dtype)
        sums = sums.sign() * (sums.abs() + 0.5).floor()
        whole = torch.diff(sums, prepend=torch.zeros_like(sums[..., :1])).float()
        tap = torch.arange(length, device=self.device) - start.long()
        tap = torch.where((tap >= 0) & (tap < taps), tap, taps)
        return torch.nn.functional.pad(whole, (0, 1)).gather(2, tap), 1 / unit.float()


@dataclass(frozen=True)
class _Plan:
    """What a batch needs to know on the host, and the table that goes to the device.

    table: (B, 22) float64: base pixel, steps and counts of both axes (`_levels`); of the first axis, then of the next:
    count, begin, end, length, mirrored; whether they are exchanged; three changes of colours and their factors.
    first, following: the largest counts. taps: of both axes. any_swapped: whether any picture's axes are exchanged.
    """

    table: Floats
    first: int
    following: int
    taps: tuple[int, int]
    any_swapped: bool


@dataclass(frozen=True)
class _Axis:
    """The source along one axis: `Stretch` in `rust/src/image/geometry.rs`; (B,) each.

    pixel: the first that it touches. begin, end: counted from that one's edge. length: in pixels, with fractions.
    """

    pixel: Floats
    begin: Floats
    end: Floats
    length: Floats

    @classmethod
    def of(cls, begin: Floats, length: Floats, scale: Floats) -> _Axis:
        """From begin and length in the file's picture."""
        begin, length = begin * scale, length * scale
        pixel = np.floor(begin)
        begin = begin - pixel
        end = begin + length
        near = np.round(end)
        return cls(pixel, begin, np.where(np.abs(end - near) < 1e-9, near, end), length)

    def table(self, mirrored: Floats, step: Floats) -> Floats:
        """(B, 6): step from one pixel to the next, count, begin, end, length, mirrored."""
        return np.stack([step, np.ceil(self.end), self.begin, self.end, self.length, mirrored], 1)


def _load(cache: DecodedCache, device: torch.device) -> Tensor:
    """The whole file as one uint8 tensor."""
    size = cache.path.stat().st_size
    needed = size + WORKING_MEMORY
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if needed > free:
            raise MemoryError(_too_large(len(cache), needed, device, f"{free / 2**20:,.0f} MiB are free there"))
    try:
        pixels = torch.empty(size, dtype=torch.uint8, device=device)
    except RuntimeError as error:  # torch's kind of MemoryError
        raise MemoryError(_too_large(len(cache), needed, device, str(error).partition("\n")[0])) from None
    with cache.path.open("rb") as file:
        for begin in range(0, size, _BLOCK):
            block = np.fromfile(file, np.uint8, min(_BLOCK, size - begin))
            if len(block) < min(_BLOCK, size - begin):
                raise ValueError(
                    f"{cache.path}: ends at byte {begin + len(block)} of {size}; remove it to have it anew"
                )
            pixels[begin : begin + len(block)] = torch.from_numpy(block)  # the host waits here: once, before training
    return pixels


def _too_large(count: int, needed: int, device: torch.device, why: str) -> str:
    return f"{count:,} decoded images and room to crop them take {needed / 2**20:,.0f} MiB on {device}, and {why}"


def _bytes_of(size: int, first: int, following: int) -> int:
    """What a sample takes while it is made: index, levels, floats; the first pass; weights; colours in float64."""
    return 23 * first * following + 30 * size * following + 28 * size * (first + following) + 90 * size * size


def _resampled(weights: Tensor, worth: Tensor, levels: Tensor) -> Tensor:
    """Levels after a pass, from levels less 128: whole numbers in float32, exactly."""
    return _product(weights, levels).mul_(worth).add_(128.5).floor_().clamp_(0, 255)


def _product(weights: Tensor, levels: Tensor) -> Tensor:
    if torch.get_float32_matmul_precision() == "highest":
        return torch.bmm(weights, levels)
    # TF32 and bfloat16 keep 8 bits of a factor at least: the weights in two halves of that many.
    high = (weights / 256).round()
    return torch.bmm(high, levels).mul_(256).add_(torch.bmm(weights - 256 * high, levels))


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _jittered(levels: Tensor, changes: Tensor) -> Tensor:
    """Colours changed as `rust/src/image/color.rs` does it; `changes` (B, 6): which of them, its factor, three times.

    Its fused operations round once, so sums are made in float64 and rounded to float32.
    """
    for which, factor in zip(changes.T[::2, :, None, None], changes.T[1::2, :, None, None].float(), strict=True):
        grey = torch.zeros_like(levels[..., 0])
        for channel, share in enumerate(_GREY):
            grey = (levels[..., channel].double() * share + grey).float()
        grey = grey.floor_()
        mean = grey.double().mean((1, 2), keepdim=True).float()
        other = torch.where(which == 1, mean, torch.where(which == 2, grey, 0))
        blended = (other.double() * (1 - factor))[..., None] + levels * factor[..., None]
        levels = blended.float().clamp_(0, 255).floor_()
    return levels
