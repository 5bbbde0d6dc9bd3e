"""The hub correction of a model: chosen on dev, its bank drawn from a split, both kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.aligner.evaluate import SplitEmbeddings, embed_split
from varalign.canonical.hub_choice import Gain, HeldOut, judge, judge_by_halves
from varalign.canonical.hub_correction import (
    BANK_IMAGES,
    BANK_TEXTS,
    HubCorrection,
    HubForm,
    QueryBank,
    thinned_rows,
    thinned_texts,
)
from varalign.canonical.voices.voice_pairs import with_words
from varalign.data.index import SPLITS
from varalign.inputs.kept import Arrays, kept_arrays
from varalign.inputs.pair_features import thinned
from varalign.inputs.parts import Parts
from varalign.inputs.unpaired import Unpaired, fills_a_bank, open_bank, open_unpaired
from varalign.losses.pair_loss import best_logit_scale
from varalign.options.declaration import ConfigError
from varalign.options.hub_sources import GALLERY, UNPAIRED
from varalign.options.voice_list import EVERY_PAIR
from varalign.runs.progress import to_stderr

FEWEST_DEV_IMAGES = 20
_ABOUT = "about"


@dataclass(frozen=True)
class Chosen:
    """A correction, or none, and the line that says so."""

    correction: HubCorrection | None
    line: str


OFF = Chosen(None, "hub correction: off")


def choose(
    parts: Parts, source: str, form: HubForm, split: str = "test", *, folds: Mapping[str, Any] | None = None
) -> Chosen:
    """The correction that a model's options ask for.

    Args:
        parts: model and data.
        source: where the queries of the bank come from. "auto": what the options name as unpaired, unless it is little
            (`fills_a_bank`), else the larger of train and dev, and only where held-out pairs gain by it (see
            `varalign.canonical.hub_choice`); "gallery": the queries of `split` themselves; what is none of the words
            names a file or a folder.
        form: of the bank.
        split: what is evaluated.
        folds: what the run's start found by cross-validation (`VoicesChoice.as_dict`), a correction's gain there among
            it, which then decides; None: dev does.

    Raises:
        ConfigError: an unpaired bank where the options name nothing unpaired, or a file that does not fit the model.
        DataError: none of a split's images can be read, or of the bank nothing is left.
    """
    if source == "off":
        return OFF
    # Where dev was fitted on too, it is no held-out split, and the logit scale is that of the folds.
    fitted_on_dev = folds is not None and folds.get("fitted_on") == EVERY_PAIR
    dev = None if fitted_on_dev or not len(parts.data.rows("dev")) else _embedded(parts, ["dev"])
    scale = _scale(parts, dev, folds)
    if scale is None:
        return Chosen(None, "hub correction: none, fewer than 2 dev images have a caption to find the logit scale by")
    if source == "auto" and folds is None and (dev is None or len(dev.rows) < FEWEST_DEV_IMAGES):
        few = 0 if dev is None else len(dev.rows)
        return Chosen(None, f"hub correction: none, {few} dev images are too few to judge it by")
    unpaired = open_unpaired(parts, lambda _: None) if source in ("auto", UNPAIRED) else None
    named = _auto(parts, unpaired, folds) if source == "auto" else source
    bank = _bank(parts, named, split, fitted_on_dev, unpaired)
    correction = bank.correction(scale, form)
    if source != "auto":
        return Chosen(correction, f"hub correction by {bank.line}")
    if folds is not None:
        about = {name: value for name, value in folds["hub"].items() if name != "taken"}
        return _judged(correction, Gain(**about), bank, "cross-validation")
    assert dev is not None
    held_out = HeldOut(dev.images, dev.texts, torch.from_numpy(dev.pairs).to(dev.images.device))
    if bank.source != "dev":
        return _judged(correction, judge(held_out, correction, scale), bank, "dev")
    halves = judge_by_halves(held_out, lambda half: bank.of(half.images, half.texts).correction(scale, form), scale)
    return _judged(correction, halves, bank, "dev in two halves")


def _scale(parts: Parts, dev: SplitEmbeddings | None, folds: Mapping[str, Any] | None) -> float | None:
    """β of the similarities: that of held-out dev pairs, else that of the folds; None where there are none."""
    if dev is None:
        return None if folds is None else float(folds["logit_scale"])
    if len(dev.first) < 2:
        return None
    return best_logit_scale(*dev.first_pairs(), ids=dev.first_ids, batch_size=parts.config.batch_size)


def _auto(parts: Parts, unpaired: Unpaired | None, folds: Mapping[str, Any] | None) -> str:
    """The bank that "auto" judges."""
    data = parts.data
    if unpaired is not None and fills_a_bank(unpaired, data):
        return UNPAIRED
    return "dev" if folds is None and len(data.rows("train")) < len(data.rows("dev")) else "train"


def _bank(parts: Parts, source: str, split: str, fitted_on_dev: bool, unpaired: Unpaired | None) -> _Bank:
    """The queries of a source that is not "auto"; `unpaired` are those of "unpaired"."""
    if source in SPLITS or source == GALLERY:
        names = [split if source == GALLERY else source]
        if not len(parts.data.rows(names[0])):
            raise ConfigError(f"--hub-correction {source}: these data have no {names[0]} split; name another bank")
        if source == "train" and fitted_on_dev and len(parts.data.rows("dev")):
            names.append("dev")
        found = _embedded(parts, names)
        return _Bank(source, found.images, found.texts, " and ".join(names))
    return _other_queries(parts, source, unpaired, lambda: _bank(parts, "train", split, fitted_on_dev, None))


@dataclass(frozen=True)
class _Bank:
    """Queries of a hub correction, before it keeps a form of them.

    Attributes:
        source: as `HubCorrection.source`.
        images: (R, D) unit vectors. texts: (R', D).
        told: where they come from, for people.
    """

    source: str
    images: Tensor
    texts: Tensor
    told: str

    def of(self, images: Tensor, texts: Tensor) -> _Bank:
        """The same of other queries."""
        return replace(self, images=images, texts=texts)

    def correction(self, scale: float, form: HubForm) -> HubCorrection:
        """The correction of similarities of this logit scale."""
        return HubCorrection.of(self.images, thinned_texts(self.texts), scale, source=self.source, form=form)

    @property
    def line(self) -> str:
        """How many queries of what."""
        return f"{len(self.images):,} images and {min(len(self.texts), BANK_TEXTS):,} captions of {self.told}"


@torch.no_grad()
def _other_queries(parts: Parts, source: str, unpaired: Unpaired | None, train: Callable[[], _Bank]) -> _Bank:
    """The bank of unpaired images and texts, or of those in a file; a side that it does not have is that of train.

    Raises:
        ConfigError, DataError: as `choose`.
    """
    if source == UNPAIRED:
        if unpaired is None:
            raise ConfigError(
                "--hub-correction unpaired: nothing is unpaired; name it by --unpaired-images or --unpaired-texts"
            )
        found, name = unpaired, UNPAIRED
    else:
        found, name = open_bank(parts, Path(source), to_stderr), Path(source).name
    model, told, sides = parts.model.eval(), name, {}
    if len(found.image_features):
        sides["images"] = model.project_images(thinned_rows(found.image_features, BANK_IMAGES))
    if len(found.text_features):
        texts = found.text_features
        if model.lexicon is not None:
            if found.texts is None:
                raise ConfigError(
                    f"--hub-correction {source}: this model reads the captions' words, and the file has none beside "
                    "it: put STEM.texts.jsonl there"
                )
            texts = with_words(texts, model.lexicon, found.texts)
        sides["texts"] = model.project_texts(thinned_texts(texts))
    for side in ("images", "texts"):
        if side not in sides:
            sides[side] = getattr(train(), side)
            told += f" and of train ({side} alone)"
    return _Bank(name, sides["images"], sides["texts"], told)


def _judged(correction: HubCorrection, gain: Gain, bank: _Bank, judged: str) -> Chosen:
    found = correction if gain.taken else None
    change = f"mean R@1 {100 * gain.recall:.1f} -> {100 * gain.corrected_recall:.1f} (± {100 * gain.error:.1f})"
    used = "used" if gain.taken else "not used"
    return Chosen(found, f"hub correction by {bank.line}: {judged} has {change}, {used}")


def kept(file: Path, key: str, make: Callable[[], Chosen], say: Callable[[str], None] = to_stderr) -> Chosen:
    """What `make` chooses, or what the file keeps of it under the same key."""
    arrays = kept_arrays(file, key, lambda: _as_arrays(make()), say=say)
    about = json.loads(arrays[_ABOUT].tobytes())
    line = about.pop("line")
    if not about:
        return Chosen(None, line)
    images, texts = (_kept_bank(arrays, side) for side in ("images", "texts"))
    return Chosen(HubCorrection(**about, images=images, texts=texts), line)


def priors(found: SplitEmbeddings, correction: HubCorrection | None) -> dict[str, NDArray[np.float32]]:
    """`image_prior` (I,) and `text_prior` (T,) of a split's embeddings as gallery items; empty without a correction."""
    if correction is None:
        return {}
    prior = {"image_prior": correction.image_prior(found.images), "text_prior": correction.text_prior(found.texts)}
    return {name: tensor.cpu().numpy() for name, tensor in prior.items()}


def _as_arrays(chosen: Chosen) -> dict[str, NDArray[Any]]:
    found, about = chosen.correction, dict[str, Any](line=chosen.line)
    arrays: dict[str, NDArray[Any]] = {}
    if found is not None:
        about |= {"source": found.source, "form": found.form, "tau": found.tau}
        for side, bank in (("images", found.images), ("texts", found.texts)):
            arrays |= {f"{side}.{name}": tensor.cpu().numpy() for name, tensor in bank.tensors.items()}
    return {**arrays, _ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}


def _kept_bank(arrays: Arrays, side: str) -> QueryBank:
    named: Mapping[str, NDArray[Any]] = {name: array for name, array in arrays.items() if name.startswith(f"{side}.")}
    return QueryBank({name.partition(".")[2]: torch.from_numpy(array) for name, array in named.items()})


def _embedded(parts: Parts, splits: Sequence[str]) -> SplitEmbeddings:
    """The queries of some splits, of at most 1,000 of their images."""
    return embed_split(parts, thinned(np.sort(np.concatenate([parts.data.rows(split) for split in splits]))))
