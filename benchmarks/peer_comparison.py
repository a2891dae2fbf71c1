"""Ours and others that do the same work: who takes part, times taken in turns, and what they prove."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from benchmarks.machine import TOO_BUSY_SHARE, Watch, disturbed_share, watch_notes
from benchmarks.statistics import Interval, confidence_intervals, percentiles
from yolact_deploy import Detections
from yolact_deploy.artifacts.names import StepProgress

NETWORK, AFTER, WHOLE = "network", "detect + masks", "end to end"  # parts of the work
SETTLE_SECONDS = 0.25  # untimed work before each time: the last one's thread pool may spin on for 0.2 s (OpenMP)
_FAR = 1.3  # times as long here as alone, or the other way round: then something else was different, too

Work = Callable[[], object]
Timer = Callable[[], int]  # does the work once; nanoseconds that it took


@dataclass(frozen=True)
class Peer:
    """Somebody who does a part of the work, and how to time it."""

    what: str  # the part of the work it does
    name: str
    time: Timer


@dataclass
class PeerComparison:
    """Ours by the part of the work, and those who do the same."""

    ours: dict[str, Timer]
    peers: list[Peer]
    clocks: dict[str, str]  # "host" or "device", by the part
    notes: list[str]


def compare(
    comparison: PeerComparison,
    iterations: int,
    warmup: int,
    alone_ms: Mapping[str, float],  # ours by the part, as it was measured without peers
    progress: StepProgress | None = None,
) -> dict[str, Any]:
    """{"rows": [{"what", "peer", "peer_ms", "ours_ms", "ratio", "ratio_ci", "verdict", "clock"}], "watch", "notes"}.

    `ratio` is the peer's p50 over ours, between the bounds of `ratio_ci` (95%; None: no bound); the `verdict` on ours is
    "faster", "slower" or "inconclusive": where the bounds do not exclude 1, where others used the machine meanwhile, or where
    ours is far from `alone_ms`. The reasons are in the notes.
    """
    timers = {**comparison.ours, **{f"{peer.what}/{peer.name}": peer.time for peer in comparison.peers}}
    watch = Watch()
    times = time_interleaved(timers, iterations, warmup, progress)
    watched = watch.report()
    reasons = _reasons_inconclusive(
        {part: percentiles(times[part])["p50"] for part in comparison.ours}, alone_ms, watched
    )
    parts = list(comparison.ours)
    rows = []
    for peer in sorted(comparison.peers, key=lambda peer: parts.index(peer.what)):
        theirs_ns, own_ns = times[f"{peer.what}/{peer.name}"], times[peer.what]
        theirs, own = percentiles(theirs_ns), percentiles(own_ns)
        bounds = _ratio_ci(confidence_intervals(theirs_ns)["p50"], confidence_intervals(own_ns)["p50"])
        rows.append(
            {
                "what": peer.what,
                "peer": peer.name,
                "peer_ms": theirs,
                "ours_ms": own,
                "ratio": theirs["p50"] / own["p50"],
                "ratio_ci": bounds,
                "verdict": "inconclusive" if reasons else _verdict(bounds),
                "clock": comparison.clocks[peer.what],
            }
        )
    pauses = f"{iterations} times each, with pauses of {SETTLE_SECONDS} s in which the one before comes to rest."
    # Who took the cores is said with the verdicts where it decides them.
    is_said = disturbed_share(watched) > TOO_BUSY_SHARE
    unsaid = {**watched, "other_processes_share": 0.0, "steal_share": None} if is_said else watched
    meanwhile = [f"meanwhile {note}" for note in watch_notes(unsaid)]
    return {"rows": rows, "watch": watched, "notes": [*reasons, *comparison.notes, pauses, *meanwhile]}


def interleaved(
    work: dict[str, Work], iterations: int, warmup: int = 3, progress: StepProgress | None = None
) -> dict[str, dict[str, float]]:
    """Percentiles of each piece of work on the host's clock, all `time_interleaved`."""
    timers = {name: on_host_clock(run) for name, run in work.items()}
    return {name: percentiles(times) for name, times in time_interleaved(timers, iterations, warmup, progress).items()}


def time_interleaved(
    timers: dict[str, Timer], iterations: int, warmup: int, progress: StepProgress | None = None
) -> dict[str, list[int]]:
    """Nanoseconds of each piece of work, all in turns; the same work runs untimed before each time, until it has settled."""
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
    return times


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


def _reasons_inconclusive(
    here_ms: Mapping[str, float], alone_ms: Mapping[str, float], watched: dict[str, Any]
) -> list[str]:
    """Why no ratio proves anything, in words; empty where nothing speaks against them."""
    reasons = []
    if (share := disturbed_share(watched)) > TOO_BUSY_SHARE:
        reasons.append(f"inconclusive: others took {100 * share:.0f}% of the cores while the peers were timed.")
    for part, alone in alone_ms.items():
        if part in here_ms and not 1 / _FAR <= here_ms[part] / alone <= _FAR:
            reasons.append(
                f"inconclusive: ours took {here_ms[part]:.2f} ms ({part}) beside the peers and {alone:.2f} ms without them, so "
                "the machine was not the same."
            )
    return reasons


def _ratio_ci(theirs: Interval, own: Interval) -> Interval:
    """The widest that both medians' intervals allow."""
    (low, high), (own_low, own_high) = theirs, own
    return (
        None if low is None or own_high is None else low / own_high,
        None if high is None or own_low is None else high / own_low,
    )


def _verdict(bounds: Interval) -> str:
    low, high = bounds
    if low is not None and low > 1:
        return "faster"
    if high is not None and high < 1:
        return "slower"
    return "inconclusive"
