"""Forward passes of one thread each, as many at a time as torch may use threads.

How many threads share a convolution decides which kernel makes it and so its last bits. The
embedded networks therefore always work on one thread per pass: what they say depends neither on
the machine's threads nor on the batch, and the cores are shared out by picture, which keeps them
busier than sharing out every layer.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_lanes(call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`call` of every item, in order; each on one torch thread, `torch.get_num_threads()` at a time.

    Raises what the first failing item raised. Modes of the caller's thread, such as
    `torch.inference_mode`, do not reach `call`.
    """
    lanes = torch.get_num_threads()
    if lanes == 1:  # also inside a lane
        return [call(item) for item in items]
    return list(_pool(lanes).map(call, items))


@functools.lru_cache(maxsize=1)
def _pool(lanes: int) -> ThreadPoolExecutor:
    started = threading.Barrier(lanes + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first use of torch takes over the number that stands then
        torch.set_num_threads(1)  # of this thread, and of threads whose first use comes later
        started.wait()

    pool = ThreadPoolExecutor(lanes, "ibisagent-lane", begin)
    for _ in range(lanes):
        pool.submit(int)  # threads are started by work only
    started.wait()
    torch.set_num_threads(lanes)  # later threads get the caller's number again
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
