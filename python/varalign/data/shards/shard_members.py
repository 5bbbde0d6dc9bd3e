"""Paths of images that lie in tar shards: `SHARD/@OFFSET+SIZE/NAME`, a part of the file SHARD.

Nothing lies below a file, so such a path names nothing else, and an image of a shard goes wherever the path of an image
goes. Read by `varalign.data.files.opened` and by the compiled core (`rust/src/image/load.rs`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REMOTE = ".remote.tar"
"""End of the name of a shard that is a local copy of a remote one (`varalign.data.shards.shard_copies`)."""

_MEMBER = re.compile(r"(.+)[/\\]@(\d+)\+(\d+)[/\\][^/\\]+", re.DOTALL)
_ADDRESS = re.compile(r"(s3|https?|gs):/+([^/].*)", re.DOTALL)


AnyPath = str | os.PathLike[str]


class Member(NamedTuple):
    """A part of a shard: the file, and offset and size in bytes."""

    shard: Path
    offset: int
    size: int


def member_path(shard: Path, offset: int, size: int, name: str) -> Path:
    """The path of a member. name: what people call it; its last part is shown in the path."""
    return shard / f"@{offset}+{size}" / (name.rpartition("/")[2] or "image")


def member_of(path: AnyPath) -> Member | None:
    """The member that a path names; None where it names a file of its own."""
    text = os.fspath(path)
    found = _MEMBER.fullmatch(text) if "@" in text else None
    if found is None or not (found[1].endswith(REMOTE) or os.path.isfile(found[1])):
        return None
    return Member(Path(found[1]), int(found[2]), int(found[3]))


def shards_of(paths: Sequence[AnyPath]) -> tuple[list[Path], NDArray[np.int64] | None]:
    """The shards of some images, in the order of their names, and (I,) which of them each image lies in.

    Where the first image lies in none, none does: a data set is read from shards or from other files.
    """
    if not len(paths) or member_of(paths[0]) is None:
        return [], None
    found = [_MEMBER.fullmatch(os.fspath(path)) for path in paths]
    names = [match[1] if match else "" for match in found]
    number = {name: k for k, name in enumerate(sorted(set(names)))}
    return [Path(name) for name in number], np.array([number[name] for name in names], dtype=np.int64)


def address_of(place: Path | str) -> str | None:
    """The address of a remote shard, or of several (`s3://bucket/train-{000..099}.tar`); None for what is local.

    >>> address_of(Path("https://host/a.tar"))
    'https://host/a.tar'
    """
    found = _ADDRESS.fullmatch(str(place))
    return None if found is None else f"{found[1]}://{found[2]}"


def shown_place(place: Path | str) -> str:
    """A place for messages: a path, or an address with both its slashes, of which a path keeps one."""
    return address_of(place) or str(place)
