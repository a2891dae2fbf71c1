"""What a bench imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_deploy.optional import has_nvidia_driver

CODE = """
import json, sys
from benchmarks import bench
bench(sys.argv[1], device=sys.argv[2], iterations=2, warmup=0, threads=1, streams=1, layers=True, report=sys.argv[3])
print(json.dumps(sorted(sys.modules)))
"""
OF_A_GPU = ("yolact_deploy.cuda", "yolact_deploy.runtime.gpu", "yolact_deploy.runtime.tensorrt", "benchmarks.device")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_bench_on_a_cpu_imports_nothing_of_the_gpu_path(device: str, shapes_onnx: Path, tmp_path: Path) -> None:
    if device == "auto" and has_nvidia_driver():
        pytest.skip("there is a GPU's driver here, which a bench then asks")
    command = [sys.executable, "-c", CODE, str(shapes_onnx), device, str(tmp_path / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "benchmarks.latency" in loaded
    assert [name for name in loaded if name.startswith(OF_A_GPU)] == []
    assert not {"torch", "onnx", "benchmarks.peers", "benchmarks.sweep"} & set(loaded)


def test_the_package_itself_is_light() -> None:
    code = "import sys, benchmarks; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "yolact_deploy", "psutil", "torch"} & set(loaded)
