"""sentence-transformers: a folder that `SentenceTransformer` reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from varalign.aligner.exports import own_folder
from varalign.aligner.exports.model_card import write_card
from varalign.aligner.exports.subject import TEXTS, Subject
from varalign.aligner.exports.writing import mark
from varalign.data.errors import DataError, how_to_install
from varalign.data.files import write_atomically
from varalign.inputs.given import as_image_files
from varalign.inputs.tower_loop import embedded_files, embedded_texts
from varalign.runs.json_text import json_text

INSIDE = "0_VaralignModule"
MODULE = "varalign.aligner.exports.sentence_module.VaralignModule"
WHY = "its towers, heads and correction run as a module of varalign"
USE = """
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{place}", trust_remote_code=True)  # the code is the installed package varalign
images = model.encode([Image.open("a.jpg")])
texts = model.encode(["two dogs in the snow"])
print(model.similarity(texts, images))
"""


def write(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write the folder, load it by the library, and compare what it encodes."""
    subject.towers("sentence-transformers")
    try:
        import sentence_transformers
    except ImportError:
        raise DataError(f"--to sentence-transformers needs that package: {how_to_install('export')}") from None
    inside = folder / INSIDE
    inside.mkdir()
    own = own_folder.write(subject, inside)
    mark(inside, "varalign", own)
    scored = subject.hub.correction is not None
    settings = {
        "model_type": "SentenceTransformer",
        "__version__": {"sentence_transformers": sentence_transformers.__version__},
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "dot" if scored else "cosine",
    }
    modules = [{"idx": 0, "name": "0", "path": INSIDE, "type": MODULE}]
    for name, value in (("modules.json", modules), ("config_sentence_transformers.json", settings)):
        write_atomically(folder / name, (json_text(value, indent=1) + "\n").encode())
    notes = [f"It loads by SentenceTransformer(folder, trust_remote_code=True), where varalign is installed: {WHY}."]
    if scored:
        notes.append(
            "With the hub correction encode_query gives [q, 1] and encode_document [g, −b(g)], whose inner product is "
            "the corrected score; encode gives unit vectors."
        )
    write_card(subject, folder, "sentence-transformers", USE, notes)
    return {"differences": _differences(subject, folder), "notes": notes}


def _differences(subject: Subject, folder: Path) -> dict[str, float]:
    """Between what the library's `encode` gives of pictures and texts and what varalign gives of the same."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    levels = np.random.default_rng(0).integers(0, 255, (3, 60, 80, 3), dtype=np.uint8)
    config = replace(subject.config, precision="fp32")
    with as_image_files(dict(enumerate(levels))) as files:
        images = embedded_files(subject.model, config, files)
    ours = {"images": images, "texts": embedded_texts(subject.model, config, TEXTS)}
    theirs = {"images": library.encode([Image.fromarray(one) for one in levels]), "texts": library.encode(list(TEXTS))}
    return {side: float(np.abs(ours[side] - theirs[side]).max()) for side in ours}
