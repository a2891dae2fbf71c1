"""Images per second through `Detector.stream`, by one Detector or by several side by side."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, takewhile
from time import perf_counter_ns
from typing import Any

from yolact_deploy import Detector
from yolact_deploy.arrays import Image

DEFAULT_SECONDS = 5.0
_WARMUP_BATCHES = 4  # of each stream: the first batch of a size runs step by step, the second is recorded
_POLL_SECONDS = 0.05


def stream_throughput(
    detector: Detector,
    images: Sequence[Image],
    *,
    streams: int = 1,
    batch: int = 1,  # that the Detector was opened with
    iterations: int | None = None,
    seconds: float | None = None,
    score_threshold: float = 0.0,
    progress: Callable[[float], None] | None = None,  # told the share that is done
) -> dict[str, Any]:
    """{"streams", "in_flight", "batch", "images", "seconds", "throughput_fps"} of a steady state.

    Each stream is a Detector in a thread of its own (the first is `detector`, the others are opened like it) whose images
    come from host memory and end as full-size masks in host memory. "in_flight" counts batches, over all streams; "images"
    those that were done while all streams were at work. It ends after `iterations` batches of every stream, or after
    `seconds` (5 where neither is given). Raises what a Detector raises.
    """
    if seconds is None and iterations is None:
        seconds = DEFAULT_SECONDS
    with ExitStack() as stack:
        detectors = [detector]
        for _ in range(streams - 1):
            detectors.append(stack.enter_context(copy.copy(detector)))
        workers = [_Worker(each, images, batch, iterations, score_threshold) for each in detectors]
        try:
            for worker in workers:
                worker.thread.start()
            _wait(workers, seconds, progress)
        finally:
            for worker in workers:
                worker.stop.set()
            for worker in workers:
                worker.thread.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    begin = max(worker.done_ns[worker.warmup - 1] for worker in workers)
    end = min(worker.done_ns[-1] for worker in workers)
    count = sum(begin < done <= end for worker in workers for done in worker.done_ns)
    return {
        "streams": streams,
        "in_flight": streams * detector.in_flight,
        "batch": batch,
        "images": count,
        "seconds": (end - begin) / 1e9,
        "throughput_fps": count * 1e9 / (end - begin),
    }


class _Worker:
    """One stream, and when each of its images was done."""

    def __init__(
        self, detector: Detector, images: Sequence[Image], batch: int, iterations: int | None, score_threshold: float
    ) -> None:
        self._detector, self._images, self._score_threshold = detector, images, score_threshold
        self.warmup = _WARMUP_BATCHES * batch
        self._count = None if iterations is None else iterations * batch
        self.done_ns: list[int] = []
        self.error: Exception | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)

    def share_done(self, seconds: float | None) -> float:
        """Of its images or of its time, whichever is the further; 0 until one was timed."""
        timed = len(self.done_ns) - self.warmup
        if timed <= 0:
            return 0.0
        by_time = 0.0 if seconds is None else (perf_counter_ns() - self.done_ns[self.warmup - 1]) / 1e9 / seconds
        return max(by_time, 0.0 if self._count is None else timed / self._count)

    def _work(self) -> None:
        try:
            for found in self._detector.stream(self._source(), score_threshold=self._score_threshold):
                _ = found.masks
                self.done_ns.append(perf_counter_ns())
        except Exception as exc:  # for the thread that waits
            self.error = exc

    def _source(self) -> Iterator[Image]:
        return takewhile(lambda _: not self.stop.is_set(), cycle(self._images))


def _wait(workers: Sequence[_Worker], seconds: float | None, progress: Callable[[float], None] | None) -> None:
    """Until all have measured long enough, or one of them has failed."""
    while any(worker.thread.is_alive() for worker in workers):
        share = min(worker.share_done(seconds) for worker in workers)
        if progress is not None:
            progress(min(share, 1.0))
        if share >= 1 or any(worker.error is not None for worker in workers):
            return
        workers[0].thread.join(_POLL_SECONDS)
