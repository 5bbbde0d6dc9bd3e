"""What a user says of how a data folder is read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}
"""Names of the separators, as `--separator` takes them."""

SPLIT_BY = ("seed", "near-duplicates", "none")
"""How splits are made, as `--split-by` takes it: all drawn by the seed, whatever splits the data have; as without the
option, but near-duplicates stay together; or not at all, and every image is for training."""


HUB = "hf:"
"""How a place of data begins that is a data set of the hub."""


@dataclass(frozen=True)
class Reading:
    """What a user says of how a data folder is read; what is None is found out. Each attribute is an option.

    captions: the captions file; relative to the working folder, else to the data folder. images: the folder of images,
    likewise. separator: name in `SEPARATORS`. image_column, caption_column: of tables
    and JSON records. follow_links: whether images may be links that lead out of their folder. cache: folder in which
    images that lie in archives are unpacked. split_by: one of `SPLIT_BY`; None takes the data's own splits, where it
    has some, and draws them by the seed elsewhere.
    """

    captions: str | None = None
    images: str | None = None
    separator: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    follow_links: bool = False
    cache: str | None = None
    split_by: str | None = None

    @classmethod
    def of(cls, options: Any) -> Reading:
        """Taken from the attributes of the same names of a config or of the command line's arguments."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


READING = tuple(field.name for field in fields(Reading) if field.name != "cache")
"""The options that say how data are read."""


def of_hub(place: Path | str) -> bool:
    """Whether a place of data is a data set of the hub."""
    return str(place).startswith(HUB)
