"""Timing a Detector's stages on the host, several Detectors in turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns, process_time_ns
from typing import Any, ClassVar

import numpy as np

from benchmarks.machine import peak_memory
from benchmarks.statistics import percentiles
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import StepProgress
from yolact_deploy.runtime.protocols import STAGES

_NS_PER_MS = 1e6
_WHOLE_EVERY = 4  # rounds; a whole call is timed beside that many staged ones
_WARMUP_WINDOW = 5  # rounds whose median is compared with that of the window before
_WARMUP_STABLE = 0.05
_WARMUP_MAX_ROUNDS = 40
_WARMUP_MAX_SECONDS = 10.0
_YARDSTICK_VALUES = 50_000  # sorted by each thread: 1 to 3 ms
_EMPTY_CALLS = 2000
_REPEAT_WARMUP = 2
_REPEAT_MIN, _REPEAT_MAX = 5, 30
_REPEAT_SECONDS = 2.0


class Samples:
    """Times of one artifact in nanoseconds, one entry per round."""

    stages: ClassVar[tuple[str, ...]] = STAGES

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.total_ns: list[int] = []
        self.stages_ns: dict[str, list[int]] = {stage: [] for stage in self.stages}
        self.cpu_ns: list[int] = []  # CPU time of all threads, which waiting does not add to
        self.whole_ns: list[int] = []  # of calls as a user makes them, not marked by stage

    def run(self, images: list[Image], score_threshold: float) -> int:
        """One round that is not kept; nanoseconds of it."""
        marks = time_stages(self.detector, images, score_threshold)
        return marks[-1] - marks[0]

    def time(self, images: list[Image], score_threshold: float) -> None:
        """One round."""
        before = process_time_ns()
        marks = time_stages(self.detector, images, score_threshold)
        self.cpu_ns.append(process_time_ns() - before)
        self.total_ns.append(marks[-1] - marks[0])
        for stage, begin, end in zip(self.stages, marks, marks[1:], strict=False):
            self.stages_ns[stage].append(end - begin)

    def time_whole(self, images: list[Image], score_threshold: float) -> None:
        """A call as a user makes it, beside the rounds."""
        begin = perf_counter_ns()
        masks = [found.masks for found in self.detector(images, score_threshold=score_threshold)]
        self.whole_ns.append(perf_counter_ns() - begin)
        del masks

    @property
    def staged_ns(self) -> list[int]:
        """Of the whole that the stages are parts of."""
        return self.total_ns

    def overhead_ms(self) -> float:
        """What timing adds to a stage."""
        return harness_overhead_ns() / _NS_PER_MS

    def peak_memory(self, images: list[Image], score_threshold: float) -> dict[str, Any]:
        """{"host_bytes", "method"} of a round that is not kept."""
        return peak_memory(lambda: self.run(images, score_threshold))

    def extra_ns(self) -> dict[str, list[int]]:
        """Other times of a round, by name."""
        return {}

    def repeat(self, inputs: Callable[[], list[Image]], score_threshold: float = 0.0) -> None:
        """As many rounds as `repeat` makes, each with what `inputs` gives."""
        repeat(lambda timed: (self.time if timed else self.run)(inputs(), score_threshold))

    def times(self) -> dict[str, Any]:
        """{"latency_ms", "stages_ms"}: percentiles."""
        return {
            "latency_ms": percentiles(self.total_ns),
            "stages_ms": {stage: percentiles(times) for stage, times in self.stages_ns.items()},
        }

    def keep(self, count: int) -> None:
        """The first `count` rounds alone."""
        for times in (self.total_ns, self.cpu_ns, *self.stages_ns.values(), *self.extra_ns().values()):
            del times[count:]


@dataclass(frozen=True)
class Limit:
    """When to stop: after so many rounds, or so many seconds, whichever comes first."""

    iterations: int | None
    seconds: float | None

    def expected(self, done: int, elapsed: float) -> int:
        """Rounds in all, as far as can be told."""
        by_time = max(done, round(done * self.seconds / elapsed)) if self.seconds and done and elapsed else None
        return min([count for count in (self.iterations, by_time) if count is not None], default=done + 1)

    def reached(self, done: int, elapsed: float) -> bool:
        """Whether so many rounds in so many seconds are enough."""
        return (self.iterations is not None and done >= self.iterations) or (
            self.seconds is not None and done > 0 and elapsed >= self.seconds
        )


class Yardstick:
    """A fixed piece of work, as wide as the network's threads: it takes longer when the machine is slower, whatever the
    reason, and never because our code is."""

    def __init__(self, threads: int) -> None:
        self._values = np.random.default_rng(0).random(_YARDSTICK_VALUES, np.float32)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self.times_ns: list[int] = []

    def measure(self) -> None:
        """Time one piece of work that never changes."""
        begin = perf_counter_ns()
        list(self._pool.map(np.sort, [self._values] * self._threads))  # np.sort works outside of Python's lock
        self.times_ns.append(perf_counter_ns() - begin)

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown()


def warm_up(
    runs: Sequence[Samples], images: Iterator[Image], batch: int, score_threshold: float, rounds: int | None
) -> dict[str, Any]:
    """`rounds` untimed rounds; None: until no artifact's median changes by more than 5% any more, within bounds.

    {"iterations", "stable"}: `stable` is None where the rounds were given, as nobody looked.
    """
    totals: list[list[int]] = [[] for _ in runs]
    started, done = perf_counter(), 0
    while done < (_WARMUP_MAX_ROUNDS if rounds is None else rounds):
        inputs = [next(images) for _ in range(batch)]
        for run, times in zip(runs, totals, strict=True):
            times.append(run.run(inputs, score_threshold))
        done += 1
        if rounds is None and all(map(_is_stable, totals)):
            return {"iterations": done, "stable": True}
        if rounds is None and done >= 2 and perf_counter() - started > _WARMUP_MAX_SECONDS:
            break
    return {"iterations": done, "stable": None if rounds is not None else False}


def run_rounds(
    runs: Sequence[Samples],
    images: Iterator[Image],
    batch: int,
    score_threshold: float,
    limit: Limit,
    yardstick: Yardstick,
    progress: StepProgress | None = None,
) -> bool:
    """Time all artifacts round by round, in reversed order every second round. False when interrupted by Ctrl-C.

    An interrupted round is dropped. Raises KeyboardInterrupt when not even one was complete.
    """
    started, done = perf_counter(), 0
    try:
        while not limit.reached(done, perf_counter() - started):
            if progress is not None:
                progress(done, limit.expected(done, perf_counter() - started))
            yardstick.measure()
            inputs = [next(images) for _ in range(batch)]
            for run in runs if done % 2 == 0 else reversed(runs):
                whole_first, whole_last = done % (2 * _WHOLE_EVERY) == _WHOLE_EVERY, done % (2 * _WHOLE_EVERY) == 0
                if whole_first:
                    run.time_whole(inputs, score_threshold)
                run.time(inputs, score_threshold)
                if whole_last:
                    run.time_whole(inputs, score_threshold)
            done += 1
    except KeyboardInterrupt:
        if done == 0:
            raise
        for run in runs:
            run.keep(done)
        del yardstick.times_ns[done:]
        return False
    if progress is not None:
        progress(done, done)
    return True


def time_stages(detector: Detector, images: list[Image], score_threshold: float) -> list[int]:
    """Clock readings before the first stage and after each; masks are assembled as a user's access would."""
    marks = [perf_counter_ns()]
    batch = detector.preprocess(images)
    marks.append(perf_counter_ns())
    heads = detector.run_network(batch)
    marks.append(perf_counter_ns())
    raws = detector.suppress(heads)
    marks.append(perf_counter_ns())
    masks = [
        detector.assemble(raw, (image.shape[0], image.shape[1]), score_threshold).masks
        for raw, image in zip(raws, images, strict=True)
    ]
    marks.append(perf_counter_ns())
    del masks  # freed after the clock was read: giving memory back is the caller's business
    return marks


def repeat(once: Callable[[bool], object]) -> None:
    """Calls `once(False)` untimed, then `once(True)`, without the garbage collector: 5 to 30 times, 2 seconds if it can."""
    for _ in range(_REPEAT_WARMUP):
        once(False)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        started, done = perf_counter(), 0
        while done < _REPEAT_MIN or (done < _REPEAT_MAX and perf_counter() - started < _REPEAT_SECONDS):
            once(True)
            done += 1
    finally:
        if collecting:
            gc.enable()


def harness_overhead_ns() -> float:
    """What timing adds to a stage: the median time of a stage that does nothing."""
    work: Callable[[], None] = lambda: None  # noqa: E731  # a call, as every stage is one
    times = []
    for _ in range(_EMPTY_CALLS):
        marks = [perf_counter_ns()]
        work()
        marks.append(perf_counter_ns())
        times.append(marks[1] - marks[0])
    return statistics.median(times)


def _is_stable(times: list[int]) -> bool:
    if len(times) < 2 * _WARMUP_WINDOW:
        return False
    before = statistics.median(times[-2 * _WARMUP_WINDOW : -_WARMUP_WINDOW])
    return abs(statistics.median(times[-_WARMUP_WINDOW:]) / before - 1) <= _WARMUP_STABLE
