from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.gate import (
    Judgement,
    discount_if_busy,
    judge_distributions,
    judge_paired,
    judge_percentiles,
    judge_report,
    measure_until_confirmed,
)
from benchmarks.statistics import confidence_intervals, percentiles

ALLOWED = 0.05
ROUNDS = 50
Times = npt.NDArray[np.float64]


QUIET = {"other_processes_share": 0.01, "steal_share": None}


def _noisy_machine(rng: np.random.Generator, rounds: int = ROUNDS) -> Times:
    """Slowness of each round: a neighbour comes and goes, for some rounds or for the whole run, and takes up to half."""
    busy, weight = rng.random(), rng.uniform(0.1, 1.0)
    here = rng.random() < busy
    slowness = np.ones(rounds)
    for i in range(rounds):
        if rng.random() < 0.1:
            here = rng.random() < busy
        slowness[i] += weight * here
    return slowness


def _heavy_tails(rng: np.random.Generator, rounds: int = ROUNDS) -> Times:
    return 1 + 0.02 * np.abs(rng.standard_normal(rounds)) + 0.03 * rng.pareto(1.5, rounds)


def _run(rng: np.random.Generator, milliseconds: float) -> tuple[Times, Times]:
    """Times of an artifact and of the yardstick, on a machine in a state of its own."""
    slowness = _noisy_machine(rng)
    return milliseconds * slowness * _heavy_tails(rng), 3 * slowness * _heavy_tails(rng)


def _quiet_run(rng: np.random.Generator, milliseconds: float) -> tuple[Times, Times]:
    return milliseconds * _heavy_tails(rng), 3 * _heavy_tails(rng)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_artifact_passes_on_a_noisy_machine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, old_yardstick = _run(rng, 80)
    for _ in range(3):
        new, new_yardstick = _run(rng, 80)
        found = judge_distributions("m", new.tolist(), old.tolist(), list(new_yardstick), list(old_yardstick), ALLOWED)
        assert found.verdict != "regressed"
    slowness = _noisy_machine(rng)
    first, second = (80 * slowness * _heavy_tails(rng) for _ in range(2))
    assert judge_paired("m", first.tolist(), second.tolist(), ALLOWED).verdict == "passed"


@pytest.mark.parametrize("seed", range(10))
def test_a_tenth_slower_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, old_yardstick = _quiet_run(rng, 80)
    new, new_yardstick = _quiet_run(rng, 88)
    found = judge_distributions("m", new.tolist(), old.tolist(), list(new_yardstick), list(old_yardstick), ALLOWED)
    assert (found.verdict, found.method) == ("regressed", "distributions")


@pytest.mark.parametrize("seed", range(10))
def test_pairs_find_a_tenth_even_on_a_noisy_machine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slowness = _noisy_machine(rng)
    old, new = 80 * slowness * _heavy_tails(rng), 90 * slowness * _heavy_tails(rng)
    found = judge_paired("m", new.tolist(), old.tolist(), ALLOWED)
    assert (found.verdict, found.method) == ("regressed", "paired")
    assert 1.05 < found.ratio < 1.2


def test_a_regression_within_what_is_allowed_passes() -> None:
    rng = np.random.default_rng(0)
    old = 80 * (1 + 0.001 * rng.standard_normal(ROUNDS))
    assert judge_paired("m", (1.03 * old).tolist(), old.tolist(), ALLOWED).verdict == "passed"
    assert judge_distributions("m", (1.03 * old).tolist(), old.tolist(), [], [], ALLOWED).verdict == "passed"
    assert judge_distributions("m", (1.07 * old).tolist(), old.tolist(), [], [], ALLOWED).verdict == "regressed"


def test_a_slower_machine_is_not_a_slower_artifact() -> None:
    rng = np.random.default_rng(0)
    old, yardstick = 80 * _heavy_tails(rng), 3 * _heavy_tails(rng)
    found = judge_distributions(
        "m", (1.5 * old).tolist(), old.tolist(), list(1.5 * yardstick), list(yardstick), ALLOWED
    )
    assert found.verdict == "inconclusive"
    assert "so is the machine, by 50.0%" in found.reason


def test_too_few_samples_decide_nothing() -> None:
    assert judge_paired("m", [2.0] * 19, [1.0] * 19, ALLOWED).verdict == "inconclusive"
    assert judge_distributions("m", [2.0] * 50, [1.0] * 19, [], [], ALLOWED).verdict == "inconclusive"


def _summary(times_ms: Times) -> dict[str, Any]:
    times_ns = (1e6 * times_ms).astype(int).tolist()
    return {
        "artifact": "m",
        "latency_ms": percentiles(times_ns),
        "latency_ci_ms": confidence_intervals(times_ns),
        "cpu_ms": {"p50": 100.0},
        "samples_ms": {"latency": times_ms.tolist()},
    }


def test_without_samples_the_intervals_of_the_medians_must_be_apart() -> None:
    rng = np.random.default_rng(0)
    old = 80 * _heavy_tails(rng)
    assert judge_percentiles("m", _summary(80 * _heavy_tails(rng)), _summary(old), 1.0, ALLOWED).verdict == "passed"
    assert judge_percentiles("m", _summary(1.3 * old), _summary(old), 1.0, ALLOWED).verdict == "regressed"
    assert judge_percentiles("m", _summary(1.3 * old), _summary(old), 1.3, ALLOWED).verdict == "inconclusive"


def test_the_best_method_that_the_data_allow_is_used() -> None:
    times = 80 * _heavy_tails(np.random.default_rng(0))
    report = {
        "runs": [_summary(times)],
        "watch": QUIET,
        "yardstick_samples_ms": times.tolist(),
        "yardstick_ms": {"p50": 80.0},
    }
    stripped = {key: value for key, value in _summary(times).items() if key != "samples_ms"}
    methods = [
        judge_report(report, report, [old], [partner], ALLOWED)[0].method
        for old, partner in ((_summary(times), 0), (_summary(times), None), (stripped, None))
    ]
    assert methods == ["paired", "distributions", "percentiles"]


@pytest.mark.parametrize(
    ("disturbed", "cpu_ratio", "verdict"),
    [
        (0.05, 1.0, "regressed"),  # quiet: the clock is believed
        (0.06, 1.05, "inconclusive"),
        (0.06, 1.06, "regressed"),
        (0.15, 1.06, "regressed"),
        (0.16, 9.0, "inconclusive"),  # nothing but pairs is believed
    ],
)
def test_a_regression_is_doubted_while_others_use_the_machine(disturbed: float, cpu_ratio: float, verdict: str) -> None:
    found = Judgement("m", "distributions", 1.2, (1.1, 1.3), 1.0, ALLOWED, "regressed", "")
    assert discount_if_busy(found, disturbed, cpu_ratio).verdict == verdict


def test_pairs_are_believed_on_a_busy_machine() -> None:
    times = 80 * _heavy_tails(np.random.default_rng(0))
    report = {
        "runs": [_summary(1.2 * times), _summary(times)],
        "watch": {"other_processes_share": 0.8, "steal_share": 0.1},
        "yardstick_samples_ms": [],
        "yardstick_ms": {"p50": 1.0},
    }
    assert judge_report(report, report, [_summary(times)], [1], ALLOWED)[0].verdict == "regressed"
    assert judge_report(report, report, [_summary(times)], [None], ALLOWED)[0].verdict == "inconclusive"


def _judged(**verdicts: Any) -> tuple[dict[str, Any], list[Judgement]]:
    return {}, [
        Judgement(name, "paired", 1.2, (1.1, 1.3), 1.0, ALLOWED, verdict, "") for name, verdict in verdicts.items()
    ]


def test_a_regression_must_show_every_time() -> None:
    always = iter([_judged(a="regressed", b="passed")] * 3)
    _, judgements, attempts = measure_until_confirmed(lambda: next(always))
    assert ([found.verdict for found in judgements], attempts) == (["regressed", "passed"], 3)

    once = iter([_judged(a="regressed"), _judged(a="passed")])
    _, judgements, attempts = measure_until_confirmed(lambda: next(once))
    assert ([found.verdict for found in judgements], attempts) == (["passed"], 2)


def test_what_one_attempt_cleared_stays_cleared() -> None:
    turns = iter([_judged(a="regressed", b="passed"), _judged(a="passed", b="regressed")])
    _, judgements, attempts = measure_until_confirmed(lambda: next(turns))
    assert ([found.verdict for found in judgements], attempts) == (["passed", "passed"], 2)
