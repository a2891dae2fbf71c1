"""Reading the next images while the last ones are worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """What the source ended with."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """An iterator over `source` that asks it for up to `count` items ahead of time, in a thread of its own.

    The source's exception is raised where its item would have come. `close` stops asking; the source may be at work on one
    more item then.
    """

    def __init__(self, source: Iterable[T], count: int) -> None:
        self._items: queue.Queue[T | _End] = queue.Queue()
        self._room = threading.Semaphore(count)
        self._is_closed = False
        # a daemon: a source that never answers (a camera) must not keep the process alive
        self._thread = threading.Thread(target=self._read, args=(source,), name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._items.get()
            if isinstance(item, _End):
                self._thread.join()  # it has said its last word, and lets go of the source
                if item.error is not None:
                    raise item.error
                return
            self._room.release()
            yield item

    def close(self) -> None:
        self._is_closed = True
        self._room.release()

    def _read(self, source: Iterable[T]) -> None:
        error: BaseException | None = None
        try:
            items = iter(source)
            while self._room.acquire() and not self._is_closed:
                try:
                    item = next(items)
                except StopIteration:
                    break
                self._items.put(item)
        except BaseException as exc:  # handed over to whoever iterates
            error = exc
        self._items.put(_End(error))
