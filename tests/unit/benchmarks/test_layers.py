"""Times per module, as onnxruntime's profiler counts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.layers import layer_times, node_times
from benchmarks.report_html import render_report
from yolact_deploy import Detector
from yolact_deploy.cli import app


def test_every_part_of_the_network_has_its_time(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=1)
    found = layer_times(detector, [np.zeros((60, 80, 3), np.uint8)], threads=1, runs=3)
    modules = [row["module"] for row in found["modules"]]
    for part in ("backbone (stem)", "backbone.layers.0", "backbone.layers.3", "fpn", "proto_net", "prediction_layers"):
        assert part in modules
    assert sum(row["share"] for row in found["modules"]) == pytest.approx(1)
    assert sum(row["ms"] for row in found["modules"]) == pytest.approx(found["network_ms"])
    assert sum(row["nodes"] for row in found["modules"]) == len(found["nodes"])
    convolutions = [node for node in found["nodes"] if node["operator"] == "Conv"]
    assert len(convolutions) > 30
    assert all(node["module"] for node in convolutions)


@pytest.mark.needs("openvino")
def test_openvino_tells_the_same_parts(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", runtime="openvino", threads=1)
    found = layer_times(detector, [np.zeros((60, 80, 3), np.uint8)], threads=1, runs=1)
    assert found["profiler"] == "OpenVINO"
    modules = {row["module"]: row["nodes"] for row in found["modules"]}
    for part in ("backbone (stem)", "backbone.layers.0", "backbone.layers.3", "fpn", "proto_net", "prediction_layers"):
        assert modules[part] > 0
    assert sum(row["share"] for row in found["modules"]) == pytest.approx(1)


def test_the_median_is_over_the_timed_runs_alone() -> None:
    def event(name: str, duration: int, category: str = "Node") -> dict[str, object]:
        return {"cat": category, "name": name, "dur": duration, "args": {"op_name": "Conv"}}

    warmup = [event("fpn/Conv_kernel_time", 9000), event("fpn/Conv_fence_before", 1)]
    timed = [event("fpn/Conv_kernel_time", us) for us in (1000, 5000, 2000)]
    (node,) = node_times([*warmup, *timed, event("model_run", 50, "Session")], runs=3)
    assert (node.name, node.operator, node.ms) == ("fpn/Conv", "Conv", 2.0)


@pytest.mark.slow
def test_bench_shows_modules_in_json_table_and_page(shapes_onnx: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    arguments = ["bench", str(shapes_onnx), "--iterations", "2", "--warmup", "0", "--layers", "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--samples", "--json", "--report", str(page)])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    (layers,) = report["layers"]
    assert layers["artifact"] == str(shapes_onnx)
    assert "The network by module" in page.read_text(encoding="utf-8")
    assert "backbone.layers.2" in render_report(report)
    table = CliRunner().invoke(app, arguments)
    assert "backbone.layers.2" in table.stdout
