"""`train` and `resume`: from options to a finished run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from varalign._core import __version__
from varalign.aligner.aligner import Aligner
from varalign.aligner.load import trained
from varalign.aligner.run_report import write_run_report
from varalign.aligner.voice_weights import weights_of
from varalign.data.checks.split_sizes import split_sizes
from varalign.data.files import open_user_file, read_bytes, readable, write_atomically
from varalign.data.ranks import alone, joined, world
from varalign.data.waiting import silent
from varalign.inputs.assemble import assemble
from varalign.inputs.continued import check_continued
from varalign.inputs.models import gathered_parts, saved_model
from varalign.inputs.open_data import Data, open_data
from varalign.inputs.parts import Parts
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.device import pick_device, pick_precision
from varalign.options.recipe import FEWEST_FOR_MEMBERS, fill, filled
from varalign.options.voice_list import voices_line
from varalign.runs.checkpoint import step_folders
from varalign.runs.folder import RunFolder
from varalign.runs.pairs import write_pairs
from varalign.runs.position import Position
from varalign.runs.profile import Profile, part, profiling, write_profile
from varalign.runs.progress import to_stderr
from varalign.runs.quarantine import Quarantine, summary
from varalign.runs.reporter import ProgressReporter, check_reporters
from varalign.runs.result_table import chance_remark, final_table
from varalign.runs.run_errors import RunError
from varalign.runs.signals import Interrupted, StopSignals
from varalign.training.losses import new_loss
from varalign.training.machine import differences, machine_of
from varalign.training.mixing.nested import nested_rows
from varalign.training.start import Beginning, begin
from varalign.training.steps.memory import check_batch, memory_watched
from varalign.training.trainer import Trainer
from varalign.training.wise_ft import go_part_of_the_way

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        run: the run folder.
        model: the spec strings of its encoders.
        epochs: epochs trained.
        best_epoch: the epoch with the best weights on dev; 0 is the start.
        seconds: wall time, set-up and evaluation included.
        test: the numbers of `eval --json` on the test split with the best weights; where there is none, those of
            nested cross-validation, with `folds` and `judged` (see `varalign.canonical.voices.pooled`).
        zero_shot: the same of the frozen towers without heads, where both are of one CLIP; else None.
        chance: the recalls of a random ranking there.
        reachable: what no model exceeds there, where equal captions are told apart; else None.
        same_caption: whether equal captions are one text, as `--same-caption`.
        voices: the weight of each voice in the similarity, 0 for one that was tried and not kept; None without voices.
        aligner: the trained model, ready to embed and rank.
    """

    run: Path
    model: str
    epochs: int
    best_epoch: int
    seconds: float
    test: dict[str, Any]
    zero_shot: dict[str, Any] | None
    chance: dict[str, Any]
    reachable: dict[str, Any] | None
    same_caption: str
    aligner: Aligner
    voices: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON takes it."""
        figures = ("test", "zero_shot", "chance", "reachable")
        names = ("model", "epochs", "best_epoch", "seconds", "same_caption", "voices", *figures)
        return {"run": str(self.run), **{name: getattr(self, name) for name in names}}

    def rows(self) -> list[dict[str, Any]]:
        """Lines of the result table, that of chance among them."""
        told = {"model": self.model, "epochs": self.epochs, "same_caption": self.same_caption}
        return [{**told, **self.test}, *filter(None, (self.zero_shot, self.chance, self.reachable))]

    def table(self) -> str:
        """The final table, and the place of the run folder."""
        last = f"best epoch {self.best_epoch}, {self.seconds:.0f} s in all; run folder: {self.run}"
        voices = [] if self.voices is None else [voices_line(self.voices)]
        return "\n".join([final_table(self.rows()), *voices, last, *chance_remark(self.test, self.chance)])


Show = Callable[[TrainResult], object]


@dataclass(frozen=True)
class _Session:
    """The surroundings of one training command.

    Attributes:
        say: called with each remark.
        shows: whether the live line and a line per epoch go to standard error.
        stop: receives signals.
        started: `time.perf_counter()` at the beginning.
        show: called with the result, before the run's page is drawn.
        profile: where the time goes, if that is wanted.
    """

    say: Say
    shows: bool
    stop: StopSignals
    started: float
    show: Show | None
    profile: Profile | None

    @classmethod
    @contextmanager
    def begun(cls, say: Say | None, shows: bool, show: Show | None, profile: bool) -> Iterator[_Session]:
        """While entered, signals are handled; the message on one before training says that nothing is saved."""
        with (
            StopSignals() as stop,
            profiling(profile) as counted,
            nullcontext() if shows else silent(),
            joined() as every,
        ):
            if not every.is_writer:
                say, shows, show = (lambda line: None), False, None
            try:
                yield cls(say or to_stderr, shows, stop, time.perf_counter(), show, counted)
            except Interrupted as error:
                if not str(error):
                    error.args = (f"{error.name}: stopped before training began, so there is nothing to save",)
                raise


def train(
    config: TrainConfig,
    *,
    say: Say | None = None,
    progress: bool = True,
    show: Show | None = None,
    whole_below: int = FEWEST_FOR_MEMBERS,
) -> TrainResult:
    """Train from the beginning.

    Args:
        config: the options.
        say: called with each remark; standard error if None.
        progress: whether the live line and a line per epoch go to standard error.
        show: called with the result as soon as it is there; the run's page is drawn afterwards.
        whole_below: as of `open_data`; 0: a test split is drawn where the data have none.

    Returns:
        The result; everything else is in the run folder.

    Raises:
        DataError: options that contradict each other, or data that cannot be trained on.
        WeightsUnavailable: pretrained weights are not on this machine and cannot be downloaded.
        RunError: the output folder cannot be used.
        Interrupted: SIGINT or SIGTERM came; the message says what is saved and how to resume.
    """
    config.validate()
    device = pick_device(config.device)
    out = None if config.out is None else Path(config.out)
    check(config, device)
    check_continued(config)
    with _Session.begun(say, progress, show, config.profile) as session:
        if out is not None:
            world().by_writer(lambda: RunFolder.check_new(out))
        check_ranks(config)
        with part("start"):
            opened, data = open_data(config, session.say, whole_below=whole_below)
        session.say("; ".join(split_sizes(data)))
        images = len(data.rows("train"))
        config = fill(opened, images, held_out=_held_out(data))
        session.say(f"{config.start} start, {images:,} training images: {filled(opened, config) or 'as told'}")
        with part("start"):
            start = begin(config, data, device, session.say)
        parts = start.parts
        if config.precision == "auto" and parts.step_dtype != pick_precision("auto", device):
            session.say("encoders train in bfloat16, which this CPU multiplies, and are evaluated in float32")
        parts.images.prepare()
        check_batch(parts)
        run = world().by_writer(lambda: RunFolder.create(out))
        with _held(run):
            machine = machine_of(device, config.precision) | {"steps_in": str(parts.step_dtype)}
            world().by_writer(lambda: _describe(run, start, machine))
            _require_seen(run)
            return _finish(parts, run, start, session)


def _describe(run: RunFolder, start: Beginning, machine: Mapping[str, Any]) -> None:
    """Write what a run is into its folder."""
    parts, data = start.parts, start.parts.data
    if parts.config.exclude is not None:
        write_atomically(run.excluded, read_bytes(Path(parts.config.exclude)))
    model = parts.save_assets(run)
    run.write_config(
        {
            "version": __version__,
            "name": parts.name,
            "options": replace(parts.config, out=str(run.path)).as_dict(),
            "model": model,
            "start": start.as_dict(),
            "data": {
                "fingerprint": data.fingerprint,
                "images": len(data.split),
                "texts": len(data.caption_owner),
            },
            "machine": machine,
        }
    )


@contextmanager
def _held(run: RunFolder) -> Iterator[None]:
    """Hold the run folder: the writer does for all processes."""
    with ExitStack() as stack:
        world().by_writer(lambda: stack.enter_context(run.locked()))
        yield


def _require_seen(run: RunFolder) -> None:
    if not world().everywhere((run.path / "config.json").is_file()):
        raise RunError(
            f"{run.path}: not every process sees this folder, and all of them read the checkpoints in it: name one by "
            "--out that lies on a file system of all machines"
        )


def check_ranks(config: TrainConfig) -> None:
    """Refuse what runs in one process alone.

    Raises:
        ConfigError: naming the option.
    """
    if world().size == 1:
        return
    if config.loss != "clip":
        raise ConfigError(
            f"--loss {config.loss} runs in one process: its pairs are not gathered; start it without torchrun"
        )
    if config.feature_mixup:
        raise ConfigError(
            "--feature-mixup runs in one process: it mixes the pairs of a batch; start it without torchrun"
        )


def _held_out(data: Data) -> bool:
    """Whether there are a dev and a test split."""
    return len(data.rows("dev")) > 0 and len(data.rows("test")) > 0


def check(config: TrainConfig, device: torch.device) -> None:
    """Check what can be checked before anything is written.

    Args:
        config: the options, validated.
        device: where the run will train.

    Raises:
        ConfigError: a precision, a loss's strength or a reporter that is not available.
        DataError: no file of word vectors.
    """
    pick_precision(config.precision, device)
    if config.word_vectors is not None:
        with readable(Path(config.word_vectors)):
            open_user_file(config.word_vectors).close()
    new_loss(config, None)
    check_reporters(config)


def resume(
    path: Path,
    overrides: dict[str, Any],
    *,
    say: Say | None = None,
    progress: bool = True,
    show: Show | None = None,
) -> TrainResult:
    """Resume an interrupted run from its newest intact checkpoint.

    Args:
        path: the run folder.
        overrides: options that do not change the result (device, threads, cache).
        say, progress, show: as for `train`.

    Raises:
        RunError: no such run, or its data have changed.
    """
    run = RunFolder.open(path)
    with _Session.begun(say, progress, show, bool(overrides.get("profile"))) as session, _held(run):
        say = session.say
        _require_seen(run)
        saved = run.config()
        options = {"start": "random", **run.options(say), **overrides}  # the first runs had no `start`
        config, data = open_data(TrainConfig(**options).validate(), say)
        config = fill(config, len(data.rows("train")), held_out=_held_out(data))
        if data.fingerprint != saved.get("data", {}).get("fingerprint"):
            raise RunError(
                f"{path}: its data in {config.data or config.features} have changed since; train anew, or put them back"
            )
        device = pick_device(config.device)
        changed = differences(saved.get("machine", {}), machine_of(device, config.precision))
        if changed:
            say(changed)
        start = None
        if step_folders(run.checkpoints):
            torch.manual_seed(config.seed)
            model = saved_model(run)
            if config.gradient_checkpointing:
                model.checkpoint_activations()
            parts = assemble(config, data, model.to(device), say)
        else:
            say("no checkpoint yet: starting from the beginning")
            start = begin(config, data, device, say)
            parts = start.parts
        parts.images.prepare()
        return _finish(parts, run, start, session)


def _finish(parts: Parts, run: RunFolder, start: Beginning | None, session: _Session) -> TrainResult:
    """Train to the end, then evaluate; without a start, go on from the last checkpoint."""
    config, say = parts.config, session.say
    pairs, look = (None, None) if start is None else (start.pairs, start.look)
    trainer = Trainer(config, parts, run, pair_weights=pairs.weights if pairs else None, look=look)
    captions = parts.data.caption_rows(parts.train_rows)
    if start is None:
        trainer.resume(say)
        say(f"resumed at step {trainer.position.step}")
    else:
        trainer.log.cut(-1)
        if pairs is not None:
            columns = {"weight": pairs.weights.cpu().numpy(), "score": pairs.scores.cpu().numpy()}
            world().by_writer(lambda: write_pairs(run.pairs, parts.data, captions, columns))
    reporter = ProgressReporter(
        config,
        steps_per_epoch=trainer.steps_per_epoch,
        first_step=trainer.position.step,
        run=run.path,
        say=None if session.shows else say,
    )
    try:
        with memory_watched(parts, say):
            position = trainer.fit(reporter, session.stop)
    finally:
        reporter.close()
    parts = gathered_parts(parts, run)
    weights, moments = trainer.state.pair_weights, trainer.state.moments
    if config.pair_weighting == "moments" and weights is not None:
        kept = ("margin_mean", "probability_mean", "probability_variance")
        columns = {"weight": weights.cpu().numpy(), **{name: getattr(moments, name) for name in kept}}
        world().by_writer(lambda: write_pairs(run.pairs, parts.data, captions, columns))
    bad = parts.bad_images()
    if bad:
        say(f"{len(bad)} unreadable images were replaced or left out, {run.quarantine} names them: {summary(bad)}")
    return _evaluated(parts, run, position, session)


def _evaluated(parts: Parts, run: RunFolder, position: Position, session: _Session) -> TrainResult:
    """Evaluate the best weights on the test split and write the run's page.

    Raises:
        Interrupted: the message says that training is saved and how to evaluate later.
    """
    config, say = parts.config, session.say
    left = "the last evaluation is not"
    try:
        with session.stop.at_once():
            with part("test"):
                if config.wise_ft:
                    go_part_of_the_way(parts, run, say)
                world().wait()
                aligner = trained(parts, run)
                say(aligner.hub.line)
                tested = bool(len(parts.data.rows("test")))
                # Without a test split the page shows pairs of the fit, and says so; the figures are not theirs.
                shown = aligner.embedded("test" if tested else "train")
                if tested:
                    test, zero_shot = aligner.evaluate("test", found=shown), aligner.zero_shot("test")
                    chance, reachable = aligner.chance("test"), aligner.reachable("test")
                else:
                    (test, chance, zero_shot), reachable = nested_rows(parts, say), None
                    if world().is_writer:
                        run.keep_nested(
                            position.step, position.epoch, {**test, "chance": chance, "zero_shot": zero_shot}
                        )
            result = TrainResult(
                run=run.path,
                model=parts.name,
                epochs=position.epoch,
                best_epoch=position.best_epoch,
                test=test,
                zero_shot=zero_shot,
                chance=chance,
                reachable=reachable,
                seconds=time.perf_counter() - session.started,
                same_caption=config.same_caption,
                aligner=aligner,
                voices=weights_of(parts.model, run),
            )
            Quarantine(run.quarantine).add(parts.bad_images())
            if not world().is_writer:
                return result
            if session.profile is not None:
                for line in write_profile(session.profile, run.profile, run.trace):
                    say(line)
            left = "the run's page is not"
            try:
                if session.show is not None:
                    session.show(result)
            finally:  # a closed pipe takes the table, but not the page
                split = "test" if tested else "train"
                with alone():
                    write_run_report(run, parts, shown, aligner.hub.correction, result.rows(), split=split)
    except Interrupted as error:
        error.args = (
            f"{error.name}: training is done and saved, {left}; `varalign train --resume {run.path}` makes it",
        )
        raise
    return result
