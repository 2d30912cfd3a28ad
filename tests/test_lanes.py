"""Lanes: one torch thread per call, several calls at a time, and nothing else changed."""

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch

from ibisagent.lanes import in_lanes


@pytest.fixture(params=[1, 3])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _fails_at(number: int) -> int:
    if number >= 3:
        raise ValueError(f"no {number}")
    return number


def test_results_come_in_the_order_of_the_items(lanes: int) -> None:
    assert in_lanes(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    assert in_lanes(str, []) == []


def test_as_many_calls_run_at_a_time_as_torch_has_threads(lanes: int) -> None:
    together = threading.Barrier(lanes)
    assert in_lanes(lambda _: together.wait(timeout=20) >= 0, range(2 * lanes)) == [True] * 2 * lanes


def test_every_call_has_one_thread_and_the_callers_number_stays(lanes: int) -> None:
    assert in_lanes(lambda _: torch.get_num_threads(), range(8)) == [1] * 8
    assert torch.get_num_threads() == lanes
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [lanes]


def test_a_call_may_use_lanes_itself(lanes: int) -> None:
    assert in_lanes(lambda x: sum(in_lanes(abs, range(x))), range(6)) == [0, 0, 1, 3, 6, 10]


def test_the_first_failure_is_raised_and_the_next_call_works(lanes: int) -> None:
    with pytest.raises(ValueError, match="no 3"):
        in_lanes(_fails_at, range(6))
    assert in_lanes(_fails_at, range(3)) == [0, 1, 2]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_has_lanes_of_its_own(lanes: int) -> None:
    in_lanes(abs, range(3))
    context = multiprocessing.get_context("fork")
    inbox = context.SimpleQueue()
    child = context.Process(target=lambda: inbox.put(in_lanes(abs, [-1, -2])), daemon=True)
    child.start()
    child.join(timeout=20)
    assert child.exitcode == 0
    assert inbox.get() == [1, 2]
