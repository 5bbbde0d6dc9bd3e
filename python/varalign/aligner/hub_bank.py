"""The hub correction of a model: chosen on dev, its bank drawn from a split, both kept in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varalign.aligner.evaluate import SplitEmbeddings, embed_split
from varalign.canonical.hub_choice import Gain, HeldOut, judge, judge_by_halves
from varalign.canonical.hub_correction import BANK_TEXTS, HubCorrection, HubForm, QueryBank, thinned_texts
from varalign.inputs.kept import Arrays, kept_arrays
from varalign.inputs.pair_features import thinned
from varalign.inputs.parts import Parts
from varalign.losses.pair_loss import best_logit_scale
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
    parts: Parts, source: str, form: HubForm, split: str = "test", *, judged: Mapping[str, Any] | None = None
) -> Chosen:
    """The correction that a model's options ask for.

    Args:
        parts: model and data.
        source: where the queries of the bank come from. "auto": the larger of train and dev, and only where dev gains
            by it (see `varalign.canonical.hub_choice`); "gallery": the queries of `split` themselves.
        form: of the bank.
        split: what is evaluated.
        judged: what a correction by the pairs of the fit changed in the run's cross-validation (`Gain.as_dict`); None:
            it is judged here, on dev.

    Raises:
        DataError: none of a split's images can be read.
    """
    if source == "off":
        return OFF
    dev = _embedded(parts, "dev")
    if len(dev.first) < 2:
        return Chosen(None, "hub correction: none, fewer than 2 dev images have a caption to find the logit scale by")
    scale = best_logit_scale(*dev.first_pairs(), ids=dev.first_ids, batch_size=parts.config.batch_size)

    def correction(images: Tensor, texts: Tensor, bank: str) -> HubCorrection:
        return HubCorrection.of(images, thinned_texts(texts), scale, source=bank, form=form)

    if source != "auto":
        name = split if source == "gallery" else source
        bank = dev if name == "dev" else _embedded(parts, name)
        return Chosen(correction(bank.images, bank.texts, source), f"hub correction by {_counted(bank)} of {name}")
    if judged is not None:
        bank, about = _embedded(parts, "train"), {name: value for name, value in judged.items() if name != "taken"}
        return _judged(correction(bank.images, bank.texts, "train"), Gain(**about), bank, "train", "cross-validation")
    if len(dev.rows) < FEWEST_DEV_IMAGES:
        return Chosen(None, f"hub correction: none, {len(dev.rows)} dev images are too few to judge it by")
    held_out = HeldOut(dev.images, dev.texts, torch.from_numpy(dev.pairs).to(dev.images.device))
    if len(parts.data.rows("train")) < len(parts.data.rows("dev")):
        bank, name = dev, "dev"
        judged_on = "dev in two halves"
        gain = judge_by_halves(held_out, lambda half: correction(half.images, half.texts, "dev"), scale)
    else:
        bank, name, judged_on = _embedded(parts, "train"), "train", "dev"
        gain = judge(held_out, correction(bank.images, bank.texts, "train"), scale)
    return _judged(correction(bank.images, bank.texts, name), gain, bank, name, judged_on)


def _judged(correction: HubCorrection, gain: Gain, bank: SplitEmbeddings, name: str, judged: str) -> Chosen:
    found = correction if gain.taken else None
    change = f"mean R@1 {100 * gain.recall:.1f} -> {100 * gain.corrected_recall:.1f} (± {100 * gain.error:.1f})"
    used = "used" if gain.taken else "not used"
    return Chosen(found, f"hub correction by {_counted(bank)} of {name}: {judged} has {change}, {used}")


def kept(file: Path, key: str, make: Callable[[], Chosen], say: Callable[[str], None] = to_stderr) -> Chosen:
    """What `make` chooses, or what the file keeps of it under the same key."""
    arrays = kept_arrays(file, key, lambda: _as_arrays(make()), say=say)
    about = json.loads(arrays[_ABOUT].tobytes())
    line = about.pop("line")
    if not about:
        return Chosen(None, line)
    images, texts = (_bank(arrays, side) for side in ("images", "texts"))
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


def _bank(arrays: Arrays, side: str) -> QueryBank:
    named: Mapping[str, NDArray[Any]] = {name: array for name, array in arrays.items() if name.startswith(f"{side}.")}
    return QueryBank({name.partition(".")[2]: torch.from_numpy(array) for name, array in named.items()})


def _embedded(parts: Parts, split: str) -> SplitEmbeddings:
    """The queries of a split, of at most 1,000 of its images."""
    return embed_split(parts, thinned(parts.data.rows(split)))


def _counted(bank: SplitEmbeddings) -> str:
    return f"{len(bank.rows):,} images and {min(len(bank.captions), BANK_TEXTS):,} captions"
