"""The project's own figures start as they are called, `python -m benchmarks.figures.NAME`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import benchmarks.figures
from tests.unit.engines.tiny_network import TINY_SPEC
from yolact_deploy.runtime.protocols import HeadTensors

ROOT = Path(__file__).parents[3]
FIGURES = sorted(Path(next(iter(benchmarks.figures.__path__))).glob("[!_]*.py"))


def test_nothing_is_defined_after_a_module_has_run_itself() -> None:
    late = []
    for path in FIGURES:
        names = [ast.unparse(node) if isinstance(node, ast.If) else "" for node in ast.parse(path.read_text()).body]
        late += [path.name for name in names[:-1] if "__main__" in name]
    assert FIGURES
    assert late == []


@pytest.mark.needs("torch")
def test_the_stages_after_the_network_are_timed_scene_by_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.figures import postprocess

    monkeypatch.setattr(postprocess, "SIZES_HW", ((30, 40),))
    rng = np.random.default_rng(0)
    shapes = TINY_SPEC.output_shapes()
    heads = HeadTensors(*(rng.random((1, *shapes[name]), np.float32) for name in HeadTensors._fields))
    found = postprocess.scenes(TINY_SPEC, heads, 1)
    masks = {f"{what} 40x30" for what in ("masks", "rle", "windows", "masks of bits", "rle of bits")}
    assert set(found["full"]) == {"detections"} | masks
    assert set(found["recorded"]) == set(found["planted"]) == {"detections", "detect"} | masks
    assert all(scene["detections"] > 0 for scene in found.values())


def test_host_overhead_prints_a_row_per_size_and_number_of_detections() -> None:
    command = [sys.executable, "-m", "benchmarks.figures.host_overhead", "--repeats", "1", "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)) == 6
