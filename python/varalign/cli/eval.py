"""`varalign eval`: a run, or zero-shot CLIP, measured on a split."""

from __future__ import annotations

import argparse
from typing import Any

from varalign.cli.arguments import add_json, add_option, add_run, add_split, answer, load, places
from varalign.data.errors import DataError
from varalign.data.ranks import alone, world
from varalign.options.hub_sources import GALLERY, check_hub_source

STATISTICS = (
    "cosine_similarity",
    "cosine_similarity_non_pairs",
    "modality_gap",
    "alignment",
    "image_uniformity",
    "text_uniformity",
)


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("eval", help="evaluate a run, or zero-shot CLIP, on a split")
    add_run(parser)
    add_split(parser, "test")
    parser.add_argument(
        "--zero-shot",
        metavar="SPEC",
        help="evaluate CLIP without training instead of a run, such as clip:ViT-B-32@openai; needs --data",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="with --zero-shot: seed of the split (default 0)")
    add_option(parser, "same_caption").default = None  # the run's own
    parser.add_argument("--noise", metavar="SPEC", help="inject noise into the split, such as blur=0.5,drop-words=0.2")
    parser.add_argument(
        "--hub-correction",
        metavar="WORD|FILE",
        help="another correction than the run's own: auto, off, train, dev, unpaired or a file, as of train; or "
        "gallery: a bank of the evaluated split's own queries, which the table says",
    )
    add_option(parser, "hub_form").default = None  # the run's own
    add_json(parser)
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    if arguments.zero_shot is None:
        if arguments.seed is not None:
            raise DataError("--seed belongs to --zero-shot: a run is evaluated on the split of its own seed")
        model = load(arguments)
    else:
        if arguments.run is not None or arguments.data is None:
            raise DataError("--zero-shot SPEC takes --data DIR and no RUN")
        from varalign.aligner.load import zero_shot

        options = {"seed": arguments.seed or 0, "same_caption": arguments.same_caption, **places(arguments)}
        model = zero_shot(arguments.zero_shot, arguments.data, **options)
    if arguments.hub_correction is not None:
        check_hub_source(arguments.hub_correction, more=(GALLERY,))
    how = {"hub_correction": arguments.hub_correction, "hub_form": arguments.hub_form}
    own = arguments.data is None and arguments.noise is None and how == {"hub_correction": None, "hub_form": None}
    reported = model.run is not None and own and arguments.split == "test" and arguments.checkpoint == "best"
    if reported and not len(model.parts.data.rows("test")) and (kept := model.run.nested()) is not None:
        return _nested(arguments, model, kept)
    found = model.embedded("test") if reported else None
    result = model.evaluate(arguments.split, noise=arguments.noise, found=found, **how)
    from varalign.runs.result_table import chance_remark, final_table

    mode = model.config.same_caption
    named = {"model": str(model.name), "split": arguments.split, "noise": arguments.noise, "same_caption": mode}
    named |= result
    chance, reachable = model.chance(arguments.split), model.reachable(arguments.split)
    zero_shot = model.zero_shot(arguments.split, noise=arguments.noise)
    rows = [{"epochs": model.epochs, **named}, *filter(None, (zero_shot, chance, reachable))]
    lines = [final_table(rows)]
    if "unreadable" in result:
        lines.append(f"{result['unreadable']} unreadable images left out")
    lines += [f"{key.replace('_', ' '):28} {result[key]:8.4f}{_error(result, key)}" for key in STATISTICS]
    lines += chance_remark(result, chance)
    if model.run is not None and arguments.data is None and arguments.split in model.run.fitted_splits():
        lines.append(
            f"The model was fitted on pairs of {arguments.split}: it finds pairs that it has not seen less often."
        )
    code = answer(arguments, named, lines)
    if found is not None and world().is_writer:
        from varalign.aligner.run_report import write_run_report

        correction = model.hub.correction
        with alone():
            write_run_report(model.run, model.parts, found, correction, rows)
    return code


def _nested(arguments: argparse.Namespace, model: Any, kept: dict[str, Any]) -> int:
    """Print what training found by nested cross-validation: the run has no test split."""
    from varalign.runs.result_table import chance_remark, final_table

    chance, zero_shot = kept.pop("chance"), kept.pop("zero_shot")
    named = {"model": str(model.name), "same_caption": model.config.same_caption, "noise": None, **kept}
    rows = [{"epochs": model.epochs, **named}, *filter(None, (zero_shot, chance))]
    return answer(arguments, named, [final_table(rows), *chance_remark(named, chance)])


def _error(result: dict[str, Any], key: str) -> str:
    """` ± 0.0012, of a sample` where a statistic has an error, else nothing."""
    error = result.get(f"{key}_error")
    return "" if error is None else f" ± {error:.4f}, of a sample"
