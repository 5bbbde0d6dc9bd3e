"""A trained model in other formats. A format is one file here and one row of `TARGETS`.

A format's file has `write(subject, folder)`, which fills an empty folder and returns what it found when it compared the
result with varalign's own: see `varalign.aligner.exports.writing`. This file imports no torch.
"""

from __future__ import annotations

TARGETS = {
    "varalign": "varalign.aligner.exports.own_folder",
    "sentence-transformers": "varalign.aligner.exports.sentence_folder",
    "open_clip": "varalign.aligner.exports.open_clip_folder",
    "onnx": "varalign.aligner.exports.onnx_folder",
    "torch": "varalign.aligner.exports.torch_folder",
}
"""The file of each format, varalign's own first."""
