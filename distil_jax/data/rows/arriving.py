"""Items of an iterator that may have to wait for them, read on a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

_AHEAD = 1 << 12  # items that are read before they are asked for

T = TypeVar("T")


class Arriving(Generic[T]):
    """The items of an iterator, read on a thread, so that a caller can ask whether the next one is there.

    What the iterator raises is raised where its items end.
    """

    def __init__(self, items: Iterable[T]) -> None:
        """Begins to read, at most `_AHEAD` items more than are asked for."""
        self._there: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(_AHEAD)
        self._peeked: list[tuple[T] | BaseException | None] = []
        threading.Thread(target=self._read, args=(items,), daemon=True).start()

    def _read(self, items: Iterable[T]) -> None:
        end: BaseException | None = None
        try:
            for item in items:
                self._there.put((item,))
        except BaseException as error:
            end = error
        self._there.put(end)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        found = self._peeked.pop() if self._peeked else self._there.get()
        if isinstance(found, tuple):
            return found[0]
        self._peeked.append(found)
        raise StopIteration if found is None else found

    def is_there(self, seconds: float) -> bool:
        """Whether the next item, or the end, comes within so many seconds."""
        try:
            self._peeked = self._peeked or [self._there.get(timeout=seconds)]
        except queue.Empty:
            return False
        return True
