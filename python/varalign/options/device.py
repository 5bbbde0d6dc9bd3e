"""Which device to train on, and in which floating-point type; torch is imported when this is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varalign.options.declaration import ConfigError

if TYPE_CHECKING:
    import torch


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The floating-point type of the towers: `auto` is bfloat16 on a GPU that has it, else float32.

    Raises:
        ConfigError: float16 on a CPU.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16 needs a GPU: on the CPU take fp32 or bf16")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def training_precision(name: str, device: torch.device) -> torch.dtype:
    """As `pick_precision`, for encoders that train: `auto` is bfloat16 on a CPU that multiplies it too."""
    return members_products(name, device) or pick_precision(name, device)


def members_products(name: str, device: torch.device) -> torch.dtype | None:
    """The type of the matrix products of members in training; None: that of their weights, or of the autocast.

    `auto` is bfloat16 on a CPU that multiplies it: twice as fast, at the same recall.
    """
    import torch

    if device.type != "cpu" or name != "auto":
        return None
    can = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return torch.bfloat16 if can.get("avx512_bf16") or can.get("amx_bf16") else None


def pick_device(name: str | None) -> torch.device:
    """The device to train on: the named one, else the first that is there of CUDA, Apple's MPS and the CPU.

    Raises:
        ConfigError: the named device is unknown or not there.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda", "mps"}:
        raise ConfigError(f"--device {name!r} is not known: it takes cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: torch sees no Apple GPU here")
    return device
