"""The model card of an export, made from what the run recorded: data, recipe, results, limits and use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varalign._core import __version__
from varalign.aligner.exports.subject import Subject
from varalign.data.files import read_bytes, write_atomically
from varalign.data.terminal import printable
from varalign.encoders.voices_head import VoicesHead
from varalign.options.fields import OPTIONS
from varalign.runs.result_table import result_columns

CARD = "README.md"
REPORT = "report.json"
SOURCE = "Pillai 2025, arXiv 2503.03202"
LIBRARIES = {"sentence-transformers": "sentence-transformers", "open_clip": "open_clip"}
SHOWN = (
    "image_encoder",
    "text_encoder",
    "start",
    "voices",
    "head",
    "embedding_dim",
    "members",
    "epochs",
    "batch_size",
    "lr",
    "loss",
    "schedule",
    "unfreeze",
    "lora",
    "dataset_size",
    "same_caption",
    "seed",
)
"""Options of the recipe that the card names."""


def write_card(subject: Subject, folder: Path, target: str, use: str, notes: Sequence[str] = ()) -> None:
    """Write the card as `README.md`, with the header that the hub reads.

    Args:
        subject: the model.
        folder: of the export.
        target: its format.
        use: Python code; `{place}` stands for the folder.
        notes: what the reader of this format must know.
    """
    rows = recorded_results(subject)
    parts = [
        f"# {_safe(subject.name)}",
        "An image-text model: it maps images and captions to unit vectors of one space, in which the cosine of an "
        f"image and a fitting caption is high. Trained by [varalign](https://arxiv.org/abs/2503.03202) {__version__} "
        f"({SOURCE}) from few pairs, exported as `{target}`.",
        "## How to use it",
        f"```python\n{use.strip().format(place='PATH/OF/THIS/FOLDER')}\n```",
        *notes,
        "## Data",
        _data(subject),
        "## Recipe",
        _recipe(subject),
        "## Results",
        _results(rows),
        "## Hub correction",
        _hub(subject),
        "## Limits",
        _limits(subject, rows),
    ]
    text = _header(subject, target, rows) + "\n\n".join(parts) + "\n"
    write_atomically(folder / CARD, text.encode())


def _header(subject: Subject, target: str, rows: Sequence[Mapping[str, Any]]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for key, value in sorted(rows[0].items()) if rows else ():
        if "_recall@" in key:
            direction, _, at = key.partition("_recall@")
            given: dict[str, Any] = {"metric_type": "recall", "metric_name": f"{direction} Recall@{at}"}
            given |= {"task_type": "image-text-retrieval", "dataset_type": "own", "dataset_name": "test split"}
            results.append(EvalResult(**given, metric_value=value))
    card = ModelCardData(
        library_name=LIBRARIES.get(target, "varalign"),
        pipeline_tag="feature-extraction",
        tags=["image-text-retrieval", "multimodal", "varalign"],
        model_name=subject.name if results else None,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---\n\n"


def _data(subject: Subject) -> str:
    config = {} if subject.run is None else subject.run.config()
    data, options = config.get("data", {}), subject.config
    lines = [f"{data['images']:,} images with {data['texts']:,} captions" if "texts" in data else "Not recorded"]
    if options.dataset_size is not None:
        lines.append(f"{options.dataset_size:,} of the training images were used")
    unpaired = [name for name in ("unpaired_images", "unpaired_texts") if getattr(options, name) is not None]
    lines += [f"beside them {name.replace('_', ' ')} without partners" for name in unpaired]
    if config.get("options", {}).get("noise"):
        lines.append(f"noise injected on purpose: {_safe(config['options']['noise'])}")
    said = "; ".join(lines)
    return f"{said}. The pairs themselves are not in this folder; fingerprint `{data.get('fingerprint', '')[:16]}`."


def _recipe(subject: Subject) -> str:
    lines = ["| option | value |", "| --- | --- |"]
    options = subject.config.as_dict()
    for side in ("image", "text"):
        encoder = subject.model.image_encoder if side == "image" else subject.model.text_encoder
        if encoder is not None:
            options[f"{side}_encoder"] = re.sub(r"([:@])(?:\./|/.*/)", r"\1", encoder.spec)
    named = [name for name in SHOWN if options[name] != OPTIONS[name].default or name == "seed"]
    lines += [f"| `{OPTIONS[name].flag}` | {_safe(options[name])} |" for name in named]
    head = subject.model.image_head
    if isinstance(head, VoicesHead):
        shares = ", ".join(f"{name} {share:.2f}" for name, share in head.shares().items())
        lines += ["", f"Weights of the voices in the similarity: {shares}."]
    return "\n".join(lines)


def _results(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No evaluation of the test split is recorded: `varalign eval RUN` makes one, and the next export has it."
    columns, note = result_columns(rows)
    count = len(next(iter(columns.values())))
    table = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    table += [f"| {' | '.join(_safe(cells[row]) for cells in columns.values())} |" for row in range(count)]
    return "\n".join([*table, "", f"The test split, 95 % intervals over images. {note}"])


def _hub(subject: Subject) -> str:
    found = subject.hub.correction
    if found is None:
        return f"None: scores are cosine similarities ({_safe(subject.hub.line)})."
    kept = {
        "bank": "**the embeddings of queries that the model was trained or chosen on** (by --with-bank)",
        "centroids": "the means of clusters of training embeddings, of which small clusters come near to single ones",
        "variance": "mean and covariance of the bank's embeddings, and no embedding of a training pair",
    }[found.form]
    of_bank = subject.config.hub_form == "bank" and found.form != "bank"
    kept += "; the results above are those with the whole bank, `--with-bank`" if of_bank else ""
    return (
        f"Scores are s(q, g) − b(g): an item g that is near every query is marked down ({_safe(subject.hub.line)}). "
        f"This folder holds {kept}. As inner product: [q, 1] · [g, −b(g)]."
    )


def _limits(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "The model has seen few pairs: on images and words unlike those of its data it may be no better than its "
        "frozen encoders, or worse. Measure it on your own data before you rely on it"
        + (": `varalign eval FOLDER --data DIR`." if subject.model.text_encoder is not None else "."),
        "It inherits what the encoders' training data lack and favour, and their licenses; the license of this model "
        "is for the owner of its data to say.",
    ]
    kernels = [name for name in subject.model.shape.voices if name in ("kernel", "lexical")]
    if kernels:
        lines.append(
            f"The heads hold features of up to 1,000 training images and captions (anchors of the voice "
            f"{' and '.join(kernels)}): who has the folder can tell whether a picture was among them. `--voices "
            "closed-form,members` trains heads without."
        )
    if subject.model.lexicon is not None:
        lines.append("The words of the training captions that stand in two or more of them are in the lexicon.")
    if rows and rows[0].get("images", 1000) < 1000:
        lines.append(f"The figures come from {rows[0]['images']:,} test images: see the intervals.")
    if subject.model.text_encoder is not None:
        lines.append(f"Texts are cut after {subject.model.text_encoder.tokenizer.max_length} tokens.")
    return "\n".join(f"- {line}" for line in lines)


def recorded_results(subject: Subject) -> list[dict[str, Any]]:
    """The lines of the result table that the run's report has, or the run that was exported had; none without them."""
    if subject.run is None:
        return []
    try:
        found = json.loads(read_bytes(subject.run.path / REPORT))
        return list(found["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return list(subject.run.config().get("results", []))


def _safe(value: object) -> str:
    """Text for a Markdown line or cell."""
    return re.sub(r"([|<>`*_\[\]])", r"\\\1", printable(str(value))).replace("\n", " ")
