"""ONNX: a graph for images and one for texts, checked by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varalign.aligner.exports.graphs import PREPROCESSING, recorded, write_preprocessing
from varalign.aligner.exports.model_card import write_card
from varalign.aligner.exports.subject import Subject
from varalign.data.errors import DataError, how_to_install

INSIDE = 1 << 30
"""Bytes of weights up to which a graph's file holds them; larger ones lie beside it."""
USE = """
import onnxruntime

images = onnxruntime.InferenceSession("{place}/vision_model.onnx")
image_embeds = images.run(["image_embeds"], {{"pixel_values": pixels}})[0]  # preprocessing.json says how to make both
texts = onnxruntime.InferenceSession("{place}/text_model.onnx")
text_embeds = texts.run(["text_embeds"], {{"input_ids": ids, "lengths": lengths}})[0]
"""


def write(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write both graphs, and run them."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DataError(f"--to onnx needs {error.name}: {how_to_install('export')}") from None
    far: dict[str, float] = {}
    graphs = recorded(subject, "onnx")
    names, wanted = {}, subject.wanted()
    for name, (program, inputs, about) in graphs.items():
        file = folder / f"{name}.onnx"
        with torch.no_grad(), _quiet():
            kept: dict[str, Any] = {"input_names": about["inputs"], "output_names": about["outputs"]}
            shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
            graph = torch.onnx.export(program, inputs, dynamic_shapes=shapes, dynamo=True, verbose=False, **kept)
            assert graph is not None
            size = sum(tensor.nbytes for tensor in program.state_dict.values())
            graph.save(str(file), external_data=size > INSIDE)
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            for count in (1, len(inputs[0])):  # the size of the batch is free
                part = {key: value[:count].numpy() for key, value in zip(about["inputs"], inputs, strict=True)}
                got = session.run(about["outputs"], part)
                for output, ours, theirs in zip(about["outputs"], wanted[name], got, strict=True):
                    gap = float(np.abs(ours[:count].numpy() - theirs).max())
                    far[f"{name}.{output}"] = max(gap, far.get(f"{name}.{output}", 0.0))
        names[name] = about
    write_preprocessing(subject, folder, "onnx", names)
    write_card(subject, folder, "onnx", USE, (f"`{PREPROCESSING}` states how images and texts become inputs.",))
    return {"differences": far, "notes": []}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of torch's exporter and of onnxscript, which read like failures and are none."""
    logger = logging.getLogger("onnxscript.optimizer._constant_folding")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
