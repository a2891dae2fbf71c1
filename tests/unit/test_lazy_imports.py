"""`import yolact_deploy` and `--help` stay light: what is heavy is imported inside the function that uses it.

Which folder may import which, functions included, is import-linter's to hold (`make lint`).
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "polygraphy", "pycuda", "cuda",
    "cv2", "supervision", "pycocotools", "numba", "exporters", "engines", "benchmarks",
)  # fmt: skip
COMMANDS = ("export", "quantize", "build-engine", "detect", "eval", "bench", "compare", "inspect", "doctor")

REPORT = (
    "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
)

# imports a package's modules one by one, and names each that was the first to load something heavy
WALK = """
import importlib, json, pkgutil, sys
package, *heavy = sys.argv[1:]
culprits = {}
for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
    before = set(sys.modules)
    importlib.import_module(module.name)
    loaded = sorted(set(heavy) & set(sys.modules) - before)
    if loaded:
        culprits[module.name] = loaded
print(json.dumps(culprits))
"""


def _loaded(code: str) -> set[str]:
    result = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=True)
    return set(json.loads(result.stderr.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _loaded("from yolact_deploy import Detector, Detections, ModelSpec")
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("package", ["yolact_deploy", "engines"])
def test_no_module_loads_anything_heavy_when_it_is_imported(package: str) -> None:
    heavy = sorted({*HEAVY} - {package})
    walk = subprocess.run([sys.executable, "-c", WALK, package, *heavy], capture_output=True, text=True, check=True)
    assert json.loads(walk.stdout) == {}


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join
)
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    run = f"from yolact_deploy.cli import app; app({arguments!r}, standalone_mode=False)"
    loaded = _loaded(run)
    assert "typer" in loaded
    assert not loaded & {*HEAVY, "numpy"}
