"""The processes of one command: `torchrun` starts several, ranks 0 to N − 1, and each works on its part of the rows.

Every rank runs the same code on the same data. What is costly (towers, the loss) is split by rows and gathered; what is
cheap is computed on every rank alike. Rank 0, the writer, alone writes files and prints. Without `torchrun` there is
one rank, and everything here does nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from varalign.data.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class RanksError(DataError):
    """The processes of a command do not fit each other, or one of them has ended; the message says what to do."""


def even_parts(count: int, parts: int) -> list[slice]:
    """Consecutive parts of `count` rows, the first ones a row longer where they cannot be equal."""
    sizes = [count // parts + (part < count % parts) for part in range(parts)]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


@dataclass(frozen=True)
class Ranks:
    """The processes of a command, seen from one of them.

    Attributes:
        rank: this process's number. size: how many there are.
        group: torch's process group, over which the losses work; None where there is one process.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's part of some rows: consecutive ones, as many as other ranks have or one more."""
        return rows[self.shares(len(rows))[self.rank]]

    def shares(self, count: int) -> list[slice]:
        """Every rank's part of `count` rows."""
        return even_parts(count, self.size)

    def agreed(self, value: T) -> T:
        """The writer's value, on every rank; any object that pickles."""
        return self.gathered(value)[0] if self.size > 1 else value

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def by_writer(self, call: Callable[[], T]) -> T:
        """What `call` gives on the writer, which alone calls it, on every rank; its error is raised on all of them."""
        if self.size == 1:
            return call()
        found: tuple[Any, Exception | None] = (None, None)
        if self.is_writer:
            try:
                with alone():
                    found = call(), None
            except Exception as error:
                found = None, error
        value, failed = self.agreed(found)
        if failed is not None:
            raise failed
        return value  # type: ignore[no-any-return]

    def writer_first(self, call: Callable[[], T]) -> T:
        """What `call` gives on each rank, the writer's before the others': it writes what they then find."""
        mine: list[T] = []
        self.by_writer(lambda: mine.append(call()))
        if mine:
            return mine[0]
        with alone():
            return call()

    def everywhere(self, holds: bool) -> bool:
        """Whether something holds on every rank."""
        return all(self.gathered(holds)) if self.size > 1 else holds

    def rows_and_flags(
        self, rows: NDArray[np.int64], total: int, flags: Sequence[int]
    ) -> tuple[NDArray[np.int64], list[int]]:
        """All ranks' rows one after the other, and the largest of each of their flags: one message a step.

        Args:
            rows: this rank's share of `total` rows. flags: whole numbers.
        """
        if self.size == 1:
            return rows, list(flags)
        import torch
        import torch.distributed as dist

        sizes = [part.stop - part.start for part in self.shares(total)]
        own = torch.zeros(len(flags) + max(sizes), dtype=torch.int64)
        own[: len(flags)] = torch.tensor(flags, dtype=torch.int64)
        own[len(flags) : len(flags) + len(rows)] = torch.from_numpy(rows)
        parts = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(parts, own, group=self.group)
        whole = [part[len(flags) : len(flags) + size].numpy() for part, size in zip(parts, sizes, strict=True)]
        return np.concatenate(whole), torch.stack(parts)[:, : len(flags)].amax(0).tolist()

    def gathered_rows(self, rows: NDArray[np.int64], values: Tensor) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Every rank's rows and their values, rank by rank, on every rank.

        Args:
            rows: (n,) this rank's, any number of them. values: (n, ...) of one dtype and width on all ranks.
        """
        if self.size == 1:
            yield rows, values
            return
        import torch.distributed as dist

        every = self.gathered(rows)
        for rank, part in enumerate(every):
            if not len(part):
                continue
            whole = values.contiguous() if rank == self.rank else values.new_empty(len(part), *values.shape[1:])
            dist.broadcast(whole, dist.get_global_rank(self.group, rank), group=self.group)
            yield part, whole

    def wait(self) -> None:
        """Wait until every rank is here: what the writer wrote before can be read after."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier(self.group)


ALONE = Ranks()
_ERROR = "varalign/error"
_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def world() -> Ranks:
    """The processes that the current code works with."""
    return _CURRENT.get()


@contextmanager
def alone() -> Iterator[None]:
    """Within, this process works by itself: what a writer does without the others must not wait for them."""
    before = _CURRENT.set(ALONE)
    try:
        yield
    finally:
        _CURRENT.reset(before)


def said_by_launcher(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes `torchrun` (or another launcher that sets WORLD_SIZE, RANK and MASTER_ADDR) has started."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in names):
        return 1
    try:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise RanksError(
            f"RANK={environment['RANK']} and WORLD_SIZE={environment['WORLD_SIZE']} are no rank and number of "
            "processes: unset them, or start by torchrun"
        )
    return size


@contextmanager
def joined() -> Iterator[Ranks]:
    """While entered, this process is one of those that the launcher has started; alone where it has started one.

    On GPUs each process of a machine takes the GPU of its LOCAL_RANK.

    Raises:
        RanksError: the processes do not find each other, or there are more of them than GPUs.
    """
    if said_by_launcher() == 1 or world().size > 1:
        yield world()
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise RanksError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start as many "
                "processes as there are GPUs (torchrun --nproc-per-node), or hide the GPUs by CUDA_VISIBLE_DEVICES="
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise RanksError(f"the processes of this command do not find each other: {error}") from None
    found = Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    before = _CURRENT.set(found)
    try:
        yield found
    except BaseException as error:
        _tell(found, error)
        raise
    finally:
        _CURRENT.reset(before)
    dist.destroy_process_group()  # not after an error: the others may never come to it


def is_lost(error: BaseException) -> bool:
    """Whether an error of a collective call says that another process has ended, or does not answer."""
    words = ("gloo", "Connection", "connection", "NCCL", "Timed out", "timed out", "Socket")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _tell(found: Ranks, error: BaseException) -> None:
    """Let the writer's error be printed once: other ranks with the same one keep it to themselves."""
    from torch.distributed.distributed_c10d import _get_default_store

    with suppress(Exception):  # the store is that of the launcher, which may be gone
        store, message = _get_default_store(), str(error)
        if found.is_writer:
            store.set(_ERROR, message)
            return
        ends = time.monotonic() + 1.0
        while not store.check([_ERROR]) and time.monotonic() < ends:
            time.sleep(0.05)
        if store.check([_ERROR]) and store.get(_ERROR).decode() == message:
            error.told = True  # type: ignore[attr-defined]
