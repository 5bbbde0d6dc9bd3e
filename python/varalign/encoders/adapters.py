"""Low-rank adapters beside a tower's linear layers (LoRA), through peft."""

from __future__ import annotations

from torch import nn

from varalign.encoders.base import Encoder
from varalign.encoders.specs import SpecError

ADAPTER = ".lora_"  # in the name of every tensor of an adapter, and of no other


def add_adapters(encoder: Encoder, rank: int) -> None:
    """Put an adapter of this rank beside each linear layer of the tower's blocks, in place.

    An adapter adds B A x to a layer, A random by torch's generator and B zero: the tower's features stay what they were
    until it trains. Of open_clip's towers the perceptrons are adapted; their attention is one fused module that keeps
    its weights.

    Raises:
        SpecError: the tower's blocks have no linear layer, or peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise SpecError("--lora needs the package peft: pip install 'varalign[lora]'") from None
    names = {module: name for name, module in encoder.named_modules()}
    # Subclasses are other modules' parts, whose weights are used without calling them.
    found = [names[part] for block in encoder.blocks() for part in block.modules() if type(part) is nn.Linear]
    if not found:
        raise SpecError(f"'{encoder.spec}': its blocks have no linear layer that an adapter could stand beside")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=found), encoder)
