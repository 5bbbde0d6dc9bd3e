"""The two halves of a model as programs of tensors, which torch.export records: pixels or token ids to unit vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varalign.aligner.exports.subject import TEXTS, Subject
from varalign.canonical.hub_correction import QueryBank
from varalign.data.errors import DataError
from varalign.data.files import write_atomically
from varalign.encoders.dual_encoder import DualEncoder
from varalign.encoders.specs import SpecError
from varalign.inputs.parts import save_assets
from varalign.runs.json_text import json_text

PREPROCESSING = "preprocessing.json"
TOKENIZER = "tokenizer"
CROPPED = "scale the short side to `size`, then keep the square in the middle; half of an odd margin rounds"
RESIZING = {
    "crop": f"{CROPPED} to even",
    "crop-down": f"{CROPPED} down",
    "crop-up": f"{CROPPED} up",
    "squash": "scale both sides to `size`",
}


class Prior(nn.Module):
    """b (N,) of unit vectors (N, D), as `QueryBank.prior` gives it, by shapes that follow from no value."""

    def __init__(self, bank: QueryBank, tau: float) -> None:
        super().__init__()
        self.tau = tau
        for name, tensor in bank.tensors.items():
            self.register_buffer(name, tensor.cpu())

    def forward(self, items: Tensor) -> Tensor:
        """(N,) of (N, D)."""
        kept = dict(self.named_buffers())
        if "mean" in kept:
            return items @ kept["mean"] + self.tau / 2 * ((items @ kept["covariance"]) * items).sum(1)
        queries = kept["queries"]
        z = self.tau * (items @ queries.T)
        shares = kept["log_shares"] if "log_shares" in kept else -math.log(len(queries))
        return (z + shares).logsumexp(1) / self.tau


class VisionGraph(nn.Module):
    """Pixels (B, 3, S, S) to unit vectors (B, D), and with a hub correction their priors (B,)."""

    def __init__(self, model: DualEncoder, prior: Prior | None) -> None:
        super().__init__()
        self.encoder, self.head, self.prior = model.image_encoder, model.image_head, prior

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The vectors, and the priors."""
        return _outputs(self.head(self.encoder(pixel_values)), self.prior)  # type: ignore[misc]


class TextGraph(nn.Module):
    """Token ids (B, L), lengths (B,) and lexical vectors, if any, to what `VisionGraph` gives."""

    def __init__(self, model: DualEncoder, prior: Prior | None) -> None:
        super().__init__()
        self.encoder, self.head, self.prior = model.text_encoder, model.text_head, prior

    def forward(self, input_ids: Tensor, lengths: Tensor, lexical: Tensor | None = None) -> tuple[Tensor, ...]:
        """The vectors, and the priors."""
        features = self.encoder(input_ids, lengths)  # type: ignore[misc]
        if lexical is not None:
            features = torch.cat([features, lexical], dim=1)
        return _outputs(self.head(features), self.prior)


def _outputs(vectors: Tensor, prior: Prior | None) -> tuple[Tensor, ...]:
    vectors = nn.functional.normalize(vectors.float(), dim=-1)
    return (vectors,) if prior is None else (vectors, prior(vectors))


def recorded(subject: Subject, target: str) -> dict[str, tuple[Any, tuple[Tensor, ...], dict[str, list[str]]]]:
    """`vision_model` and `text_model`: the program, the inputs to check it by, and the names of inputs and outputs.

    Raises:
        DataError: the model was trained on features, or torch cannot record one of its encoders.
    """
    subject.towers(target)
    found = subject.hub.correction
    of_images, of_texts = (None, None) if found is None else (found.texts, found.images)
    graphs: tuple[tuple[str, Callable[..., nn.Module], QueryBank | None, tuple[Tensor, ...]], ...] = (
        ("vision_model", VisionGraph, of_images, (subject.pixels(),)),
        ("text_model", TextGraph, of_texts, subject.text_inputs()),
    )
    programs: dict[str, tuple[Any, tuple[Tensor, ...], dict[str, list[str]]]] = {}
    for name, graph, bank, inputs in graphs:
        module = graph(subject.model, None if bank is None or found is None else Prior(bank, found.tau)).eval()
        batch = torch.export.Dim("batch")
        try:
            with torch.no_grad():
                program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
        except SpecError as error:
            raise DataError(f"--to {target}: {error}") from error
        except Exception as error:  # torch raises errors of many types on what it cannot record
            encoder = getattr(module.encoder, "spec", "")
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"--to {target}: torch.export cannot record '{encoder}': {reason}") from error
        _forget_places(program)
        taken = ["pixel_values"] if name == "vision_model" else ["input_ids", "lengths", "lexical"][: len(inputs)]
        given = ["image_embeds" if name == "vision_model" else "text_embeds"] + (["prior"] if found else [])
        programs[name] = program, inputs, {"inputs": taken, "outputs": given}
    return programs


def _forget_places(program: Any) -> None:
    """Take out the source lines and paths of this machine that torch notes beside each step of a program."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def write_preprocessing(subject: Subject, folder: Path, target: str, names: dict[str, dict[str, list[str]]]) -> None:
    """Write what makes the programs' inputs: `preprocessing.json`, the tokenizer and the lexicon."""
    image, text = subject.towers(target)
    tokenizer = text.tokenizer
    save_assets(subject.model, folder / TOKENIZER)
    image_steps = {
        **{name: value for name, value in asdict(image.preprocess).items() if name != "decode"},
        "steps": [
            "turn upright by EXIF, convert to RGB",
            RESIZING[image.preprocess.resize] + " with Pillow's antialiased `interpolation`",
            "levels / 255, minus `mean`, divided by `std`, channels first, float32",
        ],
    }
    text_steps: dict[str, Any] = {
        "tokenizer": TOKENIZER,
        "kind": tokenizer.kind,
        "max_length": tokenizer.max_length,
        "pad_id": tokenizer.pad_id,
        "prompt": tokenizer.prompt,
        "steps": [
            f"input_ids: tokens as the files of {TOKENIZER}/ say, with both marks, cut and padded to max_length",
            "lengths counts the tokens of each text with its marks",
        ],
        "example": {"text": TEXTS[0], "input_ids": tokenizer([TEXTS[0]]).ids[0].tolist()},
    }
    if subject.model.lexicon is not None:
        text_steps["steps"].append(
            f"lexical: TF-IDF of the words in {TOKENIZER}/lexicon.json (lower case, \\b\\w\\w+\\b) by idf of "
            "lexicon.safetensors, of unit length, times its directions, of unit length"
        )
    found = subject.hub.correction
    about: dict[str, Any] = {"image": image_steps, "text": text_steps, "programs": names}
    about["logit_scale"] = float(subject.model.evaluation_scale)
    if found is not None:
        about["hub_correction"] = {
            "score": "image_embeds . text_embeds - prior of the side that is looked through",
            "form": found.form,
            "source": found.source,
            "tau": found.tau,
        }
    write_atomically(folder / PREPROCESSING, (json_text(about, indent=1) + "\n").encode())
