"""Forks the ranks of a test from one process that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch


def forked(size: int, work: Callable[[int], None], seconds: float) -> None:
    """Call `work` with its rank in each of `size` processes, as a launcher does, and kill those that take longer.

    They see no GPU: a machine may have fewer than `size`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launched(rank: int) -> None:
        torch.set_num_threads(1)
        torch.cuda.is_available = lambda: False
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work(rank)

    processes = [multiprocessing.get_context("fork").Process(target=launched, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
