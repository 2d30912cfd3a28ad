"""The embedding cache: order of leaving, the bound in bytes, threads."""

import random
import threading

import pytest

from ibisagent.errors import InputError
from ibisagent.tools.cache import EmbeddingCache


def test_least_recently_used_leaves_first():
    cache = EmbeddingCache[str](30)
    for key in "abc":
        cache.put(key, key.upper(), 10)
    assert cache.get("a") == "A"  # now b is the oldest
    cache.put("d", "D", 10)
    assert [key in cache for key in "abcd"] == [True, False, True, True]
    assert cache.nbytes == 30
    assert len(cache) == 3


def test_one_large_value_makes_several_leave():
    cache = EmbeddingCache[int](30)
    for key in range(3):
        cache.put(key, key, 10)
    cache.put("large", 9, 25)
    assert len(cache) == 1
    assert cache.nbytes == 25


def test_value_above_the_bound_is_not_kept_and_evicts_nothing():
    cache = EmbeddingCache[int](30)
    cache.put("small", 1, 10)
    cache.put("huge", 2, 31)
    assert cache.get("huge") is None
    assert cache.get("small") == 1


def test_replacing_a_key_counts_its_bytes_once():
    cache = EmbeddingCache[int](30)
    cache.put("a", 1, 20)
    cache.put("a", 2, 5)
    assert cache.get("a") == 2
    assert cache.nbytes == 5
    cache.put("a", 3, 99)  # the stale value must not survive either
    assert cache.get("a") is None
    assert cache.nbytes == 0


def test_bound_zero_keeps_nothing_and_clear_forgets():
    empty = EmbeddingCache[int](0)
    empty.put("a", 1, 0)
    assert empty.get("a") is None
    cache = EmbeddingCache[int](10)
    cache.put("a", 1, 10)
    cache.clear()
    assert (cache.get("a"), cache.nbytes, len(cache)) == (None, 0, 0)


def test_negative_sizes_are_refused():
    with pytest.raises(InputError):
        EmbeddingCache[int](-1)
    with pytest.raises(InputError):
        EmbeddingCache[int](1).put("a", 1, -1)


def test_threads_never_break_the_bound():
    cache = EmbeddingCache[int](100)
    seen: list[bool] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(2000):
            key = draw.randrange(40)
            value = cache.get(key)
            seen.append(value is None or value == key)
            cache.put(key, key, draw.randrange(30))
            seen.append(cache.nbytes <= 100)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seen)
