"""Values that are made at their first use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Once(Generic[Value]):
    """Gives the value of a function, which is called at the first use. Threads that ask meanwhile wait for it."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make, self._values, self._lock = make, list[Value](), threading.Lock()

    def __call__(self) -> Value:
        """The value. Raises: what the function raises; the next use calls it again."""
        with self._lock:
            if not self._values:
                self._values.append(self._make())
            return self._values[0]
