"""What every test shares: where the real data lie, and which tests need what this machine lacks."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The fixtures of small checkpoints have a file of their own; tests are no package, so it is read by its path.
_spec = importlib.util.spec_from_file_location("varalign_test_checkpoints", ROOT / "tests" / "checkpoints.py")
assert _spec is not None and _spec.loader is not None
_checkpoints = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _checkpoints
_spec.loader.exec_module(_checkpoints)
bert_folder = _checkpoints.bert_folder
clip_config = _checkpoints.clip_config
clip_folder = _checkpoints.clip_folder
nothing_local = _checkpoints.nothing_local


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (or named by VARALIGN_SHARED); skips where it is absent."""
    named = os.environ.get("VARALIGN_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder.name!r} beside the checkout and VARALIGN_SHARED is not set")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
