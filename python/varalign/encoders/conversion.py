"""Converts weight files to safetensors without running code in them: `varalign convert IN OUT`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from varalign.data.outputs import check_output_file
from varalign.encoders.torchscript import read_torchscript
from varalign.encoders.weights import WeightsError, is_torchscript, read_weights, safetensors_metadata

OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
"""Three sizes that OpenAI's CLIP archives hold as tensors; the converted file has them as metadata."""
QUICK_GELU_CODE = "1.702"
"""The factor of QuickGELU, x · sigmoid(1.702 x), in the code text of an archive."""


@dataclass(frozen=True)
class Conversion:
    """What `convert` did; as a string, a line that says so.

    Attributes:
        source: the file read.
        target: the file written.
        tensors: how many tensors it holds.
        bytes: their size.
        metadata: the strings written beside them; `quick_gelu` is what a `clip:` spec takes its activation from.
        taken: which part of the source they are; empty where it holds nothing else.
    """

    source: Path
    target: Path
    tensors: int
    bytes: int
    metadata: dict[str, str]
    taken: str = ""

    def __str__(self) -> str:
        activation = "; QuickGELU recorded" if self.metadata.get("quick_gelu") == "true" else ""
        taken = f" ({self.taken})" if self.taken else ""
        size = f"{self.tensors} tensors, {self.bytes / 1e6:.1f} MB"
        return f"{self.target}: {size}, from {self.source}{taken}{activation}"


def convert(source: Path | str, target: Path | str, *, overwrite: bool = False) -> Conversion:
    """Write the tensors of a weights file as safetensors, dtypes kept.

    TorchScript archives (OpenAI's original CLIP files) are read without torch.jit, pickles with `weights_only=True`;
    nothing in either is run. For OpenAI's CLIP files, and other archives whose code has QuickGELU's factor, the
    metadata say so, and then `clip:ViT-B-32@TARGET` behaves as `clip:ViT-B-32@openai` does.

    Args:
        source: `.pt`, `.pth`, `.bin` or `.safetensors`.
        target: a `.safetensors` file; written under a temporary name, synced and renamed.
        overwrite: replace a file that is there already.

    Raises:
        FileNotFoundError: no such source.
        WeightsError: the source holds more than tensors, none, or is broken; or the target has another suffix.
        DataError: the target is there already.
    """
    from safetensors.torch import save_file

    source, target = Path(source).expanduser(), Path(target).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"no weights file {source}")
    if target.suffix != ".safetensors":
        raise WeightsError(f"the converted file is a .safetensors file, not {target.name}")
    check_output_file(target, overwrite=overwrite)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} into")
    state, metadata, taken = _read(source)
    # Independent, contiguous copies: safetensors refuses tensors that share memory (tied weights).
    state = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            save_file(state, temporary, metadata=metadata)
        except OSError:
            raise
        except Exception as error:  # SafetensorError, which is no OSError, also where the disk is full; odd names
            raise WeightsError(f"{target}: cannot be written: {error}") from error
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return Conversion(source, target, len(state), size, metadata, taken)


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    metadata, taken = {"format": "pt"}, ""
    if is_torchscript(source):
        state, code = read_torchscript(source)
        if QUICK_GELU_CODE in code:
            metadata["quick_gelu"] = "true"
    else:
        weights = read_weights(source)
        state, taken = weights.state, weights.taken
        metadata |= safetensors_metadata(source)
    if all(key in state for key in OPENAI_KEYS):
        # Only OpenAI's archives, and state dicts taken from them, carry these; their models are all QuickGELU.
        sizes = {key: _number(state.pop(key), key, source) for key in OPENAI_KEYS}
        metadata |= {"source": "openai", "quick_gelu": "true", **sizes}
    if not state:
        raise WeightsError(f"{source} holds no tensors")
    return state, metadata, taken


def _number(tensor: Tensor, name: str, source: Path) -> str:
    try:
        return str(int(tensor))
    except (ValueError, RuntimeError, OverflowError) as error:
        raise WeightsError(f"{source}: {name} is no whole number, as OpenAI's archives have it: {error}") from error
