"""A Detector under load: MLPerf's scenarios, where its LoadGen asks and the Detector answers (Reddi et al. 2020, MLPerf Inference
Benchmark), and how many images a second go through streams that are always full.

The scenarios' load and statistics are LoadGen's own; the length of the run is ours, so a result is no MLPerf submission.
"""

from __future__ import annotations

import array
import copy
import queue
import re
import signal
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, takewhile
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import Scenario
from yolact_deploy.errors import BenchmarkError
from yolact_deploy.optional import require

_DEFAULT_SECONDS = 10.0
_PROBES = 5
_SERVER_LOAD = 0.6  # of the rate of one image after another: queues form, and drain
_SERVER_LATENCIES = 10  # a server's answer may take so many times one image's latency
_NOTE = "LoadGen's load and statistics over a short run; not an MLPerf submission."
DEFAULT_SECONDS = 5.0
_WARMUP_BATCHES = 4  # of each stream: the first batch of a size runs step by step, the second is recorded
_POLL_SECONDS = 0.05


def run_scenario(
    detector: Detector,
    images: Sequence[Image],
    scenario: Scenario,
    *,
    seconds: float | None = None,
) -> dict[str, Any]:
    """{"artifact", "scenario", "figures", "valid", "note"}: latencies in milliseconds, rates per second.

    "single-stream" asks for the next image when one is answered, "offline" for all at once, "server" at random times at 60%
    of the rate that single images reach here. Offline goes through `Detector.stream`, in the Detector's batches and with as
    many in flight as it allows; the others call the Detector with one image at a time. An answer is given once all masks
    are in host memory at full size. Raises BenchmarkError when LoadGen gives no result, MissingDependencyError without it.
    """
    lg = require("mlperf_loadgen", extra="bench", purpose="--scenario", package="mlcommons-loadgen")
    latency_s = _probe(detector, images)
    settings = _settings(lg, scenario, seconds or _DEFAULT_SECONDS, latency_s)
    server = _QueryServer(lg, detector, images, streams=scenario == "offline")
    with tempfile.TemporaryDirectory() as folder:
        under_test = lg.ConstructSUT(server.issue, server.flush)
        library = lg.ConstructQSL(len(images), len(images), _nothing, _nothing)
        previous = _on_interrupt(server)
        try:
            lg.StartTestWithLogSettings(under_test, library, settings, _log_settings(lg, folder))
        finally:
            server.close()
            if previous is not None:
                signal.signal(signal.SIGINT, previous)
            lg.DestroyQSL(library)
            lg.DestroySUT(under_test)
        summary = Path(folder) / "mlperf_log_summary.txt"
        text = summary.read_text(encoding="utf-8") if summary.is_file() else ""
    if server.interrupted:
        raise KeyboardInterrupt
    if server.error is not None:
        raise server.error
    figures = read_summary(text)
    if not figures:
        raise BenchmarkError(
            f"LoadGen's {scenario} scenario gave no result for {detector.artifact}; give more --seconds."
        )
    valid = re.search(r"Result is : (\w+)", text)
    return {
        "artifact": str(detector.artifact),
        "scenario": scenario,
        "figures": figures,
        "valid": valid is not None and valid[1] == "VALID",
        "note": _NOTE,
    }


def read_summary(text: str) -> dict[str, float | int]:
    """Figures of LoadGen's summary: times, there in nanoseconds, in milliseconds; rates as they are."""
    figures: dict[str, float | int] = {}
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if re.fullmatch(r"[\d.]+", value) is None or name in figures:
            continue
        if name.endswith("(ns)") and "latency" in name and "target" not in name:
            figures[name.replace("(ns)", "(ms)")] = float(value) / 1e6
        elif "per second" in name:
            figures[name] = float(value)
        elif name == "query_count":
            figures[name] = int(value)
    return figures


class _QueryServer:
    """Answers queries on one thread of its own: a Detector is not shared between threads."""

    def __init__(self, lg: Any, detector: Detector, images: Sequence[Image], *, streams: bool) -> None:
        self._lg, self._detector, self._images, self._streams = lg, detector, images, streams
        self._queries: queue.SimpleQueue[list[tuple[int, int]] | None] = queue.SimpleQueue()
        self.error: Exception | None = None
        self.interrupted = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def issue(self, samples: list[Any]) -> None:
        self._queries.put([(sample.id, sample.index) for sample in samples])

    def flush(self) -> None:
        """LoadGen's word that no more comes; nothing is held back here."""

    def close(self) -> None:
        self._queries.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (samples := self._queries.get()) is not None:
            answered = 0
            try:
                for found in self._detections(samples):
                    self._respond(samples[answered][0], len(found.masks))
                    answered += 1
            except Exception as exc:
                self.error = exc
            for query, _ in samples[
                answered:
            ]:  # LoadGen waits for every answer, so it gets one, and the caller the error
                self._respond(query, 0)

    def _detections(self, samples: list[tuple[int, int]]) -> Iterator[Detections]:
        """As far as nothing goes wrong."""
        images = takewhile(lambda _: self._is_running, (self._images[index] for _, index in samples))
        return self._detector.stream(images) if self._streams else map(self._detector, images)

    @property
    def _is_running(self) -> bool:
        return self.error is None and not self.interrupted

    def _respond(self, query: int, count: int) -> None:
        result = array.array("B", count.to_bytes(4, "little"))
        address, length = result.buffer_info()
        self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(query, address, length)])


def _on_interrupt(server: _QueryServer) -> Any:
    """Have Ctrl-C end the answers, as an exception can't pass through LoadGen. The handler to put back, if any."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def stop(_signal: int, _frame: Any) -> None:
        server.interrupted = True

    return signal.signal(signal.SIGINT, stop)


def _settings(lg: Any, scenario: str, seconds: float, latency_s: float) -> Any:
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * seconds)
    settings.max_duration_ms = int(3000 * seconds)
    settings.min_query_count = 1
    if scenario == "single-stream":
        settings.scenario = lg.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = max(1, int(1e9 * latency_s))
    elif scenario == "offline":
        settings.scenario = lg.TestScenario.Offline
        settings.offline_expected_qps = 1 / latency_s
    else:
        settings.scenario = lg.TestScenario.Server
        settings.server_target_qps = _SERVER_LOAD / latency_s
        settings.server_target_latency_ns = int(1e9 * _SERVER_LATENCIES * latency_s)
    return settings


def _log_settings(lg: Any, folder: str) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    settings = lg.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


def _probe(detector: Detector, images: Sequence[Image]) -> float:
    times = []
    for index in range(_PROBES):
        begin = perf_counter()
        _ = detector(images[index % len(images)]).masks
        times.append(perf_counter() - begin)
    return statistics.median(times)


def _nothing(_indices: list[int]) -> None:
    """Loads and unloads samples: they are in memory throughout."""


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

    def fraction_done(self, seconds: float | None) -> float:
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
        share = min(worker.fraction_done(seconds) for worker in workers)
        if progress is not None:
            progress(min(share, 1.0))
        if share >= 1 or any(worker.error is not None for worker in workers):
            return
        workers[0].thread.join(_POLL_SECONDS)
