"""A repository of the hub that holds an exported model, through huggingface_hub's mixin."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

Write = Callable[[Path], object]


class Repository(ModelHubMixin, library_name="varalign"):
    """What is pushed: a folder that `write` fills. What was pulled: a folder.

    Args:
        write: fills a folder that is absent or empty.
        folder: that holds an exported model.
    """

    def __init__(self, write: Write | None = None, folder: Path | None = None) -> None:
        self._write, self.folder = write, folder

    def _save_pretrained(self, save_directory: Path) -> None:
        assert self._write is not None
        self._write(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **of_hub: Any) -> Repository:
        folder = model_id if os.path.isdir(model_id) else snapshot_download(model_id, **of_hub)
        return cls(folder=Path(folder))


def pulled(name_or_path: str | Path, **of_hub: Any) -> Path:
    """The folder of an exported model: that folder itself, or the repository's in the hub's cache.

    Args:
        name_or_path: a folder or the name of a repository.
        of_hub: as `ModelHubMixin.from_pretrained` takes them.
    """
    folder = Repository.from_pretrained(name_or_path, **of_hub).folder
    assert folder is not None
    return folder
