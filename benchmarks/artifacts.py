"""What a report says of the artifact it measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolact_deploy import Detector
from yolact_deploy.errors import PlanMismatchError
from yolact_deploy.files import sha256_file
from yolact_deploy.runtime.detector import PLAN_SUFFIXES
from yolact_deploy.sidecar import Sidecar, read_sidecar
from yolact_deploy.spec import MAX_BATCH_METADATA_KEY, PRECISION_METADATA_KEY


def describe(detector: Detector) -> dict[str, Any]:
    """Path, backend, digest, size and precision; None for what the file does not say."""
    path = Path(detector.artifact)
    known = path.is_file()
    return {
        "artifact": str(path),
        "backend": detector.description,
        "sha256": sha256_file(path) if known else None,
        "size_bytes": path.stat().st_size if known else None,
        "precision": _precision(path) if known else None,
    }


def batch_limits(path: Path) -> tuple[int, int | None]:
    """The smallest and the largest batch an artifact was made for; None where it does not say."""
    sidecar = _sidecar(path)
    if sidecar is not None:
        return sidecar.batch.min, sidecar.batch.max
    text = onnx_metadata(path).get(MAX_BATCH_METADATA_KEY, "")
    return 1, int(text) if text.isdigit() else None


def _precision(path: Path) -> str | None:
    sidecar = _sidecar(path)
    return onnx_metadata(path).get(PRECISION_METADATA_KEY) if sidecar is None else sidecar.precision


def _sidecar(path: Path) -> Sidecar | None:
    """Of a plan; the Detector has told what is wrong with it."""
    if path.suffix.lower() not in PLAN_SUFFIXES:
        return None
    try:
        return read_sidecar(path)
    except PlanMismatchError:
        return None


def onnx_metadata(path: Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file; empty where they can't be read."""
    if path.suffix.lower() != ".onnx":
        return {}
    try:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's exception classes share no public base; the Detector has told what is wrong
        return {}
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return metadata
