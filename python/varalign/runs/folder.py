"""The run folder: where a run's configuration, metrics, checkpoints and pictures are. Torch-free.

`config.json`, `metrics.jsonl`, `checkpoints/step-N/` with `best` and `last`, the tokenizer in `assets/`, `pictures/`.
Every file is written under a temporary name, synced and renamed, so that a reader sees the old one or the new one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from varalign.data.errors import DataError
from varalign.data.files import read_bytes, write_atomically
from varalign.encoders.specs import SIDES
from varalign.options.fields import OPTIONS
from varalign.options.layers import replace_removed
from varalign.options.recipe import RANDOM as ALWAYS_FILLED
from varalign.options.voice_list import EVERY_PAIR
from varalign.runs import schema
from varalign.runs.json_text import json_text
from varalign.runs.lock import LOCK, locked
from varalign.runs.metrics import NESTED, MetricsLog, read_metrics
from varalign.runs.run_errors import RunError
from varalign.runs.schema import FORMAT, format_number, number, or_null, record, whole

RUN_KIND = "varalign-run"
CONFIG = "config.json"
EXPORT = "varalign_export.json"
"""The list of files of an exported folder, and its mark."""
_MEND = "put a whole copy of the file back, or train anew"

_ENCODER = record({"spec": schema.text, "architecture": record({}), "weights_fingerprint": or_null(schema.text)})
_MODEL = record(
    {
        "embedding_dim": whole(1),
        "head": schema.text,
        "frozen": record({}, {side: whole() for side in SIDES}),
        **{f"{side}_feature_dim": whole(1) for side in SIDES},
        **{f"{side}_encoder": or_null(_ENCODER) for side in SIDES},
    },
    {
        "hidden_dim": whole(),
        "dropout": number,
        "input_noise": number,
        "train_map": schema.flag,
        "members": whole(),
        "member_dim": whole(1),
        "voices": record({}),
        "lexical_dim": whole(),
        "lexical_members": schema.flag,
        "adapters": record({}, {side: whole(1) for side in SIDES}),
    },
)
CONFIG_SCHEMA = record(
    {"options": record({}), "model": _MODEL, "data": record({"fingerprint": schema.text})},
    {"format": format_number, "version": schema.text, "name": schema.text, "machine": record({})},
)


class RunFolder:
    """One run on disk.

    Args:
        path: the folder; use `create` for a new run and `open` for one that is there.

    Attributes:
        assets: folder of tokenizer and encoder files.
        checkpoints, pictures: folders.
        metrics: file of steps and evaluations.
        pairs: table of the training pairs and their weights.
        quarantine: list of the images that could not be read.
        bank: the hub correction and its bank.
        profile, trace: where the time went (`--profile`), and a trace of some steps.
        excluded: copy of the table of the pairs that `--exclude` left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.assets, self.checkpoints, self.pictures = path / "assets", path / "checkpoints", path / "pictures"
        self.profile, self.trace = path / "profile.json", path / "profile_trace.json"
        self.metrics, self.pairs, self.quarantine, self.bank, self.excluded = (
            path / name
            for name in ("metrics.jsonl", "pairs.csv", "quarantine.jsonl", "bank.safetensors", "excluded.csv")
        )

    @classmethod
    def check_new(cls, path: Path) -> None:
        """Whether a new run may be written to `path`, before any time is spent.

        Raises:
            RunError: the path is a file, holds a run already, or holds anything else.
        """
        if path.is_file():
            raise RunError(f"--out {path}: is a file; name a folder")
        if (path / CONFIG).exists():
            raise RunError(
                f"--out {path}: holds a run already; go on with it by `--resume {path}` or name another folder"
            )
        if path.is_dir() and not cls._unfinished(path):
            raise RunError(f"--out {path}: is not empty and holds no run; name a new folder")

    @staticmethod
    def _unfinished(path: Path) -> bool:
        """Whether a folder is empty, or holds only what a run leaves that was killed before it wrote `config.json`."""
        names = set(os.listdir(path)) - {LOCK}
        early = ("assets", "excluded.csv")
        ours = (path / LOCK).exists() and all(name in early or name.endswith(".tmp") for name in names)
        return ours or not names

    @classmethod
    def create(cls, path: Path | None) -> RunFolder:
        """A folder for a new run; `runs/<date>-<time>` if none is named.

        Raises:
            RunError: see `check_new`.
        """
        if path is None:
            stem = time.strftime("%Y%m%d-%H%M%S")
            path = Path("runs") / stem
            counter = 2
            while path.exists():
                path = Path("runs") / f"{stem}-{counter}"
                counter += 1
        cls.check_new(path)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run that is there.

        Raises:
            RunError: no such folder, a folder of another program, or a `config.json` that no run can have.
        """
        if not path.is_dir():
            raise RunError(f"{path}: no such run folder")
        run = cls(path)
        run.config()
        return run

    @classmethod
    def newest(cls, root: Path = Path("runs")) -> RunFolder:
        """The run under `root` that was started last.

        Raises:
            RunError: there is none.
        """
        found = root.iterdir() if root.is_dir() else ()
        runs = [path for path in found if (path / CONFIG).is_file() and (path / "checkpoints").is_dir()]
        if not runs:
            raise RunError(f"no run under {root}/: name a run folder, or train one with `varalign train`")
        return cls.open(max(runs, key=lambda path: ((path / CONFIG).stat().st_mtime_ns, path.name)))

    @property
    def exported(self) -> bool:
        """Whether this is a model that was exported: it has no data of its own."""
        return (self.path / EXPORT).is_file()

    def config(self) -> dict[str, Any]:
        """The content of `config.json`, checked whole.

        Raises:
            RunError: missing, not JSON, of another program or a newer version, or damaged; the message says where.
        """
        path = self.path / CONFIG
        try:
            value = json.loads(read_bytes(path))
        except (ValueError, RecursionError) as error:
            if not path.exists():
                raise RunError(f"{self.path}: not a varalign run, there is no config.json in it") from None
            if isinstance(error, DataError):
                raise RunError(str(error)) from None
            raise RunError(f"{path}: cannot be read as JSON: {error}; {_MEND}") from None
        if not isinstance(value, dict) or value.get("kind") != RUN_KIND:
            raise RunError(f"{path}: is of another program, not of a varalign run")
        try:
            CONFIG_SCHEMA(value)
            for name, given in value["options"].items():
                if name in ALWAYS_FILLED and given is None:
                    raise ValueError(f"{OPTIONS[name].flag} needs a value")
                if name in OPTIONS:
                    OPTIONS[name].validate(replace_removed({name: given})[name])
        except ValueError as error:
            raise RunError(f"{path}: {error}; {_MEND}") from None
        return value

    def options(self, say: Callable[[str], object] | None = None) -> dict[str, Any]:
        """The run's options: those that this version knows, a removed value replaced by what took its place.

        `exclude` is the run's own copy of the table. A run that was saved without `same_caption` tells equal captions
        apart; one without `hub_correction` has none; one without `voices` has one head a side.

        Raises:
            RunError: as `config`.
        """
        older = {"same_caption": "distinct", "hub_correction": "off", "voices": "none"}
        options = {**older, **self.config()["options"]}
        if options.get("exclude") is not None:
            options["exclude"] = str(self.excluded)
        return replace_removed({name: value for name, value in options.items() if name in OPTIONS}, say)

    def chosen_by_folds(self) -> dict[str, Any] | None:
        """What the start by voices found, where they were chosen by cross-validation; else None."""
        voices = self._voices()
        return voices if voices.get("settings") == "cv" else None

    def fitted_splits(self) -> tuple[str, ...]:
        """Names of the splits whose pairs the model was fitted on; dev too where no dev split is held out."""
        return ("train", "dev", "all") if self._voices().get("fitted_on") == EVERY_PAIR else ("train", "all")

    def _voices(self) -> dict[str, Any]:
        return (self.config().get("start") or {}).get("voices") or {}

    def write_config(self, value: dict[str, Any]) -> None:
        """Write `config.json`."""
        text = json_text({"kind": RUN_KIND, "format": FORMAT, **value}, indent=1) + "\n"
        write_atomically(self.path / CONFIG, text.encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, as `metrics.read_metrics` gives them."""
        return list(read_metrics(self.metrics))

    def keep_nested(self, step: int, epoch: int, figures: dict[str, Any]) -> None:
        """Append the figures of nested cross-validation to `metrics.jsonl`, unless it has them."""
        if self.nested() is None:
            log = MetricsLog(self.metrics)
            log.write([{"kind": "eval", "step": step, "epoch": epoch, "split": NESTED, **figures}])
            log.close()

    def nested(self) -> dict[str, Any] | None:
        """The figures of nested cross-validation, which stand for those of a test split that is not there, if any."""
        lines = self.read_metrics() if self.metrics.is_file() else []
        return next((line for line in reversed(lines) if line.get("split") == NESTED), None)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder for this process, as `lock.locked` says."""
        return locked(self.path)
