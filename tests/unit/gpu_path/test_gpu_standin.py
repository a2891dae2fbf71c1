"""The host code that a GPU machine runs, unchanged, over the stand-in libcuda: real packages, real calls, emulated kernels."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator import standin
from tests.goldens import SHAPES_SPEC
from tests.unit.gpu_path.gpu_expectations import PHOTOS, assert_identical
from yolact_deploy import Detector
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.spec import ModelSpec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CODE = """
import dataclasses, json, pickle, sys
from pathlib import Path
from tests.emulator import standin
from tests.emulator.cpu_network import CpuNetwork
from yolact_deploy import Detector
from yolact_deploy.errors import DeviceError
from yolact_deploy.runtime.gpu.pipeline import REAL_GPU

def open_network(path, driver, threads, tf32):
    return CpuNetwork(path, driver, threads=1)

gpu = dataclasses.replace(REAL_GPU, check_network=lambda path: None, open_network=open_network)
model, photos, target = sys.argv[1], sys.argv[2:-1], sys.argv[-1]
with Detector(model, device="cuda:0", gpu=gpu, batch_size=2) as detector:
    rounds = [detector(photos), detector(photos), detector(photos, masks="rle")]
    rounds.append(list(detector.stream(photos)))
    _, stages = detector.timed(photos[:1])
    description = detector.description
live = standin.live_by_kind()
live.pop("context", None)  # held by the driver, which the frames above may still hold

lost = Detector(model, device="cuda:0", gpu=gpu)
rounds.append(lost(photos, masks="dense"))
standin.reset_device()
try:
    lost(photos)
    error = None
except DeviceError as exc:
    error = str(exc)
lost.close()
with Detector(model, device="cuda:0", gpu=gpu, cuda_graph=False) as fresh:
    rounds.append(fresh(photos))
print(json.dumps([description, detector.notes, sorted(stages), live, error]))
Path(target).write_bytes(pickle.dumps(rounds))
"""


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_the_whole_gpu_path_runs_over_the_stand_in(
    shapes_onnx: Path, on_cpu: Detector, tmp_path: Path, package: str
) -> None:
    module = {"cuda-bindings": "cuda", "pycuda": "pycuda"}[package]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed")
    environment = standin.environment(
        cache_dir=tmp_path / "cache", specializations=[specialize(ModelSpec.from_file(SHAPES_SPEC))], driver=package
    )
    target = tmp_path / "found.pickle"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(shapes_onnx), *map(str, PHOTOS), str(target)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    description, notes, stages, live, error = json.loads(done.stdout)
    assert package in description
    (note,) = notes
    assert note.startswith("times of network hold the host's own")  # it copies through the host
    assert live == {}
    assert "CUDA_ERROR" in error
    assert stages == ["detect", "device_to_host", "host_to_device", "masks", "network", "preprocess"]
    expected = on_cpu(PHOTOS)
    for found in pickle.loads(target.read_bytes()):
        for one, other in zip(found, expected, strict=True):
            assert_identical(one, other)
