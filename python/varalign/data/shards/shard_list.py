"""The shards that a place of data names: a tar file, a pattern, or an address with braces."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from varalign.data.errors import DataError
from varalign.data.shards.shard_copies import expanded
from varalign.data.shards.shard_members import address_of


def names_shards(place: Path | str) -> bool:
    """Whether a place of data is no folder but one tar file, a pattern of some, or an address."""
    text = os.fspath(place)
    return address_of(text) is not None or (text.endswith(".tar") and not os.path.isdir(text))


def shard_files(place: Path) -> list[Path]:
    """The shards in the order of the pattern; DataError where there are none."""
    address = address_of(place)
    if address is None and re.match(r"[a-z]\w+:/", str(place)):
        raise DataError(f"{place}: this kind of address is not read; wanted s3://, https://, http:// or gs://")
    if address is None:
        found = [path for part in expanded(str(place)) for path in sorted(glob.glob(part)) or [part]]
        missing = next((path for path in found if not os.path.isfile(path)), None)
        if missing is not None:
            raise DataError(f"{missing}: there is no such shard; wanted a tar file, a pattern or a folder")
        return [Path(path) for path in dict.fromkeys(found)]
    if "*" in address:
        raise DataError(f"{address}: an address cannot be searched; write the numbers, such as train-{{000..099}}.tar")
    return [Path(path) for path in expanded(address)]
