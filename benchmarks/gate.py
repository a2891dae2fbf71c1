"""Is it slower than it was? A verdict that noise does not give."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.latency import SCHEMA
from benchmarks.machine import BUSY_SHARE, TOO_BUSY_SHARE, disturbed_share
from benchmarks.statistics import bootstrap_quantiles, order_interval
from yolact_deploy.errors import BenchmarkError
from yolact_deploy.files import is_file, sha256_file
from yolact_deploy.spec_json import JsonError, read_json

Verdict = Literal["passed", "regressed", "inconclusive"]
ATTEMPTS = 3  # a regression is still there when measured again; a busy neighbour seldom is
_LEVEL = 0.99
_MIN_SAMPLES = 20
_FAST, _MEDIAN = 0.1, 0.5  # quantiles: noise only ever adds time, so the fast tenth moves when the code does
_SHORTEST_MS, _LONGEST_MS = 1e-9, 1e12  # of what can have been measured
_MACHINE = ("cpu", "cores", "gpus")
_OPTIONS = ("batch", "threads", "score_threshold", "image_sizes_hw")


@dataclass(frozen=True)
class Judgement:
    """`ratio` is new over old time, its `interval` at 99%; `allowance` what the machine itself got slower by."""

    artifact: str
    method: Literal["paired", "distributions", "percentiles"]
    ratio: float
    interval: tuple[float | None, float | None]
    allowance: float
    max_regression: float
    verdict: Verdict
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


def judge_paired(
    artifact: str,
    new_ms: Sequence[float],  # of every round
    old_ms: Sequence[float],  # of the same rounds
    max_regression: float,
) -> Judgement:
    """Compare two artifacts timed in turns in one run: what befell the machine befell both.

    The median of the rounds' ratios, with a distribution-free interval.
    """
    ratios = np.sort(np.asarray(new_ms) / np.asarray(old_ms))
    low, high = order_interval(len(ratios), _MEDIAN, _LEVEL)
    interval = (None if low is None else float(ratios[low]), None if high is None else float(ratios[high]))
    verdict: Verdict
    if len(ratios) < _MIN_SAMPLES or interval[0] is None:
        verdict, reason = "inconclusive", f"{len(ratios)} rounds are too few; take {_MIN_SAMPLES} or more."
    elif interval[0] > 1 + max_regression:
        verdict, reason = "regressed", f"slower in pairs by {_percent(interval[0])} at least."
    else:
        verdict, reason = "passed", "not slower than allowed, in pairs."
    return Judgement(artifact, "paired", float(np.median(ratios)), interval, 1.0, max_regression, verdict, reason)


def judge_distributions(
    artifact: str,
    new_ms: Sequence[float],  # in the order they were taken
    old_ms: Sequence[float],
    new_yardstick_ms: Sequence[float],  # of the fixed work done between them; may be empty
    old_yardstick_ms: Sequence[float],
    max_regression: float,
) -> Judgement:
    """Compare with samples of another time. Regressed only if both the median and the fast tenth of the times are
    slower than allowed beyond their bootstrap intervals, after allowing for what the yardstick says the machine lost."""
    quantiles = (_FAST, _MEDIAN)
    new, old = np.quantile(new_ms, quantiles), np.quantile(old_ms, quantiles)
    drawn = bootstrap_quantiles(new_ms, quantiles, seed=1) / bootstrap_quantiles(old_ms, quantiles, seed=2)
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail), axis=0)
    allowance = np.ones(2)
    if len(new_yardstick_ms) and len(old_yardstick_ms):
        slower = np.quantile(new_yardstick_ms, quantiles) / np.quantile(old_yardstick_ms, quantiles)
        allowance = np.maximum(1, slower)
    limit = (1 + max_regression) * allowance
    verdict: Verdict
    if min(len(new_ms), len(old_ms)) < _MIN_SAMPLES:
        verdict = "inconclusive"
        reason = f"{len(old_ms)} and {len(new_ms)} samples are too few; take {_MIN_SAMPLES} or more each time."
    elif bool((low > limit).all()):
        verdict, reason = "regressed", f"slower by {_percent(float(low[1] / allowance[1]))} at least."
    elif bool((low > 1 + max_regression).all()):
        verdict = "inconclusive"
        reason = f"slower, but so is the machine, by {_percent(float(allowance[1]))} at a fixed piece of work."
    else:
        verdict, reason = "passed", "no slowdown beyond what is allowed and what chance explains."
    interval = (float(low[1]), float(high[1]))
    ratio = float(new[1] / old[1])
    return Judgement(artifact, "distributions", ratio, interval, float(allowance[1]), max_regression, verdict, reason)


def judge_percentiles(
    artifact: str, new_run: dict[str, Any], old_run: dict[str, Any], allowance: float, max_regression: float
) -> Judgement:
    """Compare with a report that kept no samples: the medians' intervals must be apart by more than is allowed."""
    ratio = new_run["latency_ms"]["p50"] / old_run["latency_ms"]["p50"]
    (new_low, new_high), (old_low, old_high) = (
        run.get("latency_ci_ms", {}).get("p50", (None, None)) for run in (new_run, old_run)
    )
    interval = (
        None if new_low is None or old_high is None else new_low / old_high,
        None if new_high is None or old_low is None else new_high / old_low,
    )
    allowance = max(1.0, allowance)
    verdict: Verdict
    if interval[0] is None:
        verdict, reason = "inconclusive", "the medians have no interval; measure more, and keep --samples."
    elif interval[0] > (1 + max_regression) * allowance:
        verdict, reason = "regressed", f"slower by {_percent(interval[0] / allowance)} at least."
    elif interval[0] > 1 + max_regression:
        verdict = "inconclusive"
        reason = f"slower, but so is the machine, by {_percent(allowance)} at a fixed piece of work."
    else:
        verdict, reason = "passed", "the medians' intervals are not apart by more than is allowed."
    return Judgement(artifact, "percentiles", ratio, interval, allowance, max_regression, verdict, reason)


def discount_if_busy(
    judgement: Judgement,
    disturbed: float,  # share of the cores that others took meanwhile
    cpu_ratio: float,  # new over old CPU time, which others add little to
) -> Judgement:
    """A regression seen between two times is none while the machine is busy, unless the CPU time grew as well."""
    if judgement.verdict != "regressed" or disturbed <= BUSY_SHARE:
        return judgement
    others = f"others took {100 * disturbed:.0f}% of the cores"
    if disturbed > TOO_BUSY_SHARE:
        reason = (
            f"slower, but {others}: measure when it is quiet, or keep the baseline's file in place to run in pairs."
        )
    elif cpu_ratio <= 1 + judgement.max_regression:
        reason = f"slower by the clock but not in CPU time ({cpu_ratio:.3f} of the baseline's), while {others}."
    else:
        return judgement
    return replace(judgement, verdict="inconclusive", reason=reason)


def judge_report(
    report: dict[str, Any],
    baseline: dict[str, Any],
    matched: Sequence[dict[str, Any]],  # the baseline's run of each artifact
    paired: Sequence[int | None],  # the row of `report`'s runs in which the baseline's artifact ran along
    max_regression: float,
) -> list[Judgement]:
    """One judgement per artifact, by the best method that the data allow."""
    judgements = []
    disturbed = disturbed_share(report["watch"])
    for run, old, partner in zip(report["runs"], matched, paired, strict=False):
        name, new_ms = run["artifact"], run["samples_ms"]["latency"]
        if partner is not None:
            old_ms = report["runs"][partner]["samples_ms"]["latency"]
            judgements.append(judge_paired(name, new_ms, old_ms, max_regression))
            continue
        if "samples_ms" in old:
            yardsticks = (report["yardstick_samples_ms"], baseline.get("yardstick_samples_ms", ()))
            found = judge_distributions(name, new_ms, old["samples_ms"]["latency"], *yardsticks, max_regression)
        else:
            then = baseline.get("yardstick_ms")
            allowance = report["yardstick_ms"]["p50"] / then["p50"] if then else 1.0
            found = judge_percentiles(name, run, old, allowance, max_regression)
        cpu_then = old.get("cpu_ms", {}).get("p50")  # 0 where the clock is coarser than the work
        cpu_ratio = run["cpu_ms"]["p50"] / cpu_then if cpu_then else 1.0
        judgements.append(discount_if_busy(found, disturbed, cpu_ratio))
    return judgements


def measure_until_confirmed(
    measure: Callable[[], tuple[dict[str, Any], list[Judgement]]], attempts: int = ATTEMPTS
) -> tuple[dict[str, Any], list[Judgement], int]:
    """Measure and judge; measure again while an artifact regressed in every attempt so far.

    The first attempt that clears the last suspect is the result, else the last one. Returns its report, its judgements
    and how many attempts there were. An artifact that an earlier attempt cleared stays cleared.
    """
    cleared: set[str] = set()
    for attempt in range(1, attempts + 1):
        report, judgements = measure()
        cleared |= {judgement.artifact for judgement in judgements if judgement.verdict != "regressed"}
        suspects = [judgement for judgement in judgements if judgement.artifact not in cleared]
        if not suspects or attempt == attempts or report.get("interrupted"):
            break
    return (
        report,
        [_cleared(judgement) if judgement.artifact in cleared else judgement for judgement in judgements],
        attempt,
    )


def _cleared(judgement: Judgement) -> Judgement:
    if judgement.verdict != "regressed":
        return judgement
    return replace(judgement, verdict="passed", reason="slower this time, but not in every attempt.")


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):.1f}%"


def read_baseline(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of `bench --json`. Raises BenchmarkError when it is not, or of another schema."""
    path = Path(path)
    try:
        report = read_json(path)
    except OSError as exc:
        raise BenchmarkError(f"can't read the baseline {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise BenchmarkError(f"the baseline {path} is not JSON ({exc}). {_how_to_make(path)}") from exc
    if not isinstance(report, dict) or "schema" not in report:
        raise BenchmarkError(f"the baseline {path} is no report of `yolact-deploy bench --json`. {_how_to_make(path)}")
    if report["schema"] != SCHEMA:
        raise BenchmarkError(
            f"the baseline {path} has schema {report['schema']!r}, this version writes and reads {SCHEMA}. "
            f"{_how_to_make(path)}"
        )
    if problem := _problem(report):
        raise BenchmarkError(f"the baseline {path} is damaged: {problem}. {_how_to_make(path)}")
    return report


def _problem(report: dict[str, Any]) -> str | None:
    """The first thing that judging by a report needs and that is not there, or is something else."""
    for part in ("environment", "options"):
        if not isinstance(report.get(part), dict):
            return _lacks(part, report)
    if missing := [key for key in ("cpu", "cores") if key not in report["environment"]]:
        return _lacks(missing[0], report["environment"])
    if not isinstance(report["environment"].get("packages", {}), dict):
        return _lacks("packages", report["environment"])
    runs = report.get("runs")
    if not (isinstance(runs, list) and runs and all(isinstance(run, dict) for run in runs)):
        return _lacks("runs", report)
    yardstick = "yardstick_samples_ms"
    if not _are_times(report.get(yardstick, [])):
        return _lacks(yardstick, report)
    if report.get("yardstick_ms") and not _has_median(report["yardstick_ms"]):
        return _lacks("yardstick_ms", report)
    return next((problem for run in runs if (problem := _run_problem(run))), None)


def _run_problem(run: dict[str, Any]) -> str | None:
    intervals = run.get("latency_ci_ms", {})
    interval = intervals.get("p50", [None, None]) if isinstance(intervals, dict) else None
    samples = run.get("samples_ms", {"latency": [1.0]})
    found = {
        "artifact": isinstance(run.get("artifact"), str),
        "latency_ms": _has_median(run.get("latency_ms")),
        "batch": type(run.get("batch")) is int,
        "cpu_ms": _has_median(run.get("cpu_ms", {"p50": 0}), or_zero=True),
        "sha256": isinstance(run.get("sha256", ""), (str, type(None))),
        "latency_ci_ms": isinstance(interval, list)
        and len(interval) == 2
        and all(end is None or _is_time(end) for end in interval),
        "samples_ms": isinstance(samples, dict) and bool(samples.get("latency")) and _are_times(samples["latency"]),
    }
    return next((_lacks(key, run) for key, is_sound in found.items() if not is_sound), None)


def _has_median(times: Any, *, or_zero: bool = False) -> bool:
    return isinstance(times, dict) and (_is_time(times.get("p50")) or (or_zero and times.get("p50") == 0))


def _are_times(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_time, values))


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and _SHORTEST_MS < value < _LONGEST_MS


def _lacks(key: str, part: dict[str, Any]) -> str:
    return f"it has {key!r} in another form" if key in part else f"it lacks {key!r}"


def check_same_machine(baseline: dict[str, Any], environment: dict[str, Any], *, allow_other: bool) -> list[str]:
    """Notes on what differs. Raises BenchmarkError where the machine does, unless `allow_other`."""
    differing = _differences(baseline["environment"], environment, _MACHINE)
    if differing and not allow_other:
        raise BenchmarkError(
            f"the baseline was measured on another machine: {'; '.join(differing)}. Measure a baseline here, or compare "
            "all the same with --allow-other-machine."
        )
    notes = [f"another machine than the baseline's: {difference}." for difference in differing]
    packages = _differences(baseline["environment"].get("packages", {}), environment["packages"])
    return notes + [f"another version than the baseline's: {difference}." for difference in packages]


def check_same_work(baseline: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise BenchmarkError where the two reports measured different work."""
    differing = _differences(json.loads(json.dumps(baseline["options"])), json.loads(json.dumps(options)), _OPTIONS)
    if differing:
        raise BenchmarkError(
            f"the baseline measured other work: {'; '.join(differing)}. Use the same options and images as then."
        )


def match_runs(baseline: dict[str, Any], artifacts: list[Path]) -> list[dict[str, Any]]:
    """The baseline's run for each artifact: by file name, or the only one there is. Raises BenchmarkError without one."""
    runs = baseline["runs"]
    if len(runs) == len(artifacts) == 1:
        return list(runs)
    by_name = {Path(run["artifact"]).name: run for run in runs}
    missing = [str(path) for path in artifacts if path.name not in by_name]
    if missing:
        raise BenchmarkError(f"the baseline has no run of {', '.join(missing)}; it has {', '.join(by_name)}.")
    return [by_name[path.name] for path in artifacts]


def present_artifact(run: dict[str, Any], current: Path) -> Path | None:
    """The file that a baseline's run measured, if it is still there unchanged and is not the current one's content."""
    path = Path(run["artifact"])
    digest = run.get("sha256")
    if digest is None or not is_file(path) or sha256_file(path) != digest or sha256_file(current) == digest:
        return None
    return path


def parse_fraction(given: float | str) -> float:
    """0.05, "5%" or "0.05" to 0.05. Raises BenchmarkError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", str(given))
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value < 1:
        raise BenchmarkError(f'a regression is given as a share such as "5%" or "0.05", below 1, found {given!r}.')
    return value


def _differences(then: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...] | None = None) -> list[str]:
    keys = keys if keys is not None else tuple(sorted({*then, *now}))
    return [
        f"{key} was {_shown(then[key])}, is {_shown(now[key])}"
        for key in keys
        if key in then and key in now and then[key] != now[key]
    ]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _how_to_make(path: Path) -> str:
    return f"Make one with `yolact-deploy bench MODEL.onnx --samples --json > {path}`."
