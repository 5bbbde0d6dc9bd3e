"""The commands: arguments in, one call, results out. Imports no torch before a command runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from varalign.data.errors import DataError
from varalign.options.config import FIELDS, RECIPE, field_choices, field_type, option_name
from varalign.options.recipe import described
from varalign.runs.folder import json_text

Handler = Callable[[argparse.Namespace], int]
ON_RESUME = {"device", "threads", "cache", "checkpoint_every", "max_bad"}  # what does not change a run's numbers


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like every other error of the program."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with code 2."""
        print(f"varalign: error: {message}\n  (`{self.prog} --help` lists the options)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the words after the program's name; the process's own if None.

    Returns:
        The exit code: 0 done; 1 it ran and failed, or a check found faults; 2 wrong use or input; 130 or 143
        interrupted.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(dashed(sys.argv[1:] if argv is None else argv))
    if rest and hasattr(arguments, "words") and not any(word.startswith("-") for word in rest):
        arguments.words += rest  # `search RUN --top 3 "text"`: argparse takes positionals in one place only
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    handler: Handler = arguments.handler
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return handler(arguments)
    except (DataError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        return _fail(error, 2)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt as error:  # of a run, an `Interrupted`, which knows the signal and what is saved
        print(f"varalign: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except _Terminated:
        print("varalign: terminated", file=sys.stderr)
        return 143
    except Exception as error:
        if type(error).__module__.startswith("varalign."):  # an error of ours: a sentence that says what to mend
            return _fail(error, getattr(error, "exit_code", 2))
        if isinstance(error, OSError):
            return _fail(error, 1)
        raise


class _Terminated(BaseException):
    pass


def _terminated(*_: object) -> None:
    raise _Terminated


def _fail(error: BaseException, code: int) -> int:
    print(f"varalign: error: {error}", file=sys.stderr)
    return code


def dashed(argv: Sequence[str]) -> list[str]:
    """Option names with dashes, whichever way they were written: `--use_pretrained=True` → `--use-pretrained=True`."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append((name.replace("_", "-") if name.startswith("--") else name) + equals + value)
    return words


def truth(text: str) -> bool:
    """`True`, `yes`, `1`, … or `False`, `no`, `0`, …

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if text.lower() in {"true", "yes", "on", "1"}:
        return True
    if text.lower() in {"false", "no", "off", "0"}:
        return False
    raise argparse.ArgumentTypeError(f"takes True or False, not {text!r}")


def truth_or_word(text: str) -> bool | str:
    """What `truth` knows as such, everything else as it is."""
    try:
        return truth(text)
    except argparse.ArgumentTypeError:
        return text


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="varalign",
        description="Image-text alignment from few pairs, with a loss that is re-scheduled at every step.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and leave"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_train(commands)
    _add_eval(commands)
    _add_visualize(commands)
    _add_embed(commands)
    _add_search(commands)
    _add_diagnose(commands)
    _add_data(commands)
    _add_convert(commands)
    _add_study(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from varalign import __version__

        print(f"varalign {__version__}")
        raise SystemExit(0)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a dual encoder",
        description="Train a dual encoder on images with captions, or on the features of frozen encoders.",
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {}
    for name, item in FIELDS.items():
        group = item.metadata["group"]
        groups.setdefault(group, parser.add_argument_group(group))
        _add_option(groups[group], name)
    groups["output"].add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="options from a TOML file or a run's config.json; the command line goes over it",
    )
    groups["output"].add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was interrupted")
    groups["output"].add_argument("--json", action="store_true", help="print the result as one JSON value")
    parser.set_defaults(handler=_train)


def _add_option(group: Any, name: str) -> None:
    item = FIELDS[name]
    default = item.default
    text = item.metadata["help"] + (
        f" ({described(name)})"
        if name in RECIPE
        else ""
        if default in (None, False)
        else f" (default {default:g})"
        if isinstance(default, float)
        else f" (default {default})"
    )
    text = text.replace("%", "%%")
    choices = field_choices(name)
    words = "{" + ",".join(choices) + "}" if choices else ""
    bare = True if field_type(name) is bool else item.metadata.get("bare")
    if bare is not None:
        kind = truth if bare is True else truth_or_word
        flag = {"dest": name, "nargs": "?", "const": bare, "type": kind, "metavar": words or "BOOL", "help": text}
        group.add_argument(option_name(name), **flag)
        group.add_argument("--no-" + name.replace("_", "-"), dest=name, action="store_false", help=argparse.SUPPRESS)
        return
    metavar = words or item.metadata.get("metavar", "X")
    group.add_argument(option_name(name), dest=name, type=field_type(name), metavar=metavar, help=text)


def _train(arguments: argparse.Namespace) -> int:
    from varalign.options.config import read_config_file, resolve

    given = {name: value for name, value in vars(arguments).items() if name in FIELDS}
    resume = getattr(arguments, "resume", None)
    if resume is not None:
        clash = sorted(option_name(name) for name in given if name not in ON_RESUME)
        if clash or hasattr(arguments, "config"):
            raise DataError(
                f"--resume goes on with the run's own options: leave out {', '.join(clash or ['--config'])}"
            )
    else:
        layers = [read_config_file(arguments.config)] if hasattr(arguments, "config") else []
        config = resolve([*layers, given])
    from varalign.training import run

    as_json = getattr(arguments, "json", False)
    result = run.resume(resume, given) if resume is not None else run.train(config)
    print(json_text(result.as_dict()) if as_json else result.table())
    return 0


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="run folder (the newest under runs/)")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best, last or step-N (default best)")
    _place_arguments(parser)


def _place_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", type=Path, help="another data folder than the run's own")
    parser.add_argument("--skip-missing", action="store_true", help="leave out captions that name a missing image")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps (the best there is)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads that decode images; 0 takes all cores"
    )
    parser.add_argument("--cache", metavar="DIR", help="folder of cached tower features (~/.cache/varalign)")


def _split_argument(parser: argparse.ArgumentParser, default: str, *, every: bool = False) -> None:
    names = ["train", "dev", "test", *(["all"] if every else [])]
    parser.add_argument("--split", default=default, choices=names, help=f"part of the data (default {default})")


def _add_eval(commands: Any) -> None:
    parser = commands.add_parser("eval", help="measure a run, or zero-shot CLIP, on a split")
    _run_argument(parser)
    _split_argument(parser, "test")
    parser.add_argument(
        "--zero-shot",
        metavar="SPEC",
        help="measure CLIP as it is instead of a run, such as clip:ViT-B-32@openai; needs --data",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="with --zero-shot: seed of the split (default 0)")
    parser.add_argument(
        "--noise", metavar="SPEC", help="noise injected into the split, such as blur=0.5,drop-words=0.2"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.set_defaults(handler=_eval)


def _eval(arguments: argparse.Namespace) -> int:
    from varalign.aligner import aligner
    from varalign.runs.progress import final_table

    if arguments.zero_shot is not None:
        if arguments.run is not None or arguments.data is None:
            raise DataError("--zero-shot SPEC takes --data DIR and no RUN")
        model = aligner.zero_shot(
            arguments.zero_shot, arguments.data, seed=arguments.seed or 0, **_places(arguments, data=False)
        )
        name = str(model.name)
    else:
        if arguments.seed is not None:
            raise DataError("--seed belongs to --zero-shot: a run is measured on the split of its own seed")
        model = _load(arguments)
        name = str(model.name)
    result = model.evaluate(arguments.split, noise=arguments.noise)
    if arguments.json:
        print(json_text({"model": name, "split": arguments.split, "noise": arguments.noise, **result}))
        return 0
    print(final_table([{"model": name, "epochs": model.epochs, **result}, model.chance(arguments.split)]))
    if "unreadable" in result:
        print(f"{result['unreadable']} unreadable images left out")
    for key in (
        "cosine_similarity",
        "cosine_similarity_non_pairs",
        "modality_gap",
        "alignment",
        "image_uniformity",
        "text_uniformity",
    ):
        print(f"{key.replace('_', ' '):28} {result[key]:8.4f}")
    return 0


def _places(arguments: argparse.Namespace, *, data: bool = True) -> dict[str, Any]:
    places = {
        "skip_missing": arguments.skip_missing,
        "device": arguments.device,
        "threads": arguments.threads,
        "cache": arguments.cache,
    }
    return places | ({"data": arguments.data} if data else {})


def _load(arguments: argparse.Namespace) -> Any:
    from varalign.runs.folder import RunFolder

    path = arguments.run
    if path is None:
        path = RunFolder.newest().path
        print(f"run: {path} (the newest)", file=sys.stderr)
    from varalign.aligner import aligner

    return aligner.load(path, checkpoint=arguments.checkpoint, **_places(arguments))


def _add_visualize(commands: Any) -> None:
    parser = commands.add_parser("visualize", help="draw the shared space by t-SNE at several perplexities")
    _run_argument(parser)
    _split_argument(parser, "test")
    parser.add_argument(
        "--perplexities", type=float, nargs="+", default=[5, 10, 30, 50], metavar="P", help="default 5 10 30 50"
    )
    parser.add_argument(
        "--pairs", type=int, default=1000, metavar="N", help="most pairs drawn, chosen by seed (default 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the choice and of t-SNE (default 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the pictures (RUN/pictures)")
    parser.add_argument("--json", action="store_true", help="print the files as one JSON value")
    parser.set_defaults(handler=_visualize)


def _visualize(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    files = model.visualize(
        arguments.perplexities, split=arguments.split, pairs=arguments.pairs, seed=arguments.seed, out=arguments.out
    )
    print(json_text([str(file) for file in files]) if arguments.json else "\n".join(str(file) for file in files))
    return 0


def _add_embed(commands: Any) -> None:
    parser = commands.add_parser("embed", help="write embeddings, or the towers' features, with ids")
    _run_argument(parser)
    _split_argument(parser, "all", every=True)
    parser.add_argument(
        "--features", action="store_true", help="write the towers' outputs as a features file for `train --features`"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write, .safetensors or .npz")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON value")
    parser.set_defaults(handler=_embed)


def _embed(arguments: argparse.Namespace) -> int:
    model = _load(arguments)
    written = model.write_embeddings(arguments.out, split=arguments.split, features=arguments.features)
    if arguments.json:
        print(json_text(written))
    else:
        print(f"{arguments.out}: {written['images']} images, {written['texts']} texts")
    return 0


def _add_search(commands: Any) -> None:
    parser = commands.add_parser("search", help="find the best images for a text, or the best captions for an image")
    parser.add_argument(
        "words", nargs="+", metavar="[RUN] TEXT", help="run folder (the newest under runs/) and the text"
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="find captions for this image instead")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many (default 5)")
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best, last or step-N (default best)")
    _split_argument(parser, "all", every=True)
    _place_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.set_defaults(handler=_search)
    for action in parser._actions:
        if action.dest == "words":
            action.nargs = "*"


def _search(arguments: argparse.Namespace) -> int:
    words = arguments.words
    with_text = arguments.image is None
    if len(words) > 1 + with_text or (with_text and not words):
        raise DataError('search takes [RUN] "TEXT" with the text in quotes, or [RUN] --image FILE')
    if with_text and len(words) == 1 and (Path(words[0]) / "config.json").is_file():
        raise DataError(f'search {words[0]}: a run, but no text to look for: search {words[0]} "TEXT"')
    if with_text and not words[-1].strip():
        raise DataError('search "TEXT": the text is empty; describe the picture to look for')
    arguments.run = Path(words[0]) if len(words) == 1 + with_text else None
    if arguments.top < 1:
        raise DataError(f"--top is {arguments.top}, but must be at least 1")
    model = _load(arguments)
    found = (
        model.search_images(words[-1], top=arguments.top, split=arguments.split)
        if with_text
        else model.search_captions(arguments.image, top=arguments.top, split=arguments.split)
    )
    if arguments.json:
        print(json_text(found))
    else:
        for item in found:
            print(f"{item['score']:7.4f}  {item['image']}  {item['caption']}")
    return 0


def _add_diagnose(commands: Any) -> None:
    parser = commands.add_parser(
        "diagnose",
        help="estimate the share of wrong pairs and list them, before any training or after it",
        description="Estimate what share of the pairs is wrong, list all pairs with scores (pairs.csv), and write a "
        "page of the worst beside the captions that would fit better (diagnosis.html).",
    )
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="a run: its data, and what its epochs say")
    parser.add_argument(
        "--features", metavar="FILE", type=Path, help="features file; with --data too, its pictures are shown"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="data folder, through pretrained encoders")
    parser.add_argument("--image-encoder", metavar="SPEC", help="pretrained encoder of --data (CLIP ViT-B/32)")
    parser.add_argument("--text-encoder", metavar="SPEC", help="pretrained encoder of --data (BERT)")
    _split_argument(parser, "train", every=True)
    parser.add_argument(
        "--by",
        default="auto",
        choices=["auto", "image", "pair"],
        help="whether an image's captions are wrong together or each for itself (default auto: found out)",
    )
    parser.add_argument("--dataset-size", type=int, metavar="N", help="N images of the training split, drawn by seed")
    parser.add_argument(
        "--noise", metavar="SPEC", help="wrong pairs injected on purpose, such as swap-images=0.4, to see them found"
    )
    parser.add_argument("--worst", type=int, default=50, metavar="N", help="pairs on the page (default 50)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of folds, intervals, splits, noise (default 0)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the files (RUN/diagnosis, or diagnosis)")
    parser.add_argument("--skip-missing", action="store_true", help="leave out captions that name a missing image")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps (the best there is)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads that decode images; 0: all cores")
    parser.add_argument("--cache", metavar="DIR", help="folder of cached tower features (~/.cache/varalign)")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.set_defaults(handler=_diagnose)


def _diagnose(arguments: argparse.Namespace) -> int:
    from varalign.aligner.diagnose import diagnose

    options = {name: value for name, value in vars(arguments).items() if name not in {"handler", "json"}}
    found = diagnose(**options)
    if arguments.json:
        print(json_text(found.as_dict()))
    else:
        print("\n".join([*found.lines(), f"{found.csv}: every pair with its scores, worst first", str(found.page)]))
    return 0


def _add_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="check or measure a data folder, or write the built-in sample")
    parts = parser.add_subparsers(metavar="WHAT", required=True, parser_class=Parser)
    check = parts.add_parser("check", help="report what is there, missing, unreadable, duplicated or suspicious")
    check.add_argument("folder", metavar="DIR", type=Path)
    check.add_argument("--json", action="store_true", help="print one JSON value")
    check.set_defaults(handler=_data_check)
    stats = parts.add_parser("stats", help="measure pixels, image sizes, caption lengths and the vocabulary")
    stats.add_argument("folder", metavar="DIR", type=Path)
    stats.add_argument(
        "--images", type=int, default=1000, metavar="N", help="training images decoded, drawn by seed; 0: all (1000)"
    )
    stats.add_argument("--size", type=int, default=224, metavar="S", help="side of the square of pixels (default 224)")
    stats.add_argument("--bert", type=Path, metavar="FOLDER", help="a BERT model's folder, for lengths in its tokens")
    stats.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the choice and the split (default 0)")
    stats.add_argument("--threads", type=int, default=0, metavar="N", help="0 takes all cores")
    stats.add_argument("--skip-missing", action="store_true", help="leave out captions that name a missing image")
    stats.add_argument("--json", action="store_true", help="print one JSON value")
    stats.set_defaults(handler=_data_stats)
    sample = parts.add_parser("sample", help="write the built-in data set: drawn scenes with five captions each")
    sample.add_argument("folder", metavar="DIR", type=Path)
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the scenes (default 0)")
    sample.set_defaults(handler=_data_sample)


def _data_check(arguments: argparse.Namespace) -> int:
    from varalign.data.check import check_dataset

    if not arguments.folder.is_dir():
        raise DataError(f"{arguments.folder}: no such folder; wanted one with captions.txt and Images/")
    report = check_dataset(arguments.folder)
    print(json_text(report.as_dict()) if arguments.json else "\n".join(report.lines()))
    return 1 if report.faults else 0


def _data_stats(arguments: argparse.Namespace) -> int:
    from varalign.data.summary import summarise

    if not arguments.folder.is_dir():
        raise DataError(f"{arguments.folder}: no such folder; wanted one with captions.txt and Images/")
    options = {name: getattr(arguments, name) for name in ("images", "size", "bert", "seed", "threads", "skip_missing")}
    summary = summarise(arguments.folder, **options)
    print(json_text(summary.as_dict()) if arguments.json else "\n".join(summary.lines()))
    return 0


def _data_sample(arguments: argparse.Namespace) -> int:
    from varalign.data.sample import write_sample

    print(write_sample(arguments.folder, seed=arguments.seed))
    return 0


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert", help="turn .pt weights or TorchScript archives into safetensors, running nothing in them"
    )
    parser.add_argument("source", metavar="IN", type=Path)
    parser.add_argument("target", metavar="OUT.safetensors", type=Path)
    parser.set_defaults(handler=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from varalign.encoders.convert import convert

    print(convert(arguments.source, arguments.target))
    return 0


def _add_study(commands: Any) -> None:
    from varalign.cli.study import add_arguments

    add_arguments(
        commands.add_parser(
            "study",
            help="train a grid of starts, schedules, data fractions, noise and seeds, and compare",
            description="Train a grid of runs, resumable cell by cell; print means with intervals and differences.",
        )
    )
