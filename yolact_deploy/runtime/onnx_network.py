"""A YOLACT in onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import FloatArray
from yolact_deploy.errors import ArtifactError, DeviceError, EngineError, SpecError
from yolact_deploy.mask_iou import MaskIouModel
from yolact_deploy.optional import require
from yolact_deploy.runtime.mask_iou_session import open_mask_iou
from yolact_deploy.runtime.network import OUTPUT_NAMES, HeadTensors
from yolact_deploy.spec import MASK_IOU_METADATA_KEY, SPEC_METADATA_KEY, ModelSpec

_ERRORS_ONLY = 3


class OnnxNetwork:
    """An exported ONNX on the CPU or, with device "cuda" or "cuda:N", on onnxruntime's CUDA provider.

    Raises ArtifactError for a file that is no ONNX model, SpecError for one without our metadata or whose input
    and outputs contradict it, DeviceError when there is no such device.
    """

    def __init__(self, path: str | os.PathLike[str], *, device: str = "auto", threads: int | None = None) -> None:
        ort = require("onnxruntime", extra="cpu", purpose="running an ONNX model")
        self._path = Path(path)
        self._session = _open_session(ort, self._path, _providers(ort, device), threads)
        _check_device(self._session, device)
        self._spec = _read_spec(self._session, self._path)
        self._input_dtype = np.float16 if self._session.get_inputs()[0].type == "tensor(float16)" else np.float32
        self._mask_iou = self._open_mask_iou(ort, threads)
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.description = f"onnxruntime {ort.__version__} ({provider})"

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._mask_iou

    def run(self, image: FloatArray) -> HeadTensors:
        try:
            outputs = self._session.run(OUTPUT_NAMES, {"image": image.astype(self._input_dtype, copy=False)})
        except Exception as exc:  # onnxruntime's exception classes share no public base
            raise EngineError(
                f"onnxruntime failed to run {self._path} on a batch of {len(image)}: {_first_line(exc)}."
            ) from exc
        return HeadTensors(*(output.astype(np.float32, copy=False) for output in outputs))

    def _open_mask_iou(self, ort: Any, threads: int | None) -> MaskIouModel | None:
        encoded = self._session.get_modelmeta().custom_metadata_map.get(MASK_IOU_METADATA_KEY)
        providers = self._session.get_providers()

        def open_session(content: bytes) -> Any:
            return ort.InferenceSession(content, session_options(ort, threads), providers=providers)

        return open_mask_iou(encoded, self._spec, str(self._path), open_session)


def _open_session(ort: Any, path: Path, providers: list[Any], threads: int | None) -> Any:
    if not path.is_file():
        raise ArtifactError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}. Give an exported .onnx file."
        )
    options = session_options(ort, threads)
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as exc:  # onnxruntime's exception classes share no public base
        size = path.stat().st_size
        raise ArtifactError(
            f"onnxruntime can't open {path} ({size} bytes): {_first_line(exc)}. "
            "If the file was copied or downloaded, get it again; else export it again with `yolact-deploy export`."
        ) from exc


def session_options(ort: Any, threads: int | None = None) -> Any:
    """onnxruntime options under which a graph with Q/DQ is computed as it says.

    onnxruntime's own Q/DQ rewriting is off: its WeightBiasQuantization rounds biases that were left in float, which costs
    points of AP that a GPU does not lose; and weights behind DQ are then folded once instead of at every run.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _providers(ort: Any, device: str) -> list[Any]:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()) or (index and kind != "cuda"):
        raise DeviceError(f'device must be "auto", "cpu" or "cuda:N", found {device!r}.')
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise DeviceError(
            f"device {device!r} was asked for, but this onnxruntime has no CUDA provider "
            f"(it has {', '.join(ort.get_available_providers())}).\n"
            '  pip uninstall onnxruntime; pip install "yolact-deploy[gpu]"'
        )
    if kind == "cpu" or not has_cuda:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]


def _check_device(session: Any, device: str) -> None:
    """onnxruntime goes on with the CPU, and only logs it, where its CUDA provider can't start."""
    if device.startswith("cuda") and session.get_providers()[0] != "CUDAExecutionProvider":
        raise DeviceError(
            f"device {device!r} was asked for, but onnxruntime's CUDA provider did not start: no such GPU, no driver, or "
            "CUDA and cuDNN libraries of another version. `nvidia-smi` lists the GPUs; `--device cpu` runs without one."
        )


def _read_spec(session: Any, path: Path) -> ModelSpec:
    text = session.get_modelmeta().custom_metadata_map.get(SPEC_METADATA_KEY)
    if text is None:
        raise SpecError(
            f"{path} carries no {SPEC_METADATA_KEY!r} metadata, so its classes, priors and preprocessing are unknown. "
            "Export it from its checkpoint with `yolact-deploy export`."
        )
    try:
        spec = ModelSpec.from_json(text)
    except SpecError as exc:
        raise SpecError(f"{path} carries a spec that can't be used: {exc}") from exc
    expected = {"image": (3, spec.input_size, spec.input_size), **spec.output_shapes()}
    found = {tensor.name: tuple(tensor.shape[1:]) for tensor in (*session.get_inputs(), *session.get_outputs())}
    if found != expected:
        differing = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        listed = ", ".join(f"{name} {_shape(found, name)} instead of {_shape(expected, name)}" for name in differing)
        raise SpecError(
            f"the inputs and outputs of {path} contradict its own spec: it has {listed}. "
            "Export it again with `yolact-deploy export`."
        )
    return spec


def _shape(shapes: Mapping[str, tuple[Any, ...]], name: str) -> str:
    return f"[{', '.join(map(str, ('B', *shapes[name])))}]" if name in shapes else "none"


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0].rstrip(".")[:300]
