"""A bounded store for image embeddings: the least recently used ones leave first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from ibisagent.errors import InputError

Value = TypeVar("Value")


class EmbeddingCache(Generic[Value]):
    """Least-recently-used cache bounded in bytes; every method may be called from any thread.

    The bound counts what `put` was told; the values themselves are never looked at. A value
    larger than the whole bound is not kept, so a caller holds on to what `put` it was given.
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` >= 0; with 0 nothing is kept. Raises InputError if negative."""
        if max_bytes < 0:
            raise InputError("the embedding cache's bound is a number of bytes >= 0", max_bytes)
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """The value under `key`, which becomes the most recently used; None if not kept."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Hashable, value: Value, nbytes: int) -> None:
        """Keep `value` (of `nbytes` bytes) under `key`; the oldest entries leave to make room."""
        if nbytes < 0:
            raise InputError("an embedding's size is a number of bytes >= 0", nbytes)
        with self._lock:
            replaced = self._entries.pop(key, None)
            if replaced is not None:
                self._nbytes -= replaced[1]
            if nbytes > self.max_bytes or self.max_bytes == 0:
                return
            self._entries[key] = (value, nbytes)
            self._nbytes += nbytes
            while self._nbytes > self.max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._nbytes -= freed

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes kept now; never above `max_bytes`."""
        with self._lock:
            return self._nbytes

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._entries
