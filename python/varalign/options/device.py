"""Which device to train on, and in which arithmetic."""

from __future__ import annotations

import torch

from varalign.options.config import ConfigError


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic of the towers: `auto` is bfloat16 on CUDA that has it, else float32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16 needs a GPU: on the CPU take fp32 or bf16")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def pick_device(name: str | None) -> torch.device:
    """The device to train on: the named one, else CUDA, Apple's MPS or the CPU, in this order.

    Raises:
        ConfigError: the named device is unknown or not there.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name!r} is not known: it takes cpu, cuda, cuda:N or mps") from None
    if device.type not in {"cpu", "cuda", "mps"}:
        raise ConfigError(f"--device {name!r} is not known: it takes cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: torch sees no Apple GPU here")
    return device
