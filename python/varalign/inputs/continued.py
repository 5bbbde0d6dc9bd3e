"""A run that starts from the model of another one: `--continue-from`."""

from __future__ import annotations

from pathlib import Path

from varalign.encoders.dual_encoder import DualEncoder
from varalign.inputs.models import saved_model
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.fields import OPTIONS
from varalign.runs.checkpoint import load_checkpoint
from varalign.runs.folder import RunFolder

_ENCODERS = OPTIONS["image_encoder"].group
# Options that the model was built by; those of the closed-form start went into it.
MODEL_OPTIONS = (
    *(name for name, option in OPTIONS.items() if option.group == _ENCODERS and name != "wise_ft"),
    *("start", "ridge", "text_ridge", "power", "map_lr", "input_noise"),
)


def check_continued(config: TrainConfig) -> None:
    """Check that the options describe the model that the run starts from, where it starts from one.

    Raises:
        ConfigError: an option that the other run's model was built by differs.
        RunError: there is no such run.
    """
    if config.continue_from is None:
        return
    saved = TrainConfig(**RunFolder.open(Path(config.continue_from)).options())
    for name in MODEL_OPTIONS:
        if getattr(config, name) != getattr(saved, name):
            raise ConfigError(
                f"{OPTIONS[name].flag} {getattr(config, name)}: --continue-from takes the model of "
                f"{config.continue_from}, which was built with {getattr(saved, name)}: leave it out"
            )
    if config.wise_ft:
        raise ConfigError("--wise-ft goes back to the weights before training, which --continue-from does not have")


def continued_model(place: str) -> DualEncoder:
    """The model of a run with its best weights, on the CPU."""
    run = RunFolder.open(Path(place))
    model = saved_model(run)
    load_checkpoint(run.checkpoints / "best").fill(model)
    return model
