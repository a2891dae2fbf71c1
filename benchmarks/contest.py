"""Ours and others that do the same work: who takes part, and times taken in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from benchmarks.statistics import percentiles
from yolact_deploy import Detections

NETWORK, AFTER, WHOLE = "network", "detect + masks", "end to end"  # parts of the work
SETTLE_SECONDS = 0.25  # untimed work before each time: the last one's thread pool may spin on for 0.2 s (OpenMP)

Work = Callable[[], object]
Timer = Callable[[], int]  # does the work once; nanoseconds that it took
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Peer:
    """Somebody who does a part of the work, and how to time it."""

    what: str  # the part of the work it does
    name: str
    time: Timer


@dataclass
class Contest:
    """Ours by the part of the work, and those who do the same."""

    ours: dict[str, Timer]
    peers: list[Peer]
    clocks: dict[str, str]  # "host" or "device", by the part
    notes: list[str]


def compare(contest: Contest, iterations: int, warmup: int, progress: Progress | None = None) -> list[dict[str, Any]]:
    """[{"what", "peer", "peer_ms", "ours_ms", "ratio", "clock"}], part by part; `ratio` is the peer's p50 over ours. How
    they were timed is added to the contest's notes."""
    timers = {**contest.ours, **{f"{peer.what}/{peer.name}": peer.time for peer in contest.peers}}
    times = time_in_turns(timers, iterations, warmup, progress)
    parts = list(contest.ours)
    rows = []
    for peer in sorted(contest.peers, key=lambda peer: parts.index(peer.what)):
        theirs, own = times[f"{peer.what}/{peer.name}"], times[peer.what]
        rows.append(
            {
                "what": peer.what,
                "peer": peer.name,
                "peer_ms": theirs,
                "ours_ms": own,
                "ratio": theirs["p50"] / own["p50"],
                "clock": contest.clocks[peer.what],
            }
        )
    contest.notes.append(
        f"{iterations} times each, with pauses of {SETTLE_SECONDS} s in which the one before comes to rest."
    )
    return rows


def in_turns(
    work: dict[str, Work], iterations: int, warmup: int = 3, progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """`time_in_turns` of work on the host's clock."""
    return time_in_turns({name: on_host_clock(run) for name, run in work.items()}, iterations, warmup, progress)


def time_in_turns(
    timers: dict[str, Timer], iterations: int, warmup: int = 3, progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """Percentiles of each piece of work, all in turns; the same work runs untimed before each time, until it has settled."""
    times: dict[str, list[int]] = {name: [] for name in timers}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for iteration in range(warmup + iterations):
            if progress is not None:
                progress(iteration, warmup + iterations)
            for name, time in timers.items():
                settled = perf_counter_ns() + SETTLE_SECONDS * 1e9
                while perf_counter_ns() < settled:
                    time()
                taken = time()
                if iteration >= warmup:
                    times[name].append(taken)
    finally:
        if collecting:
            gc.enable()
    return {name: percentiles(samples) for name, samples in times.items()}


def on_host_clock(run: Work) -> Timer:
    """A timer of a call, in nanoseconds; its result is freed outside of the time."""

    def time() -> int:
        begin = perf_counter_ns()
        result = run()
        taken = perf_counter_ns() - begin
        del result
        return taken

    return time


def with_masks(detections: Detections) -> Detections:
    """Once their masks are in host memory at full size, which is what ends every whole."""
    _ = detections.masks
    return detections
