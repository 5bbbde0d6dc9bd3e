"""What `--hub-correction` takes. Torch-free."""

from __future__ import annotations

from pathlib import Path

from varalign.options.declaration import ConfigError, near

GALLERY, UNPAIRED = "gallery", "unpaired"
HUB_SOURCES = ("auto", "off", "train", "dev", UNPAIRED)
"""The words; anything else names a file or a folder. `eval` takes `gallery` too, the queries that it evaluates."""


def check_hub_source(value: str, *, more: tuple[str, ...] = ()) -> None:
    """Refuse what is neither a word nor looks like a place: a slip in a word is not searched for on the disk.

    Raises:
        ConfigError: naming the words.
    """
    words = (*HUB_SOURCES, *more)
    if value not in words and (value == GALLERY or not (Path(value).suffix or Path(value).exists())):
        raise ConfigError(
            f"--hub-correction {value!r} is not known: it takes {', '.join(words)}, or a features file, a file of "
            f"texts or a folder of images, and there is no such file or folder{near(value, words)}"
        )
