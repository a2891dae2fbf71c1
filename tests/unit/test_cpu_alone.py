"""Who runs on a CPU loads nothing of a GPU's path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.goldens import SHAPES, SHAPES_CHECKPOINT, SHAPES_SPEC

PHOTO = SHAPES / "val" / "val_public_0000.jpg"
REPORT = """
import json, sys
gpu = ("yolact_deploy.cuda", "yolact_deploy.runtime.gpu", "cuda", "pycuda")
print(json.dumps([name for name in sys.modules if name.startswith(tuple(f"{each}." for each in gpu)) or name in gpu]))
"""
WITHOUT_DRIVER = "from yolact_deploy import optional; optional.NVIDIA_DRIVER = 'libcuda-of-nobody.so'\n"


def gpu_modules_after(code: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", code + REPORT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_detector_on_a_cpu_loads_nothing_of_a_gpus_path(device: str, shapes_onnx: Path) -> None:
    code = (
        "import sys; from yolact_deploy import Detector\n"
        "found = Detector(sys.argv[1], device=sys.argv[3], threads=1)(sys.argv[2], masks='rle')\n"
        "assert len(found.rle()) == len(found.masks) > 0"
    )
    assert gpu_modules_after(WITHOUT_DRIVER + code, shapes_onnx, PHOTO, device) == []


def test_detect_on_a_cpu_loads_nothing_of_a_gpus_path(shapes_onnx: Path, tmp_path: Path) -> None:
    code = "import sys; from yolact_deploy.cli import app; app(['detect', *sys.argv[1:]], standalone_mode=False)"
    options = ("-o", tmp_path, "--coco", tmp_path / "found.json", "--device", "cpu")
    assert gpu_modules_after(code, shapes_onnx, PHOTO, *options) == []


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_an_export_loads_neither_the_detector_nor_the_gpus_modules(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from exporters import export\n"
        f"export({str(SHAPES_CHECKPOINT)!r}, {str(tmp_path / 'model.onnx')!r}, spec={str(SHAPES_SPEC)!r})\n"
        "heavy = ('yolact_deploy.runtime.detector', 'yolact_deploy.cuda', 'yolact_deploy.runtime.gpu')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stderr
