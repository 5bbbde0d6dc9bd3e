"""The rules about combinations of options, in one table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from varalign.losses.others import OTHERS, is_directed, loss_class
from varalign.options.declaration import ConfigError
from varalign.options.fields import OPTIONS
from varalign.options.hub_sources import UNPAIRED
from varalign.options.voice_list import MEMBERS, NONE, voices_of


@dataclass(frozen=True)
class Rule:
    """Options that some runs cannot take, or that change nothing in them.

    Attributes:
        options: names, with spaces between them; the rule is about each of these that differs from its default.
        broken: from a `TrainConfig` (config.py imports this file, hence Any) to whether the rule is broken.
        reason: follows the option's name in the message; `{c.loss}` stands for a value of the config.
        idle: the option only has no effect. Then it is an error only where it was said for this run: a configuration
            file may serve several runs, and a run's own `config.json` holds every option.
    """

    options: str
    broken: Callable[[Any], bool]
    reason: str
    idle: bool = False


def _features(c: Any) -> bool:
    return c.features is not None


def _live_start(c: Any) -> bool:
    return c.resolved_start == "random" and not c.frozen_towers


_NEEDS_IMAGES = "needs images and captions: a features file holds only the encoders' output"
_NEEDS_TOWERS = "needs the encoders, which a features file does not have: train from --data instead"

RULES = (
    Rule(
        "image_encoder text_encoder use_pretrained",
        _features,
        "names encoders, and a features file already holds their output: leave it out",
    ),
    Rule(
        "captions images separator image_column caption_column follow_links split_by skip_missing",
        lambda c: _features(c) and c.data is None,
        "says how a data folder is read, and a features file is none: leave it out, or name the folder of its pictures "
        "too (--data)",
    ),
    Rule(
        "captions_per_image augment decoded_cache image_size max_length pooling bidirectional",
        _features,
        _NEEDS_IMAGES,
    ),
    Rule("flip crop_area color_jitter decode max_bad shuffle_buffer", _features, _NEEDS_IMAGES, idle=True),
    Rule("unfreeze lora", _features, _NEEDS_TOWERS),
    Rule("freeze tower_lr feature_precision", _features, _NEEDS_TOWERS, idle=True),
    Rule(
        "feature_precision",
        lambda c: all(c.trains(side) for side in ("image", "text")),
        "is that of the features of frozen encoders, and this run freezes none",
        idle=True,
    ),
    Rule(
        "flip crop_area color_jitter",
        lambda c: not c.sees_crops,
        "is part of the augmentation, which this run does not have: leave out --no-augment, or pass --augment where "
        "the image encoder is frozen",
        idle=True,
    ),
    Rule(
        "tower_lr",
        lambda c: not c.tunes_towers,
        "is the learning rate of pretrained encoders that train, and none does in this run: pass --unfreeze N, or "
        "leave it out",
        idle=True,
    ),
    Rule(
        "lora",
        lambda c: c.unfreeze > 0,
        "trains adapters beside frozen blocks and --unfreeze trains blocks: pass one of them",
    ),
    Rule(
        "start",
        lambda c: c.start == "closed-form" and not c.frozen_towers and c.from_scratch,
        "closed-form correlates the features of two encoders, and an encoder that trains from random weights has none "
        "yet ({c.image_spec}, {c.text_spec}): name pretrained encoders, or leave --start out",
    ),
    Rule(
        "ridge text_ridge power map_lr",
        lambda c: c.resolved_start == "random",
        "belongs to --start closed-form, and this run starts at random",
    ),
    Rule(
        "unpaired_images unpaired_texts",
        lambda c: not c.mixes_voices,
        "belongs to the voices of frozen encoders, which are fitted on it too, and this run fits none (see --voices)",
    ),
    Rule(
        "hub_correction",
        lambda c: c.hub_correction == UNPAIRED and c.unpaired_images is None and c.unpaired_texts is None,
        "unpaired is a bank of what is unpaired, and nothing is: name it by --unpaired-images or --unpaired-texts",
    ),
    Rule(
        "members",
        lambda c: bool(c.members) and not c.takes_members,
        "{c.members} needs the closed form of frozen encoders: it goes with --start closed-form and --head mlp, and "
        "not with --map-lr, --lora or --unfreeze",
    ),
    Rule(
        "members",
        lambda c: bool(c.members) and bool(voices_of(c.voices)) and MEMBERS not in voices_of(c.voices),
        "{c.members} trains members, and --voices {c.voices} has none: add members to the list",
    ),
    Rule(
        "members_share",
        lambda c: c.members == 0 or not c.takes_members,
        "is the part of members in the similarity, and this run has none: pass --members K, or leave it out",
        idle=True,
    ),
    Rule(
        "voices settings",
        lambda c: c.voices != NONE and not c.takes_members,
        "needs the closed form of frozen encoders: it goes with --start closed-form and --head mlp, and not with "
        "--map-lr, --lora or --unfreeze",
    ),
    Rule(
        "pair_weighting",
        lambda c: c.pair_weighting == "closed-form" and _live_start(c),
        "closed-form scores features of frozen encoders: freeze both, or pass moments",
    ),
    Rule(
        "pair_warmup",
        lambda c: c.pair_weighting != "moments",
        "belongs to --pair-weighting moments: nothing else waits before it weights",
        idle=True,
    ),
    Rule(
        "accumulate",
        lambda c: c.accumulate > 1 and c.frozen_towers,
        "splits what passes through encoders that train, and this run's are frozen: leave it out",
        idle=True,
    ),
    Rule(
        "gradient_checkpointing",
        lambda c: c.gradient_checkpointing and c.frozen_towers,
        "saves memory of encoders that train, and this run's are frozen: leave it out",
        idle=True,
    ),
    Rule(
        "shard",
        lambda c: c.shard and c.frozen_towers,
        "splits encoders that train, and this run's are frozen: leave it out",
        idle=True,
    ),
    Rule(
        "shard",
        lambda c: c.shard and c.precision == "fp16",
        "splits weights over processes, and the loss scaling of fp16 is that of one: pass --precision bf16 or fp32",
    ),
    Rule(
        "accumulate",
        lambda c: c.accumulate > 1 and c.loss in OTHERS and loss_class(c.loss).reads_inputs,
        "passes a batch through the encoders in parts, and --loss {c.loss} changes their inputs: pass one of them",
    ),
    Rule(
        "average_weights",
        lambda c: c.average_weights > 0 and c.frozen_towers,
        "averages the weights of encoders that train, and this run's are frozen: leave it out",
    ),
    Rule(
        "average_weights",
        lambda c: c.average_weights > 0 and c.shard,
        "needs the whole weights on each process, and --shard splits them: pass one of them",
    ),
    Rule(
        "loss",
        lambda c: c.schedule != "fixed" and not is_directed(c.loss),
        "{c.loss} has no two directions for --schedule {c.schedule} to weight: pass --schedule fixed",
    ),
    Rule("duplicates", lambda c: c.loss in OTHERS, "{c.duplicates} belongs to --loss clip, not to {c.loss}"),
    Rule(
        "loss_strength",
        lambda c: c.loss not in OTHERS,
        "belongs to a --loss other than {c.loss}, which has no parameter of its own",
    ),
    Rule(
        "attack_steps",
        lambda c: c.loss not in OTHERS or "steps" not in inspect.signature(loss_class(c.loss)).parameters,
        "belongs to the losses that attack, such as adversarial, not to {c.loss}",
    ),
    Rule(
        "fixed_weight",
        lambda c: c.schedule != "fixed",
        "belongs to --schedule fixed: any other schedule finds the weights itself",
        idle=True,
    ),
    Rule(
        "schedule",
        lambda c: c.schedule == "replay" and c.replay_run is None,
        "replay needs the run whose weights it replays: pass --replay-run RUN",
    ),
    Rule("replay_run", lambda c: c.schedule != "replay", "belongs to --schedule replay"),
    Rule(
        "hidden_dim dropout",
        lambda c: c.head == "linear",
        "belongs to --head mlp: a linear head has no hidden layer",
        idle=True,
    ),
    Rule(
        "input_noise",
        lambda c: bool(c.input_noise) and _live_start(c),
        "needs features whose standard deviations do not change: freeze both encoders, or leave it out",
    ),
    Rule(
        "wise_ft",
        lambda c: c.lora > 0 or not c.tunes_towers,
        "averages trained with pretrained weights, and no pretrained weights train in this run: pass --unfreeze N, or "
        "leave it out",
    ),
    Rule(
        "word_dropout",
        lambda c: _features(c) or not c.trains("text"),
        "leaves words out for a text encoder that trains, and this run's is frozen",
    ),
    Rule(
        "word_vectors",
        lambda c: c.features is not None or c.spec("text").kind != "lstm",
        "fills the word embedding of --text-encoder lstm, which this run does not have",
    ),
    Rule(
        "feature_mixup",
        lambda c: not c.frozen_towers,
        "mixes the features of frozen encoders: freeze both, or leave it out",
    ),
    Rule(
        "feature_mixup",
        lambda c: c.captions_as == "each" and c.captions_per_step != 1,
        "needs one text for each image: pass --captions-as mean or --captions-per-step 1",
    ),
    Rule(
        "feature_mixup",
        lambda c: c.loss in OTHERS and loss_class(c.loss).reads_inputs,
        "trains on mixed pairs, and --loss {c.loss} changes the inputs of unmixed images: pass one of them",
    ),
)


def check_rules(config: Any) -> None:
    """Refuse a `TrainConfig` that breaks a rule.

    Raises:
        ConfigError: for the first rule broken, naming the option.
    """
    for name, reason in _broken(config, idle=False):
        raise ConfigError(f"{OPTIONS[name].flag} {reason}")


def idle_options(config: Any) -> dict[str, str]:
    """The options of a `TrainConfig` that differ from their default and change nothing, each with the first reason."""
    found: dict[str, str] = {}
    for name, reason in _broken(config, idle=True):
        found.setdefault(name, reason)
    return found


def _broken(config: Any, *, idle: bool) -> Iterator[tuple[str, str]]:
    for rule in RULES:
        changed = [name for name in rule.options.split() if getattr(config, name) != OPTIONS[name].default]
        if rule.idle == idle and changed and rule.broken(config):
            yield from ((name, rule.reason.format(c=config)) for name in changed)
