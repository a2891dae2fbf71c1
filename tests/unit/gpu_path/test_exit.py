"""A process that ends while Detectors are open: they are closed while CUDA is there, and nothing is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator import standin
from tests.goldens import SHAPES_SPEC
from tests.unit.gpu_path.gpu_expectations import PHOTOS
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.spec import ModelSpec

ROOT = Path(__file__).parents[3]
CODE = """
import atexit, json, sys
closed = []
def report():  # after the finalizers, which are registered later
    print(json.dumps([closed, standin.live_by_kind()]))
atexit.register(report)

import dataclasses
from tests.emulator import standin
from tests.emulator.cpu_network import CpuNetwork
from yolact_deploy import Detector
from yolact_deploy.runtime.gpu.pipeline import REAL_GPU

class Watched:
    def __init__(self, inner, name):
        self._inner, self._name = inner, name
    def __getattr__(self, attribute):
        return getattr(self._inner, attribute)
    def new_execution_context(self, stream):
        return Watched(self._inner.new_execution_context(stream), "context")
    def close(self):
        closed.append(self._name)
        self._inner.close()

gpu = dataclasses.replace(REAL_GPU, check_network=lambda path: None,
                          open_network=lambda path, driver, threads, tf32: Watched(CpuNetwork(path, driver), "network"))
model, *photos = sys.argv[1:]
kept = Detector(model, device="cuda:0", gpu=gpu)
kept.itself = kept
found = kept(photos[0])
kept.timed(photos[:1])
on_its_way = kept.stream(photos)
next(on_its_way)
"""


@pytest.mark.slow
@pytest.mark.needs("cuda.bindings")
def test_what_is_open_at_exit_is_closed_in_order_and_in_silence(shapes_onnx: Path, tmp_path: Path) -> None:
    specialization = specialize(ModelSpec.from_file(SHAPES_SPEC))
    environment = standin.environment(cache_dir=tmp_path / "cache", specializations=[specialization])
    command = [sys.executable, "-c", CODE, str(shapes_onnx), *map(str, PHOTOS[:3])]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    closed, live = json.loads(done.stdout)
    assert closed == ["context", "context", "network"]
    assert live == {"context": 1}  # what of other libraries lives in it may still free what it holds
