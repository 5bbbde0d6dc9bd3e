"""What of a machine affects the last digits of a run's sums."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from varalign.data.ranks import world
from varalign.options.device import members_products


def machine_of(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions and settings that affect the last digits of sums; OMP_NUM_THREADS sets torch's threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "torch_threads": torch.get_num_threads(),
        "processes": world().size,
        "members_in": str(members_products(precision, device)),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """A remark on the entries of `machine_of` that have changed since the run began; empty if none has."""
    names = ("torch", "device", "torch_threads", "members_in")
    changed = [name for name in names if name in then and then[name] != now[name]]
    told = ", ".join(f"{name} was {then[name]} and is {now[name]}" for name in changed)
    hint = f" (OMP_NUM_THREADS={then['torch_threads']} sets the threads)" if "torch_threads" in changed else ""
    return f"{told}{hint}: the last digits may differ from those of a run that was never stopped" if changed else ""
