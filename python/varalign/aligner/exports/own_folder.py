"""varalign's own format: a run folder without data, its towers inside, as safetensors and JSON."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from varalign.aligner import hub_bank
from varalign.aligner.exports.model_card import recorded_results, write_card
from varalign.aligner.exports.subject import Subject
from varalign.data.errors import DataError
from varalign.data.files import cache_key
from varalign.encoders.specs import SIDES
from varalign.inputs.models import saved_model
from varalign.inputs.parts import save_assets
from varalign.runs.checkpoint import MODEL, load_checkpoint, named, save_checkpoint
from varalign.runs.folder import RunFolder

USE = """
from pathlib import Path

import varalign

model = varalign.load("{place}")
images = model.encode([Path("a.jpg"), Path("b.jpg")])  # paths, bytes, Pillow images or arrays
texts = model.encode(["two dogs in the snow"])
print(model.similarity(texts, images))
"""
USE_FEATURES = """
import torch

import varalign

model = varalign.load("{place}").model.eval()  # takes features of the encoders that it was trained with
images = model.project_images(torch.from_numpy(image_features))  # (N, D) float32
texts = model.project_texts(TEXTS)
print(texts @ images.T)
"""
PLACES = (
    "data",
    "captions",
    "images",
    "exclude",
    "unpaired_images",
    "unpaired_texts",
    "continue_from",
    "cache",
    "out",
    "noise",
)
"""Options that name places on this machine, or what was done to the data there."""


def write(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write the folder; it is read again, and its vectors are compared.

    Raises:
        DataError: a model that was not trained here.
    """
    if subject.run is None:
        raise DataError("--to varalign: this model has no run, as zero-shot CLIP has none; name a run folder")
    run = RunFolder(folder)
    config = {name: value for name, value in subject.run.config().items() if name not in ("kind", "format")}
    model = subject.model.to_config()
    specs = _specs(subject)
    options = {**subject.config.as_dict(), **dict.fromkeys(PLACES), **specs}
    for name in ("features", "replay_run"):
        options[name] = None if options[name] is None else Path(options[name]).name
    correction = subject.hub.correction
    if correction is not None:
        options["hub_form"] = correction.form
    for side in SIDES:
        if model[f"{side}_encoder"] is not None:
            model[f"{side}_encoder"] |= {"spec": specs[f"{side}_encoder"], "weights_fingerprint": None}
    save_assets(subject.model, run.assets)
    state = {name: value for name, value in subject.state.items() if name not in ("format", "step", "sha256")}
    tensors = named(MODEL, subject.model.checkpoint_state(whole=True))
    saved = save_checkpoint(run.checkpoints, int(subject.state["step"]), tensors, state)
    os.rename(saved, run.checkpoints / "best")
    results = recorded_results(subject)  # for the card of an export of this export
    run.write_config({**config, "options": options, "model": model, "name": subject.name, "results": results})
    found = load_checkpoint(run.checkpoints / "best")
    key = cache_key("hub correction", found.checksum, options["hub_correction"], options["hub_form"])
    hub_bank.kept(run.bank, key, lambda: subject.hub)
    texts = "torch.from_numpy(text_features)"
    if subject.model.lexicon is not None:
        texts = f"torch.cat([{texts}, torch.from_numpy(model.lexicon(captions))], dim=1)"
    of_features = USE_FEATURES.replace("TEXTS", texts)
    write_card(subject, folder, "varalign", of_features if subject.model.text_encoder is None else USE)
    if subject.model.image_encoder is None:
        return {"differences": {}, "notes": []}
    again = saved_model(run).eval()
    found.fill(again)
    ours, theirs = subject.embedded(), replace(subject, model=again).embedded()
    far = {f"{side}s": float(np.abs(a - b).max()) for side, a, b in zip(SIDES, ours, theirs, strict=True)}
    return {"differences": far, "notes": []}


def _specs(subject: Subject) -> dict[str, str | None]:
    """The specs of the encoders, of a file or folder its name alone: where it lay says nothing elsewhere."""
    found: dict[str, str | None] = {}
    for side in SIDES:
        encoder = subject.model.encoder(side)
        spec = getattr(subject.config, f"{side}_encoder") if encoder is None else encoder.spec
        if spec is not None:
            head, mark, place = spec.rpartition("@" if "@" in spec else ":")
            if Path(place).is_absolute():
                spec = f"{head}{mark}./{Path(place).name}"
        found[f"{side}_encoder"] = spec
    image, text = (subject.model.encoder(side) for side in SIDES)
    if image is not None and text is not None and image.spec != text.spec and len(set(found.values())) == 1:
        found["text_encoder"] = f"{found['text_encoder']}-of-texts"  # two folders of one name are two models
    return found
