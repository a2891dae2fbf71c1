"""`benchmarks.bench`, which the command line calls with the same options."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

import benchmarks
from benchmarks import bench
from benchmarks.latency import merge_notes
from yolact_deploy import Detector
from yolact_deploy.cli import app
from yolact_deploy.errors import BenchmarkError, OutputError


def test_the_function_has_the_options_of_the_command_and_their_defaults() -> None:
    command: Any = typer.main.get_command(app)
    options = {parameter.name: parameter.default for parameter in command.commands["bench"].params}
    renamed = {"report_file": "report"}
    talk = {"json_output", "debug", "artifacts"}
    expected = {renamed.get(name, name): default for name, default in options.items() if name not in talk}
    parameters = inspect.signature(bench).parameters.values()
    found = {each.name: each.default for each in parameters if each.name not in ("artifacts", "progress")}
    assert found == expected


def test_one_artifact_or_several_a_page_and_single_times(shapes_onnx: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    told: list[tuple[str, int, int]] = []
    options: dict[str, Any] = {"iterations": 2, "warmup": 0, "threads": 1, "device": "cpu"}
    found = bench([shapes_onnx], samples=True, report=page, progress=lambda *step: told.append(step), **options)
    assert len(found["runs"][0]["samples_ms"]["latency"]) == 2
    assert shapes_onnx.name in page.read_text(encoding="utf-8")
    assert told[-1] == ("bench", 2, 2)
    assert not benchmarks.regressed(found)
    assert "samples_ms" not in bench(str(shapes_onnx), **options)["runs"][0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": True},
        {"batch": 1.0},
        {"iterations": 0},
        {"warmup": -1},
        {"streams": 0},
        {"threads": 0},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"seconds": "5"},
        {"score_threshold": float("nan")},
        {"score_threshold": -0.1},
        {"score_threshold": "0.5"},
        {"scenario": "multi"},
        {"max_regression": 5},
        {"checkpoint": "model.pth"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_anything_is_opened(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(BenchmarkError, match="regression" if name == "max_regression" else name):
        bench("there-is-no-such-model.onnx", **wrong)


def test_a_batch_beyond_what_the_file_was_exported_for_is_refused(shapes_onnx: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"shapes\.onnx was exported for batches up to 8, and 9 .*--max-batch"):
        bench(shapes_onnx, batch=9, device="cpu")


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="nothing to measure"):
        bench([])


def test_a_page_that_can_not_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        bench("there-is-no-such-model.onnx", report=tmp_path / "missing" / "report.html")


def test_what_holds_for_several_artifacts_is_said_once_and_the_shortest_first(
    shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remark = "a remark that every Detector makes."
    monkeypatch.setattr(Detector, "notes", (remark,))
    monkeypatch.setattr("benchmarks.latency.MAX_VARIATION", 0.0)
    other = tmp_path / "other.onnx"
    shutil.copy(shapes_onnx, other)
    notes = bench([shapes_onnx, other], iterations=3, warmup=0, threads=1, device="cpu")["notes"]
    assert notes.count(remark) == 1
    (varying,) = [note for note in notes if note.startswith("times vary by")]
    assert f"({shapes_onnx})" in varying
    assert f"({other})" in varying
    assert [len(note) for note in notes] == sorted(len(note) for note in notes)


def test_what_holds_for_one_of_several_names_it() -> None:
    assert merge_notes({"a": [("slow.", "")], "b": []}) == ["a: slow."]
    assert merge_notes({"a": [("took {}.", "1 s")], "b": []}) == ["took 1 s (a)."]
    assert merge_notes({"a": [("took {}.", "1 s"), ("slow.", "")]}) == ["took 1 s.", "slow."]


@pytest.mark.parametrize("driver", [True, False])
def test_that_no_gpu_was_used_is_said_where_one_could_be(
    driver: bool, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.latency.has_nvidia_driver", lambda: driver)
    notes = bench(shapes_onnx, iterations=1, warmup=0, threads=1, device="cpu")["notes"]
    assert any("no GPU was used" in note for note in notes) is driver
