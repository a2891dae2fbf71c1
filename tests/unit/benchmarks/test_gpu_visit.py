"""A visit to a GPU machine: what crashes, hangs or is killed costs nothing of what was done; and what it runs on is little."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.figures import gpu_parts, gpu_timing
from benchmarks.figures.gpu import Part, run_parts
from benchmarks.figures.gpu_page import gpu_section
from benchmarks.figures.gpu_parts import Rows
from benchmarks.figures.gpu_report import Report, Visit
from benchmarks.figures.gpu_timing import SmClock
from benchmarks.figures.scenes import candidates, network_input, scenes
from tests.goldens import SHAPES_SPEC, golden_image
from yolact_deploy.errors import DeviceMemoryError
from yolact_deploy.reference.images import preprocess
from yolact_deploy.reference.postprocess import detect, make_priors
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

ROOT = Path(__file__).parents[3]
LONG = 120.0  # seconds: more than a part that does nothing takes on any machine
VISITED = """
import os, signal, sys, time
from benchmarks.figures.gpu import AGAIN
from benchmarks.figures.gpu_page import gpu_section
from benchmarks.figures.gpu_parts import Rows
from benchmarks.figures.gpu_report import run_part

def row(visit):
    visit.report.add("rows", {"pid": os.getpid()})

def crash(visit):
    row(visit)
    os.kill(os.getpid(), signal.SIGSEGV)

def hang(visit):
    row(visit)
    time.sleep(600)

def twice(visit):
    row(visit)
    sys.exit(0 if visit.again else AGAIN)

run_part({"row": row, "crash": crash, "hang": hang, "twice": twice})
"""


@pytest.fixture
def visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Visit:
    (tmp_path / "visited.py").write_text(VISITED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    return Visit(Report(tmp_path / "gpu.json"))


def test_a_part_that_crashes_or_hangs_costs_no_other_and_none_of_its_rows(visit: Visit) -> None:
    begun = time.monotonic()
    assert run_parts(visit, [Part("row", LONG, "visited")], LONG) == []
    starting = time.monotonic() - begun  # an interpreter, which on a busy machine takes seconds
    parts = [Part("crash", LONG, "visited"), Part("hang", 2 * starting + 3, "visited"), Part("row", LONG, "visited")]
    assert run_parts(visit, parts, 4 * LONG) == ["crash", "hang"]
    report = visit.report.read()
    assert len(report["rows"]) == 4
    states = {name: part["state"] for name, part in report["parts"].items()}
    assert states == {"crash": "failed with exit code -11", "hang": "its time was up", "row": "done"}
    assert "Segmentation fault" in report["parts"]["crash"]["tail"]
    assert "in hang" in report["parts"]["hang"]["tail"]  # where it was


def test_a_part_that_can_go_on_in_another_process_does_and_what_there_is_no_time_for_is_told(visit: Visit) -> None:
    assert run_parts(visit, [Part("twice", LONG, "visited", restarts=True)], 3 * LONG) == []
    assert run_parts(visit, [Part("row", LONG, "visited")], 1) == ["row"]
    report = visit.report.read()
    assert (len(report["rows"]), report["parts"]["twice"]["starts"]) == (2, 2)
    assert report["parts"]["row"] == {"state": "no time was left"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_visit_that_is_killed_leaves_a_whole_report_and_no_process(visit: Visit, number: signal.Signals) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.figures.gpu import Part, run_parts;"
        "from benchmarks.figures.gpu_report import Report, Visit;"
        "run_parts(Visit(Report(Path(sys.argv[1]))), [Part('row', 120, 'visited'), Part('hang', 240, 'visited')], 999)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(visit.report.path)], cwd=ROOT) as process:
        rows = _wait_for(lambda: visit.report.read().get("rows", []), 2)
        process.send_signal(number)
    report = json.loads(visit.report.path.read_text())
    assert {name: part["state"] for name, part in report["parts"].items()} == {"row": "done", "hang": "running"}
    _wait_for(lambda: [] if _lives(rows[1]["pid"]) else [True], 1)


def _wait_for(read: Any, count: int) -> Any:
    ends = time.monotonic() + 60
    while len(found := read()) < count:
        assert time.monotonic() < ends
        time.sleep(0.02)
    return found


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"  # one that nobody has waited for


def test_a_row_that_fails_costs_no_other_and_is_told(visit: Visit) -> None:
    def no_memory() -> dict[str, Any]:
        raise DeviceMemoryError("not enough memory")

    for _ in range(2):  # measured again, the tables begin anew
        tables = Rows(visit, "kernels")
        tables.add("kernels", {"size": "550"}, lambda: {"us": 1.0})
        tables.add("kernels", {"size": "4K"}, no_memory)
        tables.add("kernels", {"size": "720p"}, lambda: {"us": 2.0})
        with pytest.raises(SystemExit, match="1 rows were not measured"):
            tables.end()
    report = visit.report.read()
    assert report["kernels"] == [{"size": "550", "us": 1.0}, {"size": "720p", "us": 2.0}]
    assert "- not measured: kernels, 4K: DeviceMemoryError: not enough memory" in gpu_section(
        "gpu", {**report, "kernels": []}
    )


def test_a_scene_that_ncu_can_not_count_costs_none_before_it(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    table = '"ID","Kernel Name"\n"",""\n"0","decode"\n'
    runs = iter(
        [SimpleNamespace(returncode=0, stdout=table, stderr=""), SimpleNamespace(returncode=1, stdout="", stderr="no")]
    )
    monkeypatch.setattr(gpu_parts, "find_tool", lambda name: name)
    monkeypatch.setattr(gpu_parts, "kept_heads", lambda visit: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: next(runs))
    gpu_parts.ncu(visit)
    found = visit.report.read()["ncu"]
    assert (found["550"], found["why_not"]) == ([{"Kernel Name": "decode"}], "no")


def test_the_clock_is_nvmls_of_the_gpu_at_that_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def handle(bus_id: bytes, found: Any) -> int:
        asked.append(bus_id)
        found._obj.value = 7
        return 0

    def clock(device: Any, kind: Any, mhz: Any) -> int:
        asked.extend((device.value, kind.value))
        mhz._obj.value = 1980
        return 0

    nvml = SimpleNamespace(nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByPciBusId_v2=handle, nvmlDeviceGetClockInfo=clock)
    monkeypatch.setattr(gpu_timing, "_bus_id", lambda index: f"0000:0{index}:00.0")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    assert SmClock(3)() == 1980
    assert asked == [b"0000:03:00.0", 7, 1]  # NVML_CLOCK_SM


def test_the_clock_is_nvidia_smis_where_there_is_no_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$2 $3" = "0000:01:00.0 --query-gpu=clocks.sm" ] && echo 345\n')
    smi.chmod(0o755)
    monkeypatch.setattr(gpu_timing, "_bus_id", lambda index: f"0000:0{index}:00.0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert SmClock(1)() == 345
    unknown = SmClock(2)
    assert unknown() is None
    smi.write_text("#!/bin/sh\necho 1\n")
    assert unknown() is None  # asked once


def test_the_networks_input_without_opencv_is_that_of_the_reference() -> None:
    spec = ModelSpec.from_file(SHAPES_SPEC)
    np.testing.assert_array_equal(network_input(golden_image(1), spec), preprocess([golden_image(1)], spec))


def test_scenes_have_the_detections_and_candidates_that_they_are_named_for() -> None:
    from exporters.checkpoints.configs import published_spec

    spec = dataclasses.replace(published_spec("yolact_resnet50"), input_size=138)
    rng = np.random.default_rng(0)
    priors = spec.num_priors
    conf = np.zeros((1, priors, 81), np.float32)
    rows = rng.choice(priors, 300, replace=False)
    conf[0, rows, 1 + rng.integers(0, 80, 300)] = rng.uniform(0.1, 0.9, 300)
    loc, coeff = rng.standard_normal((1, priors, 4)) / 10, rng.uniform(-1, 1, (1, priors, 32))
    recorded = HeadTensors(loc.astype(np.float32), conf, coeff.astype(np.float32), np.zeros((1, 2, 2, 32), np.float32))
    found = {}
    for name, make in scenes(spec, recorded).items():
        heads = make()
        (raw,) = detect(*heads, make_priors(spec))
        raw = raw.take(np.flatnonzero(raw.scores > 0))  # as of every request
        sides = (raw.boxes_xyxy[:, 2:] - raw.boxes_xyxy[:, :2]).max(initial=0)
        found[name] = (
            len(raw),
            candidates(spec, heads),
            round(float(sides), 2) if name.split()[-1] in ("small", "full") else None,
        )
    assert found == {
        "recorded": (100, 300, None),
        "100 full": (100, 100, 1.5),
        "empty": (0, 0, None),
        "all priors": (100, priors, None),
        "100 small": (100, 100, 0.06),
        "10 recorded": (10, 10, None),
        "10 full": (10, 10, 1.5),
        "10 small": (10, 10, 0.06),
    }


@pytest.mark.needs("torch")
def test_the_peers_run_lengths_are_cocos_and_its_nms_keeps_one_of_a_class() -> None:
    import torch

    from benchmarks.figures.gpu_peers import batched_nms, run_lengths
    from tests.emulator.expectations import coco_runs

    rng = np.random.default_rng(0)
    for mask in (np.zeros((3, 4), bool), np.ones((3, 4), bool), rng.random((5, 7)) > 0.5, rng.random((5, 7)) > 0.5):
        assert run_lengths(mask) == coco_runs(mask)
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 1, 1.0], [0.5, 0, 1.5, 1]])
    kept = batched_nms(boxes, torch.tensor([0.5, 0.9, 0.8, 0.7]), torch.tensor([1, 1, 2, 1]))
    assert kept.tolist() == [1, 2, 3]
