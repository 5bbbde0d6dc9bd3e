"""Low-rank adapters beside a tower's linear layers (LoRA), through peft."""

from __future__ import annotations

from torch import nn

from varalign.data.errors import how_to_install
from varalign.encoders.base import Encoder
from varalign.encoders.specs import SpecError

ADAPTER = ".lora_"  # part of the names of adapters' tensors, and of no other tensor


def add_adapters(encoder: Encoder, rank: int) -> None:
    """Add an adapter of this rank to each linear layer of the tower's blocks, in place.

    An adapter adds B A x to the layer's output, with A random (torch's generator) and B zero, so the features change
    only when it trains. In open_clip's towers only the perceptrons get adapters, because their attention is one fused
    module.

    Raises:
        SpecError: the tower's blocks have no linear layer, or peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise SpecError(f"--lora needs the package peft: {how_to_install('lora')}") from None
    names = {module: name for name, module in encoder.named_modules()}
    # Subclasses of Linear are parts of other modules, which use the weights without calling the layer.
    found = [names[part] for block in encoder.blocks() for part in block.modules() if type(part) is nn.Linear]
    if not found:
        raise SpecError(f"'{encoder.spec}': its blocks have no linear layer that an adapter could stand beside")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=found), encoder)


def merge_adapters(encoder: Encoder) -> None:
    """Add the adapters to the weights of their layers and take them away, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            above, _, last = name.rpartition(".")
            setattr(encoder.get_submodule(above), last, module.get_base_layer())
