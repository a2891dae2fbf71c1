from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "onnx", "onnxscript", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "cuda", "cv2", "supervision",
    "pycocotools", "exporters", "engines", "benchmarks",
)  # fmt: skip
COMMANDS = ("export", "build-engine", "detect", "eval", "bench", "inspect", "doctor")

REPORT = (
    "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
)


def _loaded(code: str) -> set[str]:
    result = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=True)
    return set(json.loads(result.stderr.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _loaded("from yolact_deploy import Detector, Detections, ModelSpec")
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    run = f"from yolact_deploy.cli import app; app({arguments!r}, standalone_mode=False)"
    loaded = _loaded(run)
    assert "typer" in loaded
    assert not loaded & {*HEAVY, "numpy"}
