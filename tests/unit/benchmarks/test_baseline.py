from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.gate import (
    check_same_machine,
    check_same_work,
    judge_report,
    match_runs,
    parse_fraction,
    present_artifact,
    read_baseline,
)
from benchmarks.machine import Watch
from yolact_deploy.cli import app
from yolact_deploy.errors import BenchmarkError
from yolact_deploy.files import sha256_file

BASELINE: dict[str, Any] = {
    "schema": 1,
    "environment": {"cpu": "A", "cores": 2, "gpus": [], "packages": {"numpy": "1"}},
    "options": {"batch": 1, "threads": 2, "image_sizes_hw": [[480, 640]]},
    "runs": [{"artifact": "old/m.onnx", "batch": 1, "latency_ms": {"p50": 10.0}}],
}


def _written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "baseline.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_baseline_is_read(tmp_path: Path) -> None:
    assert read_baseline(_written(tmp_path, BASELINE)) == BASELINE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not JSON"),
        ([1], "no report of"),
        ({"error": {}}, "no report of"),
        ({**BASELINE, "schema": 2}, "has schema 2, this version writes and reads 1"),
        ({**BASELINE, "runs": [{"artifact": "m"}]}, "damaged: it lacks 'latency_ms'"),
        ({**BASELINE, "environment": {}}, "damaged: it lacks 'cpu'"),
    ],
)
def test_what_is_no_baseline_is_refused_in_words(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        read_baseline(_written(tmp_path, content))


def test_a_missing_baseline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="No such file"):
        read_baseline(tmp_path / "none.json")


def test_another_machine_is_refused_unless_allowed() -> None:
    here = {**BASELINE["environment"], "cores": 64}
    with pytest.raises(BenchmarkError, match=r"cores was 2, is 64.*--allow-other-machine"):
        check_same_machine(BASELINE, here, allow_other=False)
    assert check_same_machine(BASELINE, here, allow_other=True) == [
        "another machine than the baseline's: cores was 2, is 64."
    ]


def test_other_package_versions_are_noted() -> None:
    here = {**BASELINE["environment"], "packages": {"numpy": "2"}}
    assert check_same_machine(BASELINE, here, allow_other=False) == [
        "another version than the baseline's: numpy was 1, is 2."
    ]


def test_other_work_is_refused() -> None:
    check_same_work(BASELINE, {**BASELINE["options"], "image_sizes_hw": [(480, 640)]})  # JSON knows no tuples
    with pytest.raises(BenchmarkError, match="batch was 1, is 4"):
        check_same_work(BASELINE, {**BASELINE["options"], "batch": 4})


def test_runs_are_matched_by_name_or_by_being_the_only_ones() -> None:
    assert match_runs(BASELINE, [Path("new.onnx")]) == BASELINE["runs"]
    two = copy.deepcopy(BASELINE)
    two["runs"].append({**BASELINE["runs"][0], "artifact": "old/n.onnx"})
    assert [run["artifact"] for run in match_runs(two, [Path("n.onnx"), Path("m.onnx")])] == [
        "old/n.onnx",
        "old/m.onnx",
    ]
    with pytest.raises(BenchmarkError, match=r"no run of other\.onnx; it has m\.onnx, n\.onnx"):
        match_runs(two, [Path("other.onnx")])


def test_the_baselines_artifact_runs_along_only_if_it_is_there_unchanged_and_another(tmp_path: Path) -> None:
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    run = {"artifact": str(old), "sha256": sha256_file(old)}
    assert present_artifact(run, new) == old
    assert present_artifact(run, old) is None
    assert present_artifact({"artifact": str(old)}, new) is None
    old.write_bytes(b"changed")
    assert present_artifact(run, new) is None


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), (" 2.5 % ", 0.025), ("0", 0.0)])
def test_regressions_are_shares(text: str, value: float) -> None:
    assert parse_fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "100%", "-1%", "", "five", "nan", "%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="share"):
        parse_fraction(text)


def _bench(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.mark.slow
def test_the_gate_runs_the_baselines_artifact_along_and_tells_a_slower_one(
    shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watch.report
    quiet = {"other_processes_share": 0.0, "steal_share": 0.0}  # whatever other tests run beside this one
    monkeypatch.setattr(Watch, "report", lambda self: {**watched(self), **quiet})
    old = tmp_path / "old.onnx"
    shutil.copy(shapes_onnx, old)
    with old.open("ab") as stream:
        stream.write(b"\x1a\x00")  # an empty field more: the same network, another digest
    options = ("--threads", 1, "--warmup", 0, "--json")
    baseline = tmp_path / "baseline.json"
    made = _bench(old, "--iterations", 2, *options)
    assert made.exit_code == 0, made.stderr
    baseline.write_text(made.stdout)

    result = _bench(shapes_onnx, "--iterations", 2, "--baseline", baseline, *options)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert [run.get("role") for run in report["runs"]] == [None, "baseline"]
    judgement = report["gate"]["judgements"][0]
    assert (judgement["method"], judgement["verdict"]) == ("paired", "inconclusive")  # two rounds decide nothing

    faster = json.loads(made.stdout)
    run = faster["runs"][0]
    run["artifact"] = "gone.onnx"
    run["latency_ms"]["p50"] /= 100
    run["latency_ci_ms"]["p50"] = [run["latency_ms"]["p50"] * factor for factor in (0.9, 1.1)]
    baseline.write_text(json.dumps(faster))
    result = _bench(shapes_onnx, "--iterations", 6, "--baseline", baseline, *options)
    assert result.exit_code == 1, result.stderr
    gate = json.loads(result.stdout)["gate"]
    assert gate["judgements"][0]["verdict"] == "regressed"
    assert gate["attempts"] == gate["max_attempts"]


def test_a_baseline_of_another_machine_ends_in_words(shapes_onnx: Path, tmp_path: Path) -> None:
    result = _bench(shapes_onnx, "--baseline", _written(tmp_path, BASELINE))
    assert result.exit_code == 2
    assert "measured on another machine: cpu was A" in result.stderr


@pytest.mark.parametrize("wrong", [("--iterations", 0), ("--seconds", 0), ("--batch", 0), ("--scenario", "other")])
def test_wrong_usage_exits_with_2(shapes_onnx: Path, wrong: tuple[object, ...]) -> None:
    assert _bench(shapes_onnx, *wrong).exit_code == 2


def test_a_checkpoint_without_peers_is_wrong_usage(shapes_onnx: Path) -> None:
    result = _bench(shapes_onnx, "--checkpoint", shapes_onnx)
    assert result.exit_code == 2
    assert "give --peers" in result.stderr


FULL_RUN: dict[str, Any] = {
    **BASELINE["runs"][0],
    "sha256": "ab" * 32,
    "cpu_ms": {"p50": 9.0},
    "latency_ci_ms": {"p50": [9.0, None]},
    "samples_ms": {"latency": [10.0, 11.0]},
}
FULL: dict[str, Any] = {**BASELINE, "yardstick_ms": {"p50": 1.0}, "yardstick_samples_ms": [1.0], "runs": [FULL_RUN]}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("artifact", [None, 3, ["m.onnx"]]),
        ("batch", [None, "1", True]),
        ("latency_ms", [3, {}, {"p50": None}, {"p50": "10"}, {"p50": 0}, {"p50": -1.0}]),
        ("cpu_ms", [3, {}, {"p50": -1}, {"p50": 1e300}]),
        ("sha256", [3, {}]),
        ("latency_ci_ms", [[], {"p50": 3}, {"p50": [1.0]}, {"p50": ["a", "b"]}, {"p50": [0, 1]}]),
        ("samples_ms", [3, {}, {"latency": []}, {"latency": "x"}, {"latency": [1.0, "2"]}, {"latency": [[1.0]]}]),
    ],
)
def test_what_is_malformed_in_a_run_is_named(tmp_path: Path, key: str, values: list[Any]) -> None:
    assert read_baseline(_written(tmp_path, FULL)) == FULL
    for value in values:
        with pytest.raises(BenchmarkError, match=f"is damaged: it has '{key}' in another form"):
            read_baseline(_written(tmp_path, {**FULL, "runs": [{**FULL_RUN, key: value}]}))


def test_cpu_time_that_a_coarse_clock_did_not_see_is_taken(tmp_path: Path) -> None:
    run = {**FULL_RUN, "cpu_ms": {"p50": 0.0}}
    baseline = read_baseline(_written(tmp_path, {**FULL, "runs": [run]}))
    watch = {"other_processes_share": 0.0, "steal_share": 0.0}
    report = {**FULL, "runs": [FULL_RUN], "watch": watch}
    (judgement,) = judge_report(report, baseline, baseline["runs"], [None], 0.05)
    assert judgement.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("environment", [None, 3, []]),
        ("options", [None, "batch", []]),
        ("runs", [None, 3, [], {}, [3]]),
        ("yardstick_ms", [3, {"p50": "x"}]),
        ("yardstick_samples_ms", [3, None, "x", [None], [{}]]),
    ],
)
def test_what_is_malformed_in_a_report_is_named(tmp_path: Path, key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BenchmarkError, match=f"is damaged: it has '{key}' in another form"):
            read_baseline(_written(tmp_path, {**FULL, key: value}))
