"""Many images through a pipeline, in order, with several batches on their way at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from yolact_deploy.cuda.frames import MaskForm
from yolact_deploy.detections import Detections
from yolact_deploy.runtime.pipeline import Pending, Pipeline
from yolact_deploy.runtime.read_ahead import ReadAhead


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
