"""torch.export: a program for images and one for texts, which run without varalign's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from varalign.aligner.exports.graphs import PREPROCESSING, recorded, write_preprocessing
from varalign.aligner.exports.model_card import write_card
from varalign.aligner.exports.subject import Subject

USE = """
import torch

images = torch.export.load("{place}/vision_model.pt2").module()
image_embeds = images(pixels)[0]  # preprocessing.json says how to make pixels, ids and lengths
texts = torch.export.load("{place}/text_model.pt2").module()
text_embeds = texts(ids, lengths)[0]
"""


def write(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write both programs, read them again and run them."""
    far: dict[str, float] = {}
    graphs = recorded(subject, "torch")
    names, wanted = {}, subject.wanted()
    for name, (program, inputs, about) in graphs.items():
        file = folder / f"{name}.pt2"
        torch.export.save(program, file)
        again = torch.export.load(file).module()
        with torch.no_grad():
            for count in (1, len(inputs[0])):  # the size of the batch is free
                found = again(*(part[:count] for part in inputs))
                for output, ours, theirs in zip(about["outputs"], wanted[name], found, strict=True):
                    gap = float((ours[:count] - theirs).abs().max())
                    far[f"{name}.{output}"] = max(gap, far.get(f"{name}.{output}", 0.0))
        names[name] = about
    write_preprocessing(subject, folder, "torch", names)
    write_card(subject, folder, "torch", USE, (f"`{PREPROCESSING}` states how images and texts become inputs.",))
    return {"differences": far, "notes": []}
