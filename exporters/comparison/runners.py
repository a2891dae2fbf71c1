"""Polygraphy's runners of our artifacts, with the outputs of modules marked: each in the runtime, and with the options, that the
Detector runs it with. Polygraphy is imported with this module."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnx import ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata
from polygraphy.logger import G_LOGGER

from yolact_deploy.arrays import AnyArray
from yolact_deploy.artifacts.names import CpuPrecision
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.errors import ArtifactError, DeviceError, EngineError
from yolact_deploy.optional import require
from yolact_deploy.runtime.onnxruntime.network import choose_providers, first_line, session_options
from yolact_deploy.runtime.openvino.library import CPU, Target, compile_network, read_network

_RTX = "tensorrt-rtx"


@contextmanager
def running(runner: Any, name: str) -> Iterator[Any]:
    """An active runner without Polygraphy's talk, as a function of a feed.

    Raises ArtifactError for what its runtime does not open, EngineError for what fails in it.
    """

    def infer(feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        try:
            with _quiet():
                return dict(runner.infer(dict(feed)))
        except Exception as exc:  # of whatever runtime
            raise EngineError(f"{name} could not be run with its modules as outputs: {first_line(exc)}.") from exc

    try:
        with _quiet():
            runner.activate()
    except Exception as exc:
        raise ArtifactError(f"{name} can't be opened with its modules as outputs: {first_line(exc)}.") from exc
    try:
        yield infer
    finally:
        runner.deactivate()


def onnxruntime_runner(model: onnx.ModelProto, outputs: Sequence[str], device: str) -> Any:
    """On the CPU or onnxruntime's CUDA provider. `model` is changed."""
    ort = require("onnxruntime", extra="cpu", purpose="running an ONNX model")
    content = _marked(model, outputs)
    providers = choose_providers(ort, device)
    return OnnxrtRunner(
        lambda: ort.InferenceSession(content, session_options(ort), providers=providers), name="onnxruntime"
    )


def openvino_runner(
    model: onnx.ModelProto, outputs: Sequence[str], name: str, precision: CpuPrecision, device: str = CPU
) -> Any:
    """In OpenVINO, of the file `name`. `model` is changed."""
    return _OpenvinoRunner(_marked(model, outputs), name, Target(device, precision))


def tensorrt_runner(plan: PlanFile) -> Any:
    """Of a plan, which gives nothing but its own outputs. Raises DeviceError for one of TensorRT-RTX."""
    if plan.sidecar.runtime == _RTX:
        raise DeviceError(
            f"{plan.path} is a plan of TensorRT-RTX, which Polygraphy's runner does not open. Compare the ONNX that it was "
            f"built from ({plan.sidecar.onnx_name}) by layers, or leave --layers out."
        )
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(plan.path.read_bytes()), name="tensorrt")


class _OpenvinoRunner(BaseRunner):  # type: ignore[misc]  # Polygraphy has no types
    def __init__(self, content: bytes, file: str, target: Target) -> None:
        super().__init__(name="openvino")
        self._content, self._file, self._target = content, file, target

    def activate_impl(self) -> None:
        self._compiled = compile_network(read_network(self._content, self._file), self._target, self._file)

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata()
        for port in self._compiled.inputs:
            shape = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
            metadata.add(port.get_any_name(), dtype=port.get_element_type().to_dtype(), shape=shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        begin = time.perf_counter()
        found = self._compiled(dict(feed_dict))
        self.inference_time = time.perf_counter() - begin
        # several names may be of one tensor
        return {name: value for port, value in found.items() for name in port.get_names()}

    def deactivate_impl(self) -> None:
        del self._compiled


def _marked(model: onnx.ModelProto, outputs: Sequence[str]) -> bytes:
    with _quiet():
        marked: onnx.ModelProto = ModifyOutputs(model, outputs=list(outputs))()
    content: bytes = marked.SerializeToString()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):  # what fails is raised, and in our words
        yield
