"""`varalign train`: every option of a training run, in groups."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from varalign.cli.arguments import add_json, add_option, answer
from varalign.data.errors import DataError
from varalign.data.waiting import waiting
from varalign.options.fields import OPTIONS


class HelpAll(argparse.Action):
    """Print the help of all options: those that `--help` leaves out too."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for action, text in self.const:
            action.help = text
        parser.epilog = None
        parser.print_help()
        parser.exit()


def add(commands: Any) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "train",
        help="train a dual encoder",
        description="Train a dual encoder on images with captions, or on the features of frozen encoders.",
        epilog=f"These are the most used options; --help-all lists all {len(OPTIONS)}.",
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {}
    rare = []
    for name, option in OPTIONS.items():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        action = add_option(groups[option.group], name)
        if not option.common:
            rare.append((action, action.help))
            action.help = argparse.SUPPRESS
    groups["output"].add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="read options from a TOML file or a run's config.json; the command line takes precedence",
    )
    groups["output"].add_argument("--resume", metavar="RUN", type=Path, help="go on with an interrupted run")
    add_json(groups["output"])
    parser.add_argument("--help-all", action=HelpAll, nargs=0, const=rare, help="show the help of all options")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on with a run."""

    def show(result: Any) -> None:
        answer(arguments, result.as_dict(), [result.table()])

    given = {name: value for name, value in vars(arguments).items() if name in OPTIONS}
    resume, file = getattr(arguments, "resume", None), getattr(arguments, "config", None)
    if resume is not None:
        clash = sorted(OPTIONS[name].flag for name in given if not OPTIONS[name].on_resume)
        if clash or file is not None:
            raise DataError(
                f"--resume goes on with the run's own options: leave out {', '.join(clash or ['--config'])}"
            )
        with waiting("starting"):
            from varalign.training.run import resume as go_on

        go_on(resume, given, show=show)
    else:
        from varalign.options.layers import continued, read_config_file, resolve
        from varalign.runs.folder import RunFolder
        from varalign.runs.progress import to_stderr

        layers = [*([] if file is None else [read_config_file(file, to_stderr)]), given]
        said = {name: value for layer in layers for name, value in layer.items()}
        if said.get("continue_from") is not None:
            saved = RunFolder.open(Path(said["continue_from"])).options(to_stderr)
            layers.insert(0, continued(saved, said))
        config = resolve(layers)
        with waiting("starting"):
            from varalign.training.run import train

        train(config, show=show)
    return 0
