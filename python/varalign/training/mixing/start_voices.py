"""The start of a run by voices: fitted and weighed on held-out pairs, and put into the model's heads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from varalign.canonical.choice import FEW, Grid
from varalign.canonical.voices.fit import Fitted, Mixture, Unrelated, fit_voices
from varalign.canonical.voices.voice_pairs import Pairs, with_words
from varalign.data.tokens.lexicon import Lexicon
from varalign.encoders.dual_encoder import INITIAL_LOGIT_SCALE, MAX_LOGIT_SCALE, DualEncoder
from varalign.encoders.ensemble import Members
from varalign.encoders.head_shape import MEMBER_DIM, HeadShape
from varalign.encoders.specs import SIDES
from varalign.encoders.towers import Towers
from varalign.encoders.voices_head import VoicesHead
from varalign.inputs.pair_features import PairFeatures, all_pairs, thinned
from varalign.inputs.parts import Inputs, Parts
from varalign.inputs.unpaired import Unpaired, open_unpaired
from varalign.options.config import TrainConfig
from varalign.options.declaration import ConfigError
from varalign.options.recipe import FEWEST_FOR_MEMBERS
from varalign.options.voice_list import FEWEST_DEV, FITTED, voices_of
from varalign.runs.folder import RunFolder
from varalign.training.mixing.fold_members import out_of_fold_share

Say = Callable[[str], None]


@dataclass(frozen=True)
class VoicesChoice:
    """What the start found, as written to `config.json`.

    Attributes:
        settings: what it was chosen on: "dev" or "cv".
        weights: of each voice among the fitted ones, 0 for one that was tried and not kept.
        trials: ridge, text_ridge, power and dimensions of each voice that has them.
        tried: number of settings tried.
        pairs: number of pairs in the fit.
        loss, recall: of the mixture on held-out pairs, Recall@1 within blocks of at most 256 images.
        logit_scale: at the minimum of that loss.
        hub: what hub correction by the pairs of the fit changes there, `Gain.as_dict`; None where it was not judged.
        lexical_dim: width of the lexical vectors that the kernel voice reads, 0 without.
        seconds: wall time.
        self_training: numbers of unpaired `images` and `texts`, and held-out `losses`: of the pairs alone, then of each
            round that was taken. None without unpaired ones.
    """

    settings: str
    weights: dict[str, float]
    trials: dict[str, dict[str, float]]
    tried: int
    pairs: int
    loss: float
    recall: float
    logit_scale: float
    hub: dict[str, Any] | None
    lexical_dim: int
    seconds: float
    self_training: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def start_by_voices(inputs: Inputs, pair_weights: Tensor | None, say: Say) -> tuple[Parts, VoicesChoice]:
    """The model with the voices that count in its heads.

    Args:
        inputs: towers and sources.
        pair_weights: (T,) weight of each caption's pair in the fits; None: all 1.
        say: called with what was chosen.

    Raises:
        ConfigError: features without anything in common, or too few images to choose on.
    """
    config, data, started = inputs.config, inputs.data, time.perf_counter()
    names = [
        name
        for name in voices_of(config.voices)
        if name in FITTED and _possible(name, inputs.towers, data.caption_texts)
    ]
    dev_rows = data.rows("dev")
    by_dev = config.settings == "dev" or (config.settings == "auto" and len(dev_rows) >= FEWEST_DEV)
    rows = inputs.train_rows
    found = all_pairs(inputs, rows, training=True)
    dev = None if by_dev and not len(dev_rows) else all_pairs(inputs, thinned(dev_rows), training=False)
    unpaired = open_unpaired(inputs, say)
    lexicon = _lexicon(
        inputs, np.concatenate([found.captions, *([] if by_dev or dev is None else [dev.captions])]), unpaired, say
    )
    names = [name for name in names if name != "lexical" or lexicon is not None]

    def pairs_of(part: PairFeatures, weights: Tensor | None) -> Pairs:
        return _pairs(inputs, part, lexicon, weights)

    train = pairs_of(found, pair_weights)
    held_out = None if dev is None else pairs_of(dev, None)
    pairs, judged_by = (train, held_out) if by_dev or held_out is None else (_joined(train, held_out), None)
    pool = None if unpaired is None else _pool(unpaired, lexicon)
    grids = {"closed-form": narrowed(FEW, config)}
    try:
        # Fitted on train alone: dev goes on to be held out, for the members' share, the best epoch and its figures.
        given: dict[str, Any] = {"voices": names, "grids": grids, "seed": config.seed, "pool": pool}
        fitted = fit_voices(pairs, judged_by, fit_on=train, **given)
    except Unrelated:
        raise ConfigError(
            "--start closed-form: image and text features of the training pairs have nothing in common (are they "
            "constant, or is there one pair only?): see what the encoders gave, or pass --start random"
        ) from None
    except ValueError as error:
        raise ConfigError(f"--settings {config.settings}: {error}") from None
    chosen = config.members and config.members_share is None and fitted.settings == "cv"
    if chosen and len(rows) >= FEWEST_FOR_MEMBERS:  # with fewer, members are there because someone wants them
        inputs = _with_share(inputs, fitted, say)
    gain = fitted.hub_gain("bank")
    lexical = fitted.mixture.reads_lexical()
    parts = _model(inputs, fitted, train, lexicon if lexical else None)
    choice = VoicesChoice(
        settings=fitted.settings,
        weights=fitted.weighing.weights,
        trials={name: _settings(trial) for name, trial in fitted.trials.items()},
        tried=fitted.tried,
        pairs=len(train.texts),
        loss=fitted.weighing.loss,
        recall=fitted.weighing.recall,
        logit_scale=fitted.scale,
        hub=gain.as_dict(),
        lexical_dim=lexicon.width if lexical and lexicon is not None else 0,
        seconds=time.perf_counter() - started,
        self_training=None if unpaired is None else _self_training(unpaired, fitted),
    )
    say(fitted.line())
    if choice.self_training is not None:
        losses = " -> ".join(f"{loss:.3f}" for loss in fitted.rounds)
        say(
            f"self-training on unpaired images and texts: {len(fitted.rounds) - 1} rounds taken, held-out loss {losses}"
        )
    return parts, choice


def _with_share(inputs: Inputs, fitted: Fitted, say: Say) -> Inputs:
    """The inputs with the members' share that is best out of fold; without members where that is none."""
    share = out_of_fold_share(fitted.parts, inputs.config)
    say(f"members, by the loss of {len(fitted.parts)} folds: {f'share {share:g}' if share else 'none'}")
    said: dict[str, Any] = {"members_share": share} if share else {"members": 0, "epochs": 0}
    return replace(inputs, config=replace(inputs.config, **said))


def weights_of(model: DualEncoder, run: RunFolder) -> dict[str, float] | None:
    """The weight of each voice in the similarity, 0 for one that was tried and not kept; None without voices."""
    head = model.image_head
    if not isinstance(head, VoicesHead):
        return None
    tried = ((run.config().get("start") or {}).get("voices") or {}).get("weights") or {}
    return {**dict.fromkeys(tried, 0.0), **head.shares()}


def _possible(name: str, towers: Towers, captions: Sequence[str] | None) -> bool:
    """Whether a run can have the voice: zero-shot needs two frozen towers of one CLIP, lexical the captions."""
    if name == "lexical":
        return captions is not None
    return name != "zero-shot" or towers.share_a_space()


def _lexicon(inputs: Inputs, captions: np.ndarray, unpaired: Unpaired | None, say: Say) -> Lexicon | None:
    texts = inputs.data.caption_texts
    if "lexical" not in voices_of(inputs.config.voices):
        return None
    if texts is None:
        say("no lexical voice: the features file has no captions beside it (STEM.texts.jsonl)")
        return None
    if unpaired is not None and unpaired.texts is None and len(unpaired.text_features):
        say("no lexical voice: the unpaired texts are not known (STEM.texts.jsonl beside their features)")
        return None
    return Lexicon.fitted([texts[caption] for caption in captions.tolist()])


def _pairs(inputs: Inputs, found: PairFeatures, lexicon: Lexicon | None, pair_weights: Tensor | None) -> Pairs:
    data, texts, device = inputs.data, found.text_features, found.text_features.device
    if lexicon is not None and data.caption_texts is not None:
        texts = with_words(texts, lexicon, [data.caption_texts[caption] for caption in found.captions.tolist()])
    return Pairs(
        found.image_features,
        texts,
        found.owner,
        0 if lexicon is None else lexicon.width,
        None if pair_weights is None else pair_weights[torch.from_numpy(found.captions)].to(device),
        torch.from_numpy(data.image_ids[found.rows]).to(device),
        torch.from_numpy(data.text_ids[found.captions]).to(device),
    )


def _pool(unpaired: Unpaired, lexicon: Lexicon | None) -> Pairs:
    """The unpaired images and texts, as the voices take them."""
    texts, width = unpaired.text_features, 0
    if lexicon is not None:
        texts, width = with_words(texts, lexicon, unpaired.texts or []), lexicon.width
    return Pairs(unpaired.image_features, texts, torch.zeros(0, dtype=torch.int64, device=texts.device), width)


def _self_training(unpaired: Unpaired, fitted: Fitted) -> dict[str, Any]:
    images, texts = len(unpaired.image_features), len(unpaired.text_features)
    return {"images": images, "texts": texts, "losses": fitted.rounds}


def _joined(a: Pairs, b: Pairs) -> Pairs:
    """The pairs of both, those of `b` with the weight 1."""
    weights = None if a.weights is None else torch.cat([a.weights, torch.ones(len(b.texts)).to(a.weights)])
    names = ("images", "texts", "image_ids", "text_ids")
    both: dict[str, Any] = {name: torch.cat([getattr(a, name), getattr(b, name)]) for name in names}
    return replace(a, **both, owner=torch.cat([a.owner, b.owner + len(a.images)]), weights=weights)


def narrowed(grid: Grid, config: TrainConfig) -> Grid:
    """The settings of the grid that the options allow."""
    return grid.narrowed(
        ridge=config.ridge, text_ridge=config.text_ridge, power=config.power, dimensions=config.embedding_dim
    )


def _settings(trial: Any) -> dict[str, float]:
    return {name: getattr(trial, name) for name in ("ridge", "text_ridge", "power", "dimensions")}


def _model(inputs: Inputs, fitted: Fitted, pairs: Pairs, lexicon: Lexicon | None) -> Parts:
    """Model and sources, with the mixture in the heads, and members of random weights where the options want some."""
    config, towers, mixture = inputs.config, inputs.towers, fitted.mixture
    widths = mixture.embed_images(pairs.images[:1]).shape[1]
    sizes: dict[str, Any] = {
        name: {side: cast(Any, module).sizes for side, module in zip(SIDES, sides, strict=True)}
        for name, sides in mixture.sides.items()
    }
    shape = HeadShape(
        widths + config.members * MEMBER_DIM,
        "voices",
        config.hidden_dim,
        config.dropout,
        config.input_noise,
        members=config.members,
        voices=sizes,
        lexical_dim=0 if lexicon is None else lexicon.width,
    )
    heads = _heads(shape, mixture, fitted.scale, pairs, config.seed)
    scale = INITIAL_LOGIT_SCALE if config.members else min(MAX_LOGIT_SCALE, fitted.scale)
    model = DualEncoder(towers, shape, heads=heads, logit_scale=scale).to(inputs.device)
    model.lexicon = lexicon
    # The closed form's settings are recorded, so that a run resumed before its first checkpoint starts with the same.
    found: dict[str, Any] = {"dimensions": shape.embedding_dim}
    found = _settings(fitted.trials["closed-form"]) if "closed-form" in fitted.trials else found
    return inputs.with_model(model, replace(config, embedding_dim=int(found.pop("dimensions")), **found))


def _heads(shape: HeadShape, mixture: Mixture, scale: float, pairs: Pairs, seed: int) -> tuple[nn.Module, nn.Module]:
    heads = []
    features = (pairs.images, pairs.texts[:, : pairs.texts.shape[1] - pairs.lexical])
    for place, (side, rows) in enumerate(zip(SIDES, features, strict=True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2 * seed + place)
            head = VoicesHead(rows.shape[1], shape, side).to(rows.device)
        sides = {name: both[place] for name, both in mixture.sides.items()}
        head.fill(sides, mixture.weights, scale)
        if isinstance(head.members, Members):
            head.members.standardise(rows.mean(0), rows.var(0, correction=0))
        heads.append(head)
    return heads[0], heads[1]
