"""Many images through a pipeline, in order: read ahead of time, with several batches on their way at once."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.runtime.protocols import Pending, Pipeline

T = TypeVar("T")


class _EndOfSource:
    """What the source ended with."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """An iterator over `source` that asks it for up to `count` items ahead of time, in a thread of its own.

    The source's exception is raised where its item would have come. `close` stops asking; the source may be at work on one
    more item then.
    """

    def __init__(self, source: Iterable[T], count: int) -> None:
        self._items: queue.Queue[T | _EndOfSource] = queue.Queue()
        self._room = threading.Semaphore(count)
        self._is_closed = False
        # a daemon: a source that never answers (a camera) must not keep the process alive
        self._thread = threading.Thread(target=self._read, args=(source,), name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._items.get()
            if isinstance(item, _EndOfSource):
                self._thread.join()  # it has said its last word, and lets go of the source
                if item.error is not None:
                    raise item.error
                return
            self._room.release()
            yield item

    def close(self) -> None:
        """End the thread; what it has read is dropped."""
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
        self._items.put(_EndOfSource(error))


def stream_detections(
    pipeline: Pipeline,
    source: Iterable[Any],
    load: Callable[[Any], Any],  # an item of `source` to an image that the pipeline takes
    *,
    batch_size: int,
    prefetch: int,  # images loaded ahead of time in a thread; 0: none, and no thread
    score_threshold: float,
    masks: MaskForm,
) -> Iterator[Detections]:
    """Detections of every image of `source`, in its order.

    An exception of the source or of an image comes after the detections of all images before it.
    """
    loaded = (load(item) for item in source)
    ahead = ReadAhead(loaded, prefetch) if prefetch > 0 else None
    images = iter(ahead) if ahead is not None else loaded
    on_their_way: deque[Pending] = deque()
    error: Exception | None = None
    try:
        while error is None:
            batch: list[Any] = []
            try:
                while len(batch) < batch_size:
                    batch.append(next(images))
            except StopIteration:
                pass
            except Exception as exc:
                error = exc
            if batch:
                try:
                    on_their_way.append(pipeline.submit(batch, score_threshold, masks))
                except Exception as exc:
                    error = exc
            if len(batch) < batch_size:
                break
            if len(on_their_way) >= pipeline.in_flight:
                yield from on_their_way.popleft().result()
        while on_their_way:
            yield from on_their_way.popleft().result()
        if error is not None:
            raise error
    finally:
        for pending in on_their_way:
            pending.discard()
        if ahead is not None:
            ahead.close()
