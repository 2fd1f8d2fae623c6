"""What a stage sends to other processes: plug-ins, and errors inside results."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, Generic, TypeVar

Plugin = TypeVar("Plugin")


class PortablePlugin(Generic[Plugin]):
    """An extractor or matcher that can be pickled: another process creates it again from its class and options."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin: Plugin | None = plugin
        self._class: Any = type(plugin)
        self._options: Any = getattr(plugin, "options", None)

    def on(self, device: str) -> Plugin:
        """The plug-in itself in the process that made it, whatever its device; in other processes, a new plug-in on `device`."""
        created: Plugin = self._class.create(self._options, device) if self._plugin is None else self._plugin
        return created

    def __getstate__(self) -> dict[str, Any]:
        """Raises: ValueError if the plug-in cannot be created again."""
        if self._options is None or not hasattr(self._class, "create"):
            raise ValueError(
                f"{self._class.__qualname__} cannot be created again in another process: give it `options` and a classmethod "
                "`create(options, device)`, or choose execution=threads"
            )
        return {**self.__dict__, "_plugin": None}


class Failure:
    """An error as a result, or as a part of one."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> tuple[type[Failure], tuple[Exception]]:
        return Failure, (_portable(self.error),)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; replaced by a RuntimeError of the same text if it cannot be pickled."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    error.__notes__ = [f"in a worker process:\n{text}"]  # type: ignore[attr-defined]  # Python 3.11 and later print it
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling calls code of the exception's class, which may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
