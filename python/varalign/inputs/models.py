"""The model of a run: new, from the options, or saved, from the run folder."""

from __future__ import annotations

from collections.abc import Sequence

from varalign.data.errors import DataError
from varalign.data.features import FeatureSet
from varalign.data.tokens.lexicon import Lexicon
from varalign.data.tokens.tokenizers import load_tokenizer
from varalign.encoders.build import build_image_encoder, build_text_encoder
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.head_shape import HeadShape
from varalign.encoders.saved import dual_encoder_from_config
from varalign.encoders.specs import SIDES, Side, SpecError, WeightsChanged, WeightsUnavailable
from varalign.encoders.towers import Towers
from varalign.encoders.weights import WeightsError
from varalign.inputs.open_data import Data
from varalign.inputs.parts import Parts
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.runs.folder import RunFolder
from varalign.runs.run_errors import RunError


def new_towers(config: TrainConfig, data: Data) -> Towers:
    """The towers that the options name, frozen as they say, without adapters; random weights by torch's generator.

    The options of the recipe are not read.

    Raises:
        WeightsUnavailable: weights of one tower, or of both, are neither here nor in reach; one message says all.
        ConfigError: `unfreeze` without a frozen tower.
    """
    if isinstance(data, FeatureSet):
        widths = {"image_feature_dim": data.image_features.shape[1], "text_feature_dim": data.text_features.shape[1]}
        return Towers(None, None, **widths)
    try:
        image_encoder = build_image_encoder(config.image_spec, image_size=config.image_size)
    except WeightsUnavailable as absent:
        try:
            build_text_encoder(config.text_spec, captions=[""], pooling=config.pooling)
        except WeightsUnavailable as too:
            raise WeightsUnavailable(f"{absent}; {too}") from None
        raise
    text_encoder = build_text_encoder(
        config.text_spec,
        captions=[data.captions[row] for row in data.caption_rows(data.rows("train")).tolist()],
        pooling=config.pooling,
        bidirectional=config.bidirectional,
        word_vectors=config.word_vectors,
        max_length=config.max_length,
    )
    towers = Towers(image_encoder, text_encoder)
    for side in SIDES:
        if config.freezes(side):
            towers.freeze(side, config.unfreeze)
    if config.unfreeze and not towers.frozen:
        raise ConfigError(f"--unfreeze {config.unfreeze}: no tower is frozen; leave it out, or freeze one by --freeze")
    return towers


def adapt_towers(towers: Towers, config: TrainConfig) -> None:
    """Put adapters of rank `lora`, if any, beside the frozen towers; their random weights come from torch's generator.

    Then turn gradient checkpointing on, if that is asked for.

    Raises:
        ConfigError: no tower is frozen.
        SpecError: no tower that trains has gradient checkpointing.
    """
    for side in towers.frozen if config.lora else ():
        towers.adapt(side, config.lora)
    if config.lora and not towers.adapters:
        raise ConfigError(f"--lora {config.lora}: no tower is frozen; leave it out, or freeze one by --freeze")
    if config.gradient_checkpointing:
        towers.checkpoint_activations()


def new_model(config: TrainConfig, data: Data) -> DualEncoder:
    """A dual encoder with heads of random weights; torch's generator draws first towers, then heads, then adapters.

    Args:
        config: the options, the recipe filled in.
        data: gives the vocabulary of a text tower that has none, or the widths of features.
    """
    shape = HeadShape(config.embedding_dim, config.head, config.hidden_dim, config.dropout, config.input_noise)
    model = DualEncoder(new_towers(config, data), shape)
    adapt_towers(model, config)
    return model


def gathered_parts(parts: Parts, run: RunFolder) -> Parts:
    """The parts of a run whose towers were split over processes, with whole ones; their weights still to be loaded."""
    if not parts.model.sharded:
        return parts
    return parts.with_model(saved_model(run).to(parts.device), parts.config)


def saved_model(run: RunFolder, sides: Sequence[Side] = SIDES) -> DualEncoder:
    """The model of a saved run, its checkpointed weights still to be loaded.

    Args:
        run: the run folder.
        sides: the towers to build: a text query needs no image tower.

    Raises:
        RunError: the run's files do not describe a model.
        WeightsUnavailable, WeightsChanged: a frozen tower is not where it was, or not what it was.
    """
    description = run.config()["model"]
    try:
        has_text = description["text_encoder"] is not None and "text" in sides
        tokenizer = load_tokenizer(run.assets) if has_text else None
        model = dual_encoder_from_config(description, tokenizer=tokenizer, sides=sides)
        if model.shape.lexical_dim:
            model.lexicon = Lexicon.load(run.assets)
            if model.lexicon is None or model.lexicon.width != model.shape.lexical_dim:
                raise RunError(f"{run.assets}: the model's lexicon is not there, or is another model's")
        return model
    except (DataError, SpecError, WeightsError, WeightsUnavailable, WeightsChanged):
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{run.path / 'config.json'}: no model can be built as it says: {error!r}") from error
