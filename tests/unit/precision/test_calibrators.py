from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from exporters.precision.ranges import (
    CALIBRATORS,
    NUM_BINS,
    Histogram,
    choose_range,
    entropy_range,
    mse_range,
    percentile_range,
)
from yolact_deploy.artifacts.names import Calibrator
from yolact_deploy.errors import CalibrationError


def _histogram(*parts: object) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


def test_values_fall_into_bins_of_a_power_of_two() -> None:
    histogram = _histogram([0.0, 0.5, -0.75, 0.0])  # the range is [0, 1)
    assert histogram.bin_width == 1 / NUM_BINS
    assert np.flatnonzero(histogram.counts).tolist() == [NUM_BINS // 2, NUM_BINS * 3 // 4]
    assert (histogram.zeros, histogram.total, histogram.maximum) == (2, 4, 0.75)


def test_a_power_of_two_opens_the_next_range() -> None:
    assert _histogram([1.0]).bin_width == 2 / NUM_BINS
    assert np.flatnonzero(_histogram([1.0]).counts).tolist() == [NUM_BINS // 2]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_streamed_histograms_equal_those_of_all_values_at_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    parts = [random.normal(0, 10.0 ** random.integers(-6, 6), random.integers(0, 5000)) for _ in range(20)]
    parts += [np.zeros(7), np.maximum(random.normal(size=300_000), 0)]
    streamed, whole = _histogram(*parts), _histogram(np.concatenate(parts))
    backwards = _histogram(*reversed(parts))
    for other in (whole, backwards):
        assert np.array_equal(streamed.counts, other.counts)
        assert (streamed.exponent, streamed.zeros, streamed.maximum) == (other.exponent, other.zeros, other.maximum)
    for calibrator in CALIBRATORS:
        assert choose_range(streamed, calibrator) == choose_range(whole, calibrator)


def test_a_range_that_grows_beyond_all_bins_keeps_every_count() -> None:
    histogram = _histogram([1e-30] * 5, [1e30])
    assert histogram.counts[0] == 5
    assert histogram.total == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not all finite"):
        _histogram([1.0, value])


def test_max_is_the_exact_largest_magnitude() -> None:
    assert choose_range(_histogram([0.1, -0.7, 0.3]), "max") == np.float32(0.7)


def test_percentile_leaves_out_zeros() -> None:
    values = np.arange(1, 1001)
    assert percentile_range(_histogram(values), 90) == pytest.approx(900, abs=1)
    assert percentile_range(_histogram(values, np.zeros(100_000)), 90) == pytest.approx(900, abs=1)


def test_percentile_cuts_one_outlier_in_a_million() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 1_000_000)
    assert choose_range(_histogram(values, [1000.0]), "percentile") == pytest.approx(1, abs=0.13)  # a bin is 1/8 wide


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        # the optimal symmetric 8-bit uniform quantizers: Banner et al. 2019 (ACIQ), table of clipping values at 8 bits
        pytest.param(lambda random: random.normal(size=400_000), 3.92, id="normal"),
        pytest.param(lambda random: random.laplace(size=400_000), 9.89, id="laplace"),
    ],
)
def test_mse_finds_the_known_optimum_of_a_distribution(
    draw: Callable[[np.random.Generator], Any], expected: float
) -> None:
    values = draw(np.random.default_rng(4))
    # The error is flat around its minimum: 8% to either side costs under 5% of error.
    assert mse_range(_histogram(values)) == pytest.approx(expected, rel=0.08)


def test_mse_is_the_best_of_all_ranges_it_may_choose() -> None:
    values = np.random.default_rng(5).standard_t(4, 100_000).astype(np.float32)
    chosen = mse_range(_histogram(values))

    def error(limit: float) -> float:
        scale = limit / 127
        return float(np.square(np.clip(np.rint(values / scale), -127, 127) * scale - values).mean())

    largest = float(np.abs(values).max())
    assert error(chosen) <= 1.02 * min(error(fraction * largest) for fraction in np.linspace(0.1, 1, 40))


def test_entropy_does_not_count_the_zeros_that_relu_makes() -> None:
    values = np.maximum(np.random.default_rng(6).normal(size=500_000), 0)
    positive = values[values > 0]
    assert entropy_range(_histogram(values)) == entropy_range(_histogram(positive))
    # Nine zeros for every value, as behind a ReLU that is seldom open.
    assert entropy_range(_histogram(positive, np.zeros(9 * len(positive)))) == entropy_range(_histogram(positive))
    # The tail matters: what saturates is one in a thousand at most.
    assert np.mean(positive > entropy_range(_histogram(values))) < 1e-3


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    values = np.random.default_rng(7).uniform(0, 1, 500_000)
    assert entropy_range(_histogram(values)) == pytest.approx(1, rel=0.02)


def test_entropy_cuts_a_far_outlier() -> None:
    values = np.random.default_rng(8).normal(size=500_000)
    assert entropy_range(_histogram(values, [60.0])) < 10


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_no_range_exceeds_the_largest_value(calibrator: Calibrator) -> None:
    random = np.random.default_rng(9)
    for values in (random.normal(size=1000), random.exponential(size=50_000) ** 2, np.full(10, 0.3), [1e-20, 1e20]):
        histogram = _histogram(values)
        assert 0 < choose_range(histogram, calibrator) <= histogram.maximum


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e-25])
def test_tiny_values_have_a_range(calibrator: Calibrator, magnitude: float) -> None:
    values = np.array([magnitude, 2 * magnitude, 0], np.float32)
    histogram = _histogram(values)
    assert (histogram.zeros, histogram.total, histogram.maximum) == (1, 3, float(values.max()))
    assert 0 < choose_range(histogram, calibrator) <= histogram.maximum


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_a_tensor_of_zeros_has_the_range_zero(calibrator: Calibrator) -> None:
    assert choose_range(_histogram(np.zeros(10)), calibrator) == 0


def test_an_unknown_calibrator_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(CalibrationError, match="'minmax'; choose max, entropy, percentile, mse"):
        choose_range(_histogram([1.0]), "minmax")  # type: ignore[arg-type]
