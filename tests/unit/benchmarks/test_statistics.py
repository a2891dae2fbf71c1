from __future__ import annotations

import numpy as np
import pytest

from benchmarks.statistics import bootstrap_quantiles, confidence_intervals, order_interval, percentiles, variation


def test_percentiles_are_times_that_were_seen() -> None:
    found = percentiles([ms * 1_000_000 for ms in range(1, 101)])
    assert found == {"p50": 51.0, "p90": 91.0, "p95": 96.0, "p99": 100.0, "mean": 50.5, "max": 100.0, "n": 100}
    assert percentiles([2_500_000])["p99"] == 2.5


@pytest.mark.parametrize(
    ("count", "quantile", "ranks"),
    [
        (10, 0.5, (1, 8)),  # the classical table: 2nd and 9th of 10, at 97.9%
        (20, 0.5, (5, 14)),  # 6th and 15th of 20, at 95.9%
        (100, 0.5, (39, 60)),  # 40th and 61st of 100, at 96.5%
        (50, 0.99, (47, None)),  # no sample of 50 is surely above the p99
        (1, 0.5, (None, None)),
        (5, 0.5, (None, None)),  # the extremes of 5 hold the median at 93.75% only
    ],
)
def test_ranks_of_the_interval_of_a_quantile(count: int, quantile: float, ranks: tuple[int | None, int | None]) -> None:
    assert order_interval(count, quantile) == ranks


def test_intervals_cover_the_true_median_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        low, high = confidence_intervals((1e6 * rng.lognormal(size=60)).astype(int).tolist())["p50"]
        assert low is not None
        assert high is not None
        covered += low <= 1.0 <= high
    assert covered >= 465  # 95% of 500 less two standard deviations; the interval is conservative


def test_variation_is_deviation_over_mean() -> None:
    assert variation([90, 100, 110]) == pytest.approx(0.1)
    assert variation([5]) == 0


def test_the_bootstrap_draws_neighbours_together() -> None:
    # one slow second among ten: drawn whole or not at all, so its share of a resample scatters widely
    times = [1.0] * 45 + [2.0] * 10 + [1.0] * 45
    together = bootstrap_quantiles(times, [0.85], draws=500)[:, 0]
    shuffled = bootstrap_quantiles(np.random.default_rng(1).permutation(times).tolist(), [0.85], draws=500)[:, 0]
    assert np.mean(together > 1) > 2 * np.mean(shuffled > 1)


def test_the_bootstrap_gives_the_same_answer_every_time() -> None:
    times = np.random.default_rng(0).random(37).tolist()
    np.testing.assert_array_equal(bootstrap_quantiles(times, [0.1, 0.5]), bootstrap_quantiles(times, [0.1, 0.5]))
