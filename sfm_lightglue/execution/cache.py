"""A bounded cache, shared by threads, for values that are expensive to make and needed again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedCache(Generic[Key, Value]):
    """Makes the value of a key at its first use. Drops the least recently used values when all together exceed `max_bytes`.

    If several threads ask for the same key at the same time, one of them makes the value and the others wait. One value is
    always kept, even if it is larger than `max_bytes`.

    Args:
        make: Makes the value of a key.
        num_bytes: Memory that a value takes, bytes.
        max_bytes: Memory for all values together, bytes.
    """

    def __init__(self, make: Callable[[Key], Value], num_bytes: Callable[[Value], int], max_bytes: int) -> None:
        self._make, self._num_bytes, self._max_bytes = make, num_bytes, max_bytes
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Future[Value]] = OrderedDict()  # least recently used first
        self._sizes: dict[Key, int] = {}  # only of finished values
        self._total = 0

    def __call__(self, key: Key) -> Value:
        """The value of the key. Raises: the error that `make` raised; the next call tries again."""
        with self._lock:
            future = self._values.get(key)
            mine = future is None
            if future is None:
                future = self._values[key] = Future()
            self._values.move_to_end(key)
        if mine:
            self._fill(key, future)
        return future.result()

    def _fill(self, key: Key, future: Future[Value]) -> None:
        try:
            value = self._make(key)
        except BaseException as error:
            with self._lock:
                del self._values[key]
            future.set_exception(error)
            return
        future.set_result(value)
        with self._lock:
            self._sizes[key] = self._num_bytes(value)
            self._total += self._sizes[key]
            while self._total > self._max_bytes and len(self._sizes) > 1:
                oldest = next(other for other in self._values if other in self._sizes and other != key)
                del self._values[oldest]
                self._total -= self._sizes.pop(oldest)
