"""The API of the installed TensorRT bindings, read without TensorRT's libraries."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_STUBBED_FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "initLibNvInferPlugins",
    "getNvOnnxParserVersion",
)
_DUMP = """
import json, tensorrt_bindings as trt
api = {n: dir(getattr(trt, n)) for n in dir(trt) if isinstance(getattr(trt, n), type)}
print(json.dumps({**api, "Severity": dir(trt.ILogger.Severity)}))
"""


def installed_tensorrt_api(folder: Path) -> dict[str, list[str]]:
    """Class -> its attributes, of `tensorrt_bindings` imported over stub libraries. Skips the test where they are not."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt_cu13_bindings is not installed")
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("stub libraries need g++ on Linux")
    library = next(Path(spec.origin).parent.glob("tensorrt*.so")).read_bytes()
    source = folder / "stub.cpp"
    source.write_text("".join(f'extern "C" void* {name}() {{ return nullptr; }}\n' for name in _STUBBED_FUNCTIONS))
    for needed in set(re.findall(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+", library)):
        name = needed.decode()
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    dump = subprocess.run([sys.executable, "-c", _DUMP], env=environment, capture_output=True, text=True, check=True)
    api: dict[str, list[str]] = json.loads(dump.stdout)
    return api
