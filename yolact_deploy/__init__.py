"""Deploy YOLACT instance segmentation: run exported models, and turn their outputs into boxes and masks.

    from yolact_deploy import Detector
    detections = Detector("model.onnx")("image.jpg")

What the commands do is a function each: `detect_files`, `evaluate` and `diagnose` (doctor) here; `exporters.export`,
`exporters.quantize` and `exporters.compare`; `engines.build`; `benchmarks.bench`.

Importing this package loads no torch, TensorRT, onnxruntime, CUDA binding or OpenCV.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolact_deploy.diagnosis import diagnose as diagnose
    from yolact_deploy.errors import YolactDeployError as YolactDeployError
    from yolact_deploy.evaluation import evaluate as evaluate
    from yolact_deploy.file_detection import detect_files as detect_files
    from yolact_deploy.reference.detections import Detections as Detections
    from yolact_deploy.runtime.detector import Detector as Detector
    from yolact_deploy.spec import ModelSpec as ModelSpec

__version__ = "0.1.0"

_LAZY = {
    "Detections": "yolact_deploy.reference.detections",
    "Detector": "yolact_deploy.runtime.detector",
    "ModelSpec": "yolact_deploy.spec",
    "YolactDeployError": "yolact_deploy.errors",
    "detect_files": "yolact_deploy.file_detection",
    "diagnose": "yolact_deploy.diagnosis",
    "evaluate": "yolact_deploy.evaluation",
}

__all__ = [
    "Detections",
    "Detector",
    "ModelSpec",
    "YolactDeployError",
    "__version__",
    "detect_files",
    "diagnose",
    "evaluate",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
