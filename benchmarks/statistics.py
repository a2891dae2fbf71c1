"""Percentiles of times, and how sure one can be of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

PERCENTILES = (50, 90, 95, 99)
CONFIDENCE = 0.95
_NS_PER_MS = 1e6
_BLOCKS = 10  # of a bootstrap: each long enough to hold a burst of noise whole

Times = npt.NDArray[np.float64]
Interval = tuple[float | None, float | None]  # None: the samples set no bound on that side


def percentiles(times_ns: Sequence[int]) -> dict[str, float]:
    """p50, p90, p95, p99, mean, max in milliseconds, and n. A percentile is an observed time, the next one above."""
    times_ms = np.asarray(times_ns) / _NS_PER_MS
    values = {f"p{q}": float(np.percentile(times_ms, q, method="higher")) for q in PERCENTILES}
    return {**values, "mean": float(times_ms.mean()), "max": float(times_ms.max()), "n": len(times_ms)}


def confidence_intervals(times_ns: Sequence[int], level: float = CONFIDENCE) -> dict[str, Interval]:
    """An interval per percentile, in milliseconds, whose ends are observed times (`order_interval`)."""
    ordered = np.sort(np.asarray(times_ns)) / _NS_PER_MS

    def observed(rank: int | None) -> float | None:
        return None if rank is None else float(ordered[rank])

    ranks = {f"p{q}": order_interval(len(ordered), q / 100, level) for q in PERCENTILES}
    return {name: (observed(low), observed(high)) for name, (low, high) in ranks.items()}


def order_interval(count: int, quantile: float, level: float = CONFIDENCE) -> tuple[int | None, int | None]:
    """0-based ranks of the two sorted samples that hold a quantile between them with probability `level` or more.

    Distribution-free: how many of `count` independent samples lie below the quantile is binomial (David & Nagaraja, Order
    Statistics, 7.1). None where no sample is far enough out, as for the p99 of 50 samples.
    """
    k = np.arange(count + 1)
    log_choose = math.lgamma(count + 1) - np.array([math.lgamma(i + 1) + math.lgamma(count - i + 1) for i in k])
    below = np.cumsum(np.exp(log_choose + k * math.log(quantile) + (count - k) * math.log1p(-quantile)))
    tail = (1 - level) / 2
    low = int(np.searchsorted(below, tail, side="right")) - 1  # the last rank with P(fewer samples below) <= tail
    high = int(np.searchsorted(below, 1 - tail, side="left"))  # the first with P(more samples below) <= tail
    return (low if low >= 0 else None, high if high < count else None)


def variation(times_ns: Sequence[int]) -> float:
    """Coefficient of variation: standard deviation over mean. 0 for one sample."""
    times = np.asarray(times_ns, float)
    return float(times.std(ddof=1) / times.mean()) if len(times) > 1 else 0.0


def bootstrap_quantiles(
    times: Sequence[float],  # in the order they were taken
    quantiles: Sequence[float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Times:
    """Quantiles [draws, len(quantiles)] of resampled times.

    A circular block bootstrap (Politis & Romano 1992): stretches of neighbouring times are drawn, not single ones, so that
    a slow second of the machine counts as the one event that it is.
    """
    values = np.asarray(times, float)
    count = len(values)
    length = max(1, count // _BLOCKS)
    starts = np.random.default_rng(seed).integers(0, count, (draws, -(-count // length)))
    rows = (starts[:, :, None] + np.arange(length)).reshape(draws, -1)[:, :count] % count
    drawn: Times = np.quantile(values[rows], quantiles, axis=1).T
    return drawn
