"""A visit to a GPU machine from its kit, in an environment of exactly what such a machine is taken to have."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.figures.gpu import PARTS
from benchmarks.figures.gpu_report import Report

ROOT = Path(__file__).parents[3]
_LIMIT_S = 300


@pytest.mark.needs("cuda.bindings", "torch")
def test_what_begins_a_visit_is_on_a_bare_machine(tmp_path: Path) -> None:
    from tests.emulator.rehearsal import bare_python

    python = bare_python(tmp_path / "python")
    modules = sorted({"benchmarks.figures.gpu", "tests.gpu.sanitized", *(part.module for part in PARTS)})
    code = f"import {', '.join(modules)}; import sys; print('cv2' in sys.modules, 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(python), "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == "False False\n"
    missing = subprocess.run([str(python), "-c", "import rich"], capture_output=True, text=True)
    assert "No module named 'rich'" in missing.stderr


@pytest.mark.slow
@pytest.mark.needs("cuda.bindings", "torch")
def test_every_part_runs_in_a_bare_environment_and_what_was_done_survives_a_kill(tmp_path: Path) -> None:
    from tests.emulator.rehearsal import prepare

    rehearsal = prepare(tmp_path)
    assert sum(path.stat().st_size for path in rehearsal.kit.rglob("*") if path.is_file()) < 40e6
    done = subprocess.run(
        rehearsal.command, cwd=rehearsal.kit, env=rehearsal.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    report = json.loads(rehearsal.report.read_text())
    assert report["kind"] == "gpu-rehearsal"
    assert {part["state"] for part in report["parts"].values()} == {"done"}
    assert list(report["parts"]) == [part.name for part in PARTS]
    for proof in ("smoke", "checks", "detector"):
        assert set(report[proof]["claims"].values()) == {"holds"}
    assert all("us" in row for row in report["peers"])
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert {"p17_small", "frame_of_bits"} < set(report[tool]["claims"])
        assert set(report[tool]["claims"].values()) == {"holds"}
    assert [row["Kernel Name"] for row in report["ncu"]["small"]] == ["decode"]

    rehearsal.report.unlink()
    command, ends = [*rehearsal.command, "--parts", "probe,kernels"], time.monotonic() + _LIMIT_S
    with subprocess.Popen(command, cwd=rehearsal.kit, env=rehearsal.environment) as process:
        while not Report(rehearsal.report).read().get("preprocess"):
            assert time.monotonic() < ends
            time.sleep(0.05)
        process.kill()
    found = json.loads(rehearsal.report.read_text())
    assert {name: part["state"] for name, part in found["parts"].items()} == {"probe": "done", "kernels": "running"}
    assert found["gpu"]["name"] == "Emulated GPU 0"
