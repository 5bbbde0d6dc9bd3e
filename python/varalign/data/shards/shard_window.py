"""Fetches the remote shards that batches need ahead of them, and keeps them while they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError
from varalign.data.shards.shard_copies import held
from varalign.data.shards.shard_members import REMOTE, AnyPath, shards_of

AHEAD = 2
"""Shards that are fetched before a batch needs them."""


def remote_shards(paths: Sequence[AnyPath]) -> tuple[list[Path], NDArray[np.int64] | None]:
    """`shards_of` where they are copies of remote ones; else no shards, and None."""
    shards, numbers = shards_of(paths)
    return (shards, numbers) if any(shard.name.endswith(REMOTE) for shard in shards) else ([], None)


def there(needs: Sequence[Sequence[Path]]) -> Generator[range, None, None]:
    """Cut batches into parts, one after the other, of which every shard is there until the next part is asked for.

    needs: the shards of each batch. Where the parts end depends on how fast shards come; they are the same batches.
    Raises DataError where a shard cannot be fetched.
    """
    last = {shard: number for number, shards in enumerate(needs) for shard in shards}
    coming = deque(last)  # in the order in which they are needed first
    fetching: dict[Path, Future[ExitStack]] = {}
    kept: dict[Path, ExitStack] = {}
    pool = ThreadPoolExecutor(1, thread_name_prefix="varalign-shard")

    def ahead() -> None:
        while coming and len(fetching) <= AHEAD:
            shard = coming.popleft()
            fetching[shard] = pool.submit(_hold, shard)

    try:
        begin = end = 0
        while end < len(needs):
            while end < len(needs):
                ahead()
                missing = [shard for shard in last if shard in fetching and shard in needs[end]]
                late = [shard for shard in needs[end] if shard not in kept and shard not in fetching]
                if end > begin and (late or not all(fetching[shard].done() for shard in missing)):
                    break
                for shard in missing:
                    kept[shard] = fetching.pop(shard).result()
                if late:
                    continue
                end += 1
            yield range(begin, end)
            for shard in [shard for shard in kept if last[shard] < end]:
                kept.pop(shard).close()
            begin = end
    finally:
        for stack in kept.values():
            stack.close()
        for future in fetching.values():
            if not future.cancel():
                future.add_done_callback(_release)
        pool.shutdown(wait=False)


def _hold(shard: Path) -> ExitStack:
    with ExitStack() as stack:
        stack.enter_context(held([shard]))
        return stack.pop_all()


def _release(future: Future[ExitStack]) -> None:
    with suppress(DataError):
        future.result().close()
