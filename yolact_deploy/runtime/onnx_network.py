"""A YOLACT in onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from yolact_deploy.arrays import FloatArray
from yolact_deploy.errors import ArtifactError, EngineError, SpecError
from yolact_deploy.optional import require
from yolact_deploy.runtime.network import OUTPUT_NAMES, HeadTensors
from yolact_deploy.spec import SPEC_METADATA_KEY, ModelSpec

_ERRORS_ONLY = 3


class OnnxNetwork:
    """An exported ONNX on the CPU or, with device "cuda" or "cuda:N", on onnxruntime's CUDA provider.

    Raises ArtifactError for a file that is no ONNX model, SpecError for one without our metadata or whose outputs
    contradict it, EngineError when the device can't be used.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None) -> None:
        ort = require("onnxruntime", extra="cpu", purpose="running an ONNX model")
        self._path = Path(path)
        self._session = _open_session(ort, self._path, _providers(ort, device), threads)
        self._spec = _read_spec(self._session, self._path)
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.description = f"onnxruntime {ort.__version__} ({provider})"

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def run(self, image: FloatArray) -> HeadTensors:
        try:
            return HeadTensors(*self._session.run(OUTPUT_NAMES, {"image": image}))
        except Exception as exc:  # onnxruntime's exception classes share no public base
            raise EngineError(
                f"onnxruntime failed to run {self._path} on a batch of {len(image)}: {_first_line(exc)}."
            ) from exc


def _open_session(ort: Any, path: Path, providers: list[Any], threads: int | None) -> Any:
    if not path.is_file():
        raise ArtifactError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}. Give an exported .onnx file."
        )
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as exc:  # onnxruntime's exception classes share no public base
        size = path.stat().st_size
        raise ArtifactError(
            f"onnxruntime can't open {path} ({size} bytes): {_first_line(exc)}. "
            "If the file was copied or downloaded, get it again; else export it again with `yolact-deploy export`."
        ) from exc


def _providers(ort: Any, device: str) -> list[Any]:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()) or (index and kind != "cuda"):
        raise EngineError(f'device must be "auto", "cpu" or "cuda:N", found {device!r}.')
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise EngineError(
            f"device {device!r} was asked for, but this onnxruntime has no CUDA provider "
            f"(it has {', '.join(ort.get_available_providers())}).\n"
            '  pip uninstall onnxruntime; pip install "yolact-deploy[gpu]"'
        )
    if kind == "cpu" or not has_cuda:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]


def _read_spec(session: Any, path: Path) -> ModelSpec:
    text = session.get_modelmeta().custom_metadata_map.get(SPEC_METADATA_KEY)
    if text is None:
        raise SpecError(
            f"{path} carries no {SPEC_METADATA_KEY!r} metadata, so its classes, priors and preprocessing are unknown. "
            "Export it from its checkpoint with `yolact-deploy export`."
        )
    spec = ModelSpec.from_json(text)
    found = {output.name: tuple(output.shape[1:]) for output in session.get_outputs()}
    if found != spec.output_shapes():
        raise SpecError(
            f"the outputs of {path} contradict its own spec: it says {spec.output_shapes()}, the graph has {found}. "
            "Export it again with `yolact-deploy export`."
        )
    return spec


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0].rstrip(".")[:300]
