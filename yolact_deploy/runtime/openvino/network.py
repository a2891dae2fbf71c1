"""A YOLACT in OpenVINO, and the mask-IoU network that a YOLACT++ carries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray
from yolact_deploy.artifacts.names import INPUT, MASK_IOU_INPUT, MASK_IOU_OUTPUT, OUTPUTS
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.errors import ArtifactError, EngineError, SpecError
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.openvino.library import (
    Target,
    compile_network,
    load_openvino,
    openvino_name,
    read_network,
    told,
)
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec


class OpenvinoNetwork:
    """An exported ONNX in OpenVINO, on the CPU or on another of its devices.

    Two runs may be on their way at once: what comes before the one and after the other need not wait. Raises ArtifactError
    for a file that is no ONNX model or that OpenVINO can't run, SpecError for one without our metadata or whose input and
    outputs contradict it, DeviceError for a device or an arithmetic that there is not, MissingDependencyError.
    """

    runs_at_once = 2

    def __init__(self, source: str | os.PathLike[str] | OnnxFile, target: Target = Target()) -> None:  # noqa: B008
        load_openvino()
        file = open_onnx(source)
        file.check_io()
        self._path, self._spec, self._max_batch = file.path, file.spec, file.fixed_batch
        self._dtypes = {name: np.dtype(dtype) for name, dtype in file.dtypes.items()}
        content = file.mask_iou
        self._shapes = file.spec.output_shapes()
        self._target = target
        # read once: what is compiled later is the same model, whatever has become of the file
        self._model = read_network(self._path, str(self._path))
        self._compiled: dict[int | None, _Compiled] = {}
        self._compiled_for(1)
        self._mask_iou = mask_iou_model(content, self._spec, str(self._path), target)
        self.description = describe(target)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._mask_iou

    @property
    def max_batch(self) -> int | None:
        """What the batch was fixed to at export; None for any."""
        return self._max_batch

    def run(self, image: FloatArray) -> HeadTensors:
        """Heads of a preprocessed batch [B, 3, S, S], float32. Raises EngineError for what fails in OpenVINO."""
        return self.start(image)()

    def start(self, image: FloatArray) -> Callable[[], HeadTensors]:
        """Begin with a preprocessed batch [B, 3, S, S], and return at once; what is returned waits for its heads, float32, and
        has to be called. Both raise EngineError for what fails in OpenVINO."""
        outputs = {name: np.empty((len(image), *self._shapes[name]), self._dtypes[name]) for name in OUTPUTS}
        what = f"{self._path} on a batch of {len(image)}"
        request = self._compiled_for(len(image)).free_request()
        request.start({INPUT: np.ascontiguousarray(image, self._dtypes[INPUT])}, outputs, what)

        def finish() -> HeadTensors:
            request.wait()
            return HeadTensors(*(outputs[name].astype(np.float32, copy=False) for name in OUTPUTS))

        return finish

    def close(self) -> None:
        """Wait for what is on its way, and give memory back."""
        for compiled in self._compiled.values():
            for request in compiled.requests:
                request.end()
        self._compiled.clear()
        self._model = self._mask_iou = None

    def _compiled_for(self, batch: int) -> _Compiled:
        """One image at a time is the usual way on a CPU: the file is compiled for it, which is faster than for any batch by a
        tenth where the network is small, and spares the first run its preparations. Another batch compiles it for any."""
        key = 1 if batch == 1 and self._max_batch is None else None
        if key not in self._compiled:
            self._compiled[key] = _Compiled(compile_network(self._model, self._target, str(self._path), batch=key), [])
        return self._compiled[key]


class _Compiled(NamedTuple):
    """A compiled model and its requests."""

    model: Any
    requests: list[InferRequest]

    def free_request(self) -> InferRequest:
        """One that nobody waits for, or a new one."""
        for request in self.requests:
            if not request.is_busy:
                return request
        self.requests.append(InferRequest(self.model))
        return self.requests[-1]


class InferRequest:
    """A run of a compiled model at a time, from arrays into arrays, which are kept until it is over, and not copied, but for
    inputs that may not be written to."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._arrays: tuple[Mapping[str, AnyArray], Mapping[str, AnyArray]] | None = None
        self._what = ""
        self._process = os.getpid()

    @property
    def is_busy(self) -> bool:
        """Whether it was started, and not waited for."""
        return self._arrays is not None

    def start(
        self,
        inputs: Mapping[str, AnyArray],  # contiguous
        outputs: Mapping[
            str, AnyArray
        ],  # contiguous, of their shapes; those that are not among them are OpenVINO's own
        what: str,  # runs, for errors
    ) -> None:
        """Return at once. Raises EngineError."""
        self._check_process(what)
        tensor = load_openvino().Tensor
        self._what = what
        # OpenVINO shares no memory that it may not write to, as that of an image of Pillow's
        inputs = {name: array if array.flags.writeable else array.copy() for name, array in inputs.items()}
        try:
            for name, array in (*inputs.items(), *outputs.items()):
                self._request.set_tensor(name, tensor(array, shared_memory=True))
            self._request.start_async()
        except Exception as exc:  # RuntimeError
            raise self._failed(exc) from exc
        self._arrays = inputs, outputs

    def wait(self) -> None:
        """Until the outputs are there. Raises EngineError."""
        self._check_process(self._what)
        if not self.is_busy:
            raise EngineError(f"{self._what} was broken off: the Detector has been closed. Open another one.")
        try:
            self._request.wait()
        except Exception as exc:  # RuntimeError
            raise self._failed(exc) from exc
        finally:
            self._arrays = None

    def end(self) -> None:
        """Wait for a run that nobody wants any more."""
        if self.is_busy and self._process == os.getpid():
            self._request.cancel()
            with contextlib.suppress(Exception):  # it was cancelled, or failed
                self._request.wait()
            self._arrays = None

    def output(self, name: str) -> AnyArray:
        """A copy of an output that was left to OpenVINO."""
        found: AnyArray = self._request.get_tensor(name).data.copy()
        return found

    def _check_process(self, what: str) -> None:
        """Raise EngineError in a forked process, where OpenVINO would wait for ever for threads that only the first one has."""
        if self._process != os.getpid():
            raise EngineError(
                f"{what} can't be run in OpenVINO in a process that was forked after the model had been opened. "
                "Open a Detector in each process."
            )

    def _failed(self, exc: Exception) -> EngineError:
        return EngineError(f"OpenVINO failed to run {self._what}: {told(exc)}.")


def describe(target: Target) -> str:
    """OpenVINO's version, the device and what it computes float32 layers in, for people."""
    arithmetic = "" if target.precision == "f32" else f", {target.precision}"
    return f"{openvino_name()} ({target.device}{arithmetic})"


def mask_iou_model(content: bytes | None, spec: ModelSpec, source: str, target: Target) -> MaskIouModel | None:
    """A mask-IoU network's ONNX file as a function of soft masks [n, Hp, Wp]; None where there is none.

    Raises SpecError, naming `source`, when it can't be opened or is of other sizes than the spec says.
    """
    if content is None:
        return None
    try:
        name = f"the mask-IoU network in {source}"
        compiled = compile_network(read_network(content, name), target, name)
    except ArtifactError as exc:
        raise SpecError(str(exc)) from exc
    request = InferRequest(compiled)
    found = [_sizes(port) for port in (compiled.input(0), compiled.output(0))]
    expected = [[spec.proto_size, spec.proto_size], [spec.num_classes]]
    if found != expected:
        raise SpecError(
            f"the mask-IoU network in {source} maps {found[0]} to {found[1]}, its spec makes it {expected[0]} to {expected[1]}. "
            "Export it again with `yolact-deploy export`."
        )

    def judge(masks: FloatArray) -> FloatArray:
        judged = np.empty((len(masks), spec.num_classes), np.float32)
        if len(masks):
            inputs = {MASK_IOU_INPUT: np.ascontiguousarray(masks, np.float32)}
            request.start(inputs, {MASK_IOU_OUTPUT: judged}, f"the mask-IoU network of {source} on {len(masks)} masks")
            request.wait()
        return judged

    return judge


def _sizes(port: Any) -> list[int]:
    """Of an input or output, but for the batch; -1 for one that is chosen at run time."""
    return [size.get_length() if size.is_static else -1 for size in list(port.partial_shape)[1:]]
