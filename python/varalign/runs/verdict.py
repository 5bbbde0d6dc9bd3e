"""What a run's figures say, in sentences: whether image and text came together, and how training went. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from varalign.runs.result_table import chance_remark

_VOICES = {"closed-form": "the closed form", "kernel": "the kernel", "lexical": "the lexical kernel"}
_VOICES |= {"zero-shot": "zero-shot CLIP", "members": "the members"}


def verdict(rows: Sequence[Mapping[str, Any]], collapsed: Sequence[str] = (), split: str = "test") -> list[str]:
    """Sentences on the first row of a result table, compared with chance and with zero-shot CLIP where they are rows.

    Args:
        rows: lines of the result table, as `result_columns` takes them.
        collapsed: sides whose embeddings are one point: "image", "text".
        split: what was measured.
    """
    ours = rows[0]
    if collapsed:
        return [f"All {' and all '.join(collapsed)} embeddings are one point: the model has collapsed."]
    if "i2t_recall@1" not in ours or "images" not in ours:
        return ["No result is recorded."]
    chance = next((row for row in rows if row.get("model") == "chance"), {})
    zero_shot = next((row for row in rows if str(row.get("model")).startswith("zero-shot")), {})
    texts, images = (f"{ours[name]:,} {name}" for name in ("texts", "images"))

    def found(key: str) -> str:
        low, high = ours.get("intervals", {}).get(key, (None, None))
        notes = [] if low is None else [f"95 %: {_percent(low)} to {_percent(high)}"]
        for name, row in (("chance", chance), ("zero-shot CLIP", zero_shot)):
            notes += [f"{name} {_percent(row[key])}"] if math.isfinite(row.get(key, math.nan)) else []
        return f"{_percent(ours[key])} of 100 {'images' if key.startswith('i2t') else 'captions'} ({'; '.join(notes)})"

    where = f"On {split}, the model"
    if "judged" in ours:
        where = f"On pairs that its fit had not seen, in {ours['folds']} folds (there is no test split), the recipe"
    lines = []
    if chance and "intervals" in ours:
        lines += [f"{line[0].upper()}{line[1:]}." for line in chance_remark(ours, chance)]
    lines += [
        f"{where} finds the right caption first for {found('i2t_recall@1')} among {texts}, and the right "
        f"image first for {found('t2i_recall@1')} among {images}."
    ]
    if zero_shot:
        change = sum(ours[f"{way}_recall@1"] - zero_shot[f"{way}_recall@1"] for way in ("i2t", "t2i")) / 2
        lines.append(
            f"On the mean of both, that is {100 * abs(change):.1f} points {'above' if change > 0 else 'below'} CLIP as "
            "published."
        )
    return lines


def voices_sentence(weights: Mapping[str, float]) -> str:
    """Which voices of the recipe count, and how much.

    Args:
        weights: of each voice that was tried, 0 for one that was not kept.
    """
    kept = {_VOICES.get(name, name): weight for name, weight in weights.items() if weight}
    left = [_VOICES.get(name, name) for name, weight in weights.items() if not weight]
    alone = len(kept) == 1
    said = " + ".join(name if alone else f"{weight:.3g} × {name}" for name, weight in kept.items())
    beside = f"; {', '.join(left)}: tried, not kept" if left else ""
    return f"Similarity: {said}{' alone' if alone else ''}{beside}."


def training_lines(lines: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    """Sentences on the start, the best epoch and the end of training.

    Args:
        lines: of `metrics.jsonl`.
        options: of the run.
    """
    looks = [line for line in lines if line.get("kind") == "eval" and line.get("split", "dev") == "dev"]
    figures = [(int(line["epoch"]), mean) for line in looks if (mean := _mean_recall(line)) is not None]
    if not figures:
        return []
    (first, at_first), (last, _) = figures[0], figures[-1]
    best, at_best = max(figures, key=lambda figure: (figure[1], -figure[0]))
    start, top = _percent(at_first), _percent(at_best)
    if last == 0:
        found = [f"The model was fitted without steps of training; its mean recall on dev is {start}."]
    elif best == 0:
        found = [f"No epoch of training was better on dev than the start (mean recall {start}), so the start was kept."]
    elif first == 0:
        found = [f"Mean recall on dev rose from {start} at the start to {top} at epoch {best}, the best."]
    else:
        found = [f"Mean recall on dev: {start} at epoch {first}, {top} at epoch {best}, the best."]
    epochs, patience = options.get("epochs"), options.get("patience")
    if isinstance(epochs, int) and last < epochs:
        why = "it was interrupted"
        if patience and last - best >= patience:
            why = f"dev had not improved for {last - best} epochs (--patience {patience})"
        found.append(f"Training ended after epoch {last} of {epochs}: {why}.")
    return found


def _mean_recall(line: Mapping[str, Any]) -> float | None:
    values = [value for key, value in line.items() if "_recall@" in key and isinstance(value, (int, float))]
    return sum(values) / len(values) if values else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")
