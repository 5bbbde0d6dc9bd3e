"""t-SNE plots of the shared space: texts blue, images red, a faint line from each text to its image.

Source: van der Maaten & Hinton 2008, "Visualizing data using t-SNE"; scikit-learn's Barnes-Hut implementation;
of many points openTSNE: Poličar, Stražar & Zupan 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError
from varalign.data.files import write_atomically
from varalign.data.outputs import UNFINISHED, written_together
from varalign.data.waiting import counted
from varalign.pictures.style import BLUE, INK, RED, PictureForm, new_figure, picture
from varalign.runs.progress import to_stderr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# n pairs, D embedding; points are the n images, then the n texts

MOST_POINTS = 10_000
"""Most points that scikit-learn lays out, whose time grows faster than theirs."""
_FAINT = "#8a93a3"
_ONE_POINT = 1e-3
"""Spread of unit vectors, relative to their length, up to which their differences count as rounding errors."""


class Collapsed(DataError):
    """All embeddings of a side are equal but for rounding errors; t-SNE would draw one point as a cloud."""


def choose_pairs(n: int, limit: int = 1000, seed: int = 0) -> NDArray[np.int64]:
    """At most `limit` of n pairs, drawn by seed without repetition, in ascending order; all pairs if n ≤ limit.

    Raises DataError for a limit below 1.
    """
    check_seed(seed)
    if limit < 1:
        raise DataError(f"limit: wanted at least 1 pair, got {limit}")
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:limit])


def pair_points(image_embeddings: Any, text_embeddings: Any) -> NDArray[np.float32]:
    """(2n, D) points: n images, then their n texts.

    Args:
        image_embeddings: (n, D) finite numbers; row i belongs to row i of the texts.
        text_embeddings: (n, D), likewise.

    Raises:
        Collapsed: all images, or all texts, are equal but for rounding errors.
        DataError: shapes that differ, NaN or infinity.
    """
    images = np.asarray(image_embeddings, dtype=np.float32)
    texts = np.asarray(text_embeddings, dtype=np.float32)
    if images.ndim != 2 or images.shape != texts.shape or len(images) == 0:
        raise DataError(f"wanted n image and n text embeddings of one width (n, D), got {images.shape}, {texts.shape}")
    for name, rows in (("image", images), ("text", texts)):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise DataError(
                f"{name} embeddings: {len(bad)} of {len(rows)} rows hold NaN or infinity (first: row {bad[0]}); "
                "the training has diverged, or the file is damaged"
            )
        if collapsed(rows):
            raise Collapsed(
                f"all {name} embeddings are one point but for rounding: the encoder has collapsed; nothing is drawn"
            )
    return np.concatenate([images, texts])


def collapsed(rows: NDArray[np.float32]) -> bool:
    """Whether all rows (n, D) are one point but for rounding errors."""
    away = float(np.square(rows - rows.mean(axis=0)).sum(axis=1).mean())
    return len(rows) > 1 and away <= _ONE_POINT**2 * float(np.square(rows).sum(axis=1).mean())


def check_seed(seed: int) -> None:
    """Raises DataError for a seed that scikit-learn does not take."""
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}, but scikit-learn takes seeds from 0 to {2**32 - 1}")


def fitting_perplexities(
    perplexities: Sequence[float], points: int, say: Callable[[str], None] | None = None
) -> list[float]:
    """The perplexities below the number of points, each once; `say` gets a remark on those that are left out.

    Raises:
        DataError: an empty list, a perplexity below 1, or none below the number of points.
    """
    wanted = list(dict.fromkeys(float(perplexity) for perplexity in perplexities))
    if not wanted:
        raise DataError("perplexities: wanted at least one, got none")
    fitting = [perplexity for perplexity in wanted if perplexity < points]
    for perplexity in wanted:
        if not perplexity >= 1.0 or not fitting:
            raise DataError(
                f"perplexity {_written(perplexity)}: wanted at least 1 and less than the number of points, "
                f"which is {points:,} ({points // 2:,} pairs, two points each); give a smaller one or more pairs"
            )
    left_out = [_written(perplexity) for perplexity in wanted if perplexity not in fitting]
    if left_out and say is not None:
        say(f"perplexity {', '.join(left_out)}: left out, there are only {points:,} points ({points // 2:,} pairs)")
    return fitting


def _written(perplexity: float) -> str:
    """30.0 as `30`, 7.5 as `7.5`: for titles and file names."""
    return repr(perplexity).removesuffix(".0")


def _layout(points: NDArray[np.float32], perplexity: float, seed: int) -> NDArray[np.float32]:
    """(2n, 2) coordinates for one perplexity, computed in one thread: other orders of summation give other layouts.

    Of more than `MOST_POINTS` points, openTSNE's (its interpolated forces take a time linear in the points).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    start = "pca" if min(points.shape) >= 2 else "random"
    with threadpool_limits(limits=1):
        if len(points) > MOST_POINTS:
            import openTSNE

            found = openTSNE.TSNE(perplexity=perplexity, initialization=start, random_state=seed, n_jobs=1).fit(points)
            return np.asarray(found, dtype=np.float32)
        layout = TSNE(perplexity=perplexity, init=start, learning_rate="auto", random_state=seed).fit_transform(points)
    return np.asarray(layout, dtype=np.float32)


def layouts(
    points: NDArray[np.float32], perplexities: Sequence[float], *, seed: int = 0, jobs: int | None = None
) -> list[NDArray[np.float32]]:
    """t-SNE coordinates (2n, 2) for each perplexity, computed in parallel; they do not depend on `jobs`.

    openTSNE (extra `tsne`) computes those of more than `MOST_POINTS` points. Where it is not installed, each is the
    plane of the two largest principal components, which is said on standard error.

    Args:
        points: (2n, D) float32, finite.
        perplexities: each at least 1 and below 2n.
        seed: of the random start of scikit-learn's PCA and nearest neighbours.
        jobs: worker processes; None: one for each perplexity, at most as many as cores; 1: computed in this process.
    """
    from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]

    if _by_components(len(points)):
        to_stderr(
            f"{len(points):,} points: drawn by PCA; t-SNE of more than {MOST_POINTS:,} takes openTSNE: "
            "pip install 'varalign[tsne]', or fewer --pairs"
        )
        return [plane(points)] * len(perplexities)
    workers = min(len(perplexities), jobs or cpu_count())
    what = f"t-SNE of {len(points):,} points"
    if workers <= 1:
        return [_layout(points, value, seed) for value in counted(perplexities, what, len(perplexities))]
    # Fresh processes, because a fork of a process with torch's threads can hang. Threads hardly helped: scikit-learn
    # holds the GIL for most of the descent. The largest perplexity takes longest, so it starts first.
    order = sorted(range(len(perplexities)), key=lambda i: -perplexities[i])
    parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator")
    found = parallel(delayed(_layout)(points, perplexities[i], seed) for i in order)
    by_index = dict(zip(order, counted(found, what, len(order)), strict=True))
    return [by_index[i] for i in range(len(perplexities))]


def _by_components(points: int) -> bool:
    """Whether so many points are drawn by PCA: too many for scikit-learn's t-SNE, and openTSNE is not installed."""
    return points > MOST_POINTS and find_spec("openTSNE") is None


def plane(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(2n, 2) coordinates along the two largest principal components; zeros along one that there is not."""
    centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    return np.asarray(np.pad(centred @ axes, ((0, 0), (0, 2 - axes.shape[1]))), dtype=np.float32)


def _draw(axes: Axes, layout: NDArray[np.float32], perplexity: float, *, inches: float) -> None:
    from matplotlib.collections import LineCollection

    images, texts = np.split(layout, 2)
    pairs = len(images)
    crowd = min(1.0, 12.0 / math.sqrt(pairs))  # scale of size and opacity: 1 up to 144 pairs, 0.38 at 1,000
    axes.add_collection(
        LineCollection(
            list(np.stack([texts, images], axis=1)), colors=_FAINT, linewidths=0.09 * inches, alpha=0.2 + 0.3 * crowd
        )
    )
    marks: dict[str, Any] = {
        "s": inches**2 * (0.18 + 0.9 * crowd**2),
        "linewidths": 0.05 * inches,
        "edgecolors": "white",
    }
    for name, points, colour in (("text", texts, BLUE), ("image", images, RED)):
        axes.scatter(points[:, 0], points[:, 1], c=colour, alpha=0.85, label=name, **marks)
    low, high = layout.min(axis=0), layout.max(axis=0)
    reach = 0.53 * max(float((high - low).max()), 1e-6)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5d9e0")
    counted = f"{pairs:,} pair" + ("" if pairs == 1 else "s")
    title = "two principal components" if _by_components(2 * pairs) else f"perplexity {_written(perplexity)}"
    title = f"{title}, {counted}"
    axes.set_title(title, fontsize=2.0 * inches, color=INK, pad=1.2 * inches, loc="left")

    legend = axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
        frameon=False,
        fontsize=1.7 * inches,
        markerscale=1.6,
        handletextpad=0.1,
        columnspacing=1.0,
        borderaxespad=0.2,
        labelcolor=INK,
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)


def draw_layouts(
    found: Mapping[float, NDArray[np.float32]], out: Path, *, about: str = "", form: PictureForm = "png"
) -> list[Path]:
    """Draw a plot for each perplexity (`tsne_perplexity_5.png`, …) and a sheet with all of them (`tsne.png`).

    Args:
        found: (2n, 2) places, the images first, by perplexity.
        out: folder for the files, made if missing; files of these names are replaced.
        about: what is drawn, for the foot of each picture.
        form: of the files.

    Returns:
        The files: one for each perplexity in the order given, the sheet last.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for perplexity, layout in found.items():
        figure = new_figure(8, 8.6, 180)
        _draw(figure.add_subplot(), layout, perplexity, inches=8)
        pictures[out / f"tsne_perplexity_{_written(perplexity)}.{form}"] = _finished(figure, about, form)
    pictures[out / f"tsne.{form}"] = _sheet(found, about, form)
    with written_together(out / UNFINISHED, list(pictures)):
        for file, content in pictures.items():
            write_atomically(file, content)
    return list(pictures)


def _sheet(found: Mapping[float, NDArray[np.float32]], about: str, form: PictureForm) -> bytes:
    """A picture with all layouts."""
    columns = min(len(found), 2 if len(found) in (2, 4) else 3)
    rows = math.ceil(len(found) / columns)
    side = 5.5
    sheet = new_figure(side * columns, (side + 0.35) * rows + 0.2, 180)
    for place, (perplexity, layout) in enumerate(found.items(), start=1):
        _draw(sheet.add_subplot(rows, columns, place), layout, perplexity, inches=side)
    return _finished(sheet, about, form)


def _finished(figure: Figure, about: str, form: PictureForm) -> bytes:
    if about:
        figure.supxlabel(about, fontsize=9, color=_FAINT, x=0.01, ha="left", parse_math=False)
    return picture(figure, form)
