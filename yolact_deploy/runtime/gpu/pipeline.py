"""Detection on a GPU: images in, detections with full-size masks out, everything between on the device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray, is_device_array
from yolact_deploy.artifacts.names import INPUT, OUTPUTS, ChannelOrder
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.open import Runnable
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.device_arrays import LoadedImage
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.program import ModelConstants, Request
from yolact_deploy.cuda.specialization import Specialization, specialize
from yolact_deploy.errors import DeviceError, DeviceMemoryError, EngineError, OptionError, YolactDeployError
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.images import check_channel_order, check_image, read_image
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.reference.postprocess import MaskIouModel, make_priors
from yolact_deploy.runtime.gpu.lane import Lane, PendingBatch
from yolact_deploy.runtime.host import HostPipeline
from yolact_deploy.runtime.protocols import DEVICE_STAGES, DeviceNetwork, HeadTensors
from yolact_deploy.spec import ModelSpec, NmsMode

LoadKernels = Callable[[Driver, Specialization, Callable[[str], None]], Kernels]
_GRID_DEPTH = 65535  # blocks that CUDA takes in y and z; counted in masks, though the images of a batch alone would do
_OLDEST_TF32_CAPABILITY = (8, 0)
_LANES = 2  # one image is enqueued while the other is awaited


class GpuPipeline:
    """Owns the network it is given, which is closed with it, and when it can't be set up.

    Raises SpecError for a model that the kernels are not made for, DeviceError and EngineError.
    """

    in_flight = _LANES
    on_gpu = True
    fallback: str | None = None

    def __init__(
        self,
        driver: Driver,
        network: DeviceNetwork,
        load_kernels: LoadKernels,
        *,
        nms: NmsMode | None = None,  # the spec's own
        cuda_graph: bool = True,
    ) -> None:
        self._driver, self._network, self._cuda_graph, self._nms = driver, network, cuda_graph, nms
        self._notes: list[str] = []
        self._lanes: list[Lane] = []
        self._most_lanes = _LANES
        self._stages: HostPipeline | None = None
        self._constants = Buffers(driver)
        self._kernels: Kernels | None = None
        self._is_closed = False
        with ExitStack() as undo:
            undo.callback(self.close)
            self._model = _model(driver, network, nms)
            self._kernels = load_kernels(driver, self._model.specialization, self._notes.append)
            self._upload_priors()
            self._lane()
            undo.pop_all()

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        return f"{self._network.description}, kernels through {self._driver.name}"

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    @property
    def gpu_index(self) -> int:
        return self._driver.device.index

    @property
    def graph_stages(self) -> tuple[str, ...]:
        captured = frozenset().union(*(lane.graph_stages for lane in self._lanes))
        return tuple(stage for stage in DEVICE_STAGES if stage in captured)

    @property
    def max_batch(self) -> int:
        most = _GRID_DEPTH // self._model.specialization.max_out
        return min(self._network.max_batch or most, most)

    @property
    def stages(self) -> HostPipeline:
        """The network here, the rest in NumPy: the reference for what the kernels do."""
        if self._stages is None:
            heads = HeadsOnHost(self._driver, self._network, owns_network=False)
            self._stages = HostPipeline(heads, nms=self._nms)
        return self._stages

    def load(self, item: Any, channel_order: ChannelOrder) -> LoadedImage:
        if isinstance(item, (str, os.PathLike)):
            return LoadedImage(read_image(item), is_rgb=False, on_device=False)
        check_channel_order(channel_order)
        is_rgb = channel_order == "rgb"  # either is left as it is: the kernel reads both
        if is_device_array(item):
            return LoadedImage(item, is_rgb, on_device=True)
        return LoadedImage(check_image(item), is_rgb, on_device=False)

    def submit(self, images: Sequence[LoadedImage], score_threshold: float, masks: MaskForm) -> PendingBatch:
        request = Request(score_threshold, masks)
        lane = self._lane()
        try:
            return lane.submit(images, request)
        except DeviceMemoryError as exc:
            if lane is self._lanes[0]:
                raise
            self._do_with_one_lane(exc)
            return self._lane().submit(images, request)

    def timed(
        self, images: Sequence[LoadedImage], score_threshold: float, masks: MaskForm
    ) -> tuple[list[Detections], dict[str, float]]:
        found, stages = self._lane().timed(images, Request(score_threshold, masks))
        return found, {str(stage): time for stage, time in stages.items()}

    def close(self) -> None:
        """Give everything back; safe to call twice, and in a context that another library has reset."""
        if self._is_closed:
            return
        self._is_closed = True
        for lane in self._lanes:
            lane.close()
        if self._stages is not None:
            self._stages.close()
        with contextlib.suppress(DeviceError), self._driver.current():
            if self._kernels is not None:
                with contextlib.suppress(DeviceError):
                    self._kernels.close()
            self._constants.close()
        with contextlib.suppress(DeviceError):
            self._network.close()

    def _lane(self) -> Lane:
        """One that is idle. The second is made when the first is busy for the first time."""
        if self._is_closed:  # by now the lanes' streams are destroyed, which the driver would not notice
            raise EngineError("this Detector was closed, so it takes no more images. Open another one.")
        for lane in self._lanes:
            if lane.is_idle:
                return lane
        if len(self._lanes) < self._most_lanes and self._kernels is not None:
            try:
                self._lanes.append(self._new_lane(self._kernels))
            except DeviceMemoryError as exc:
                if not self._lanes:
                    raise
                self._do_with_one_lane(exc)
            else:
                return self._lanes[-1]
        return self._lanes[0]  # which finishes what it has to do first

    def _new_lane(self, kernels: Kernels) -> Lane:
        priors = self._constants.address("priors")
        return Lane(
            self._driver,
            self._model,
            self._network,
            kernels,
            priors,
            cuda_graph=self._cuda_graph,
            note=self._notes.append,
        )

    def _do_with_one_lane(self, reason: DeviceMemoryError) -> None:
        """Two batches in flight are faster than one, which is better than none."""
        self._most_lanes = 1
        for lane in self._lanes[1:]:
            lane.close()
        del self._lanes[1:]
        self._notes.append(f"one batch is in flight at a time, as there is no memory for a second one: {reason}")

    def _upload_priors(self) -> None:
        priors = np.ascontiguousarray(make_priors(self.spec))
        driver = self._driver
        with driver.current(), ExitStack() as stack:
            stream = driver.create_stream()
            stack.callback(driver.destroy_stream, stream)
            self._constants.reserve({"priors": priors.nbytes}, {})
            driver.copy_to_device(self._constants.address("priors"), priors.ctypes.data, priors.nbytes, stream)
            driver.synchronize(stream)


def _model(driver: Driver, network: DeviceNetwork, nms: NmsMode | None) -> ModelConstants:
    half = {name: network.dtypes[name] == np.float16 for name in (INPUT, *OUTPUTS)}
    specialization = specialize(network.spec, nms=nms, fp16_tensors=half)
    return ModelConstants.of(
        network.spec,
        specialization,
        scores_masks=network.mask_iou is not None,
        multiprocessors=driver.device.multiprocessors,
    )


class HeadsOnHost:
    """A `Network` over a DeviceNetwork. Raises DeviceError or EngineError."""

    max_batch: int | None = None  # `run` splits what is too large

    def __init__(
        self,
        driver: Driver,
        network: DeviceNetwork,
        *,
        owns_network: bool = True,  # closes it when it is closed, or can't be set up
    ) -> None:
        self._driver, self._network, self._owns_network = driver, network, owns_network
        self._buffers = Buffers(driver)
        with driver.current(), ExitStack() as undo:
            if owns_network:
                undo.callback(network.close)
            self._stream = driver.create_stream()
            undo.callback(driver.destroy_stream, self._stream)
            self._context = network.new_execution_context(self._stream)
            undo.pop_all()

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        return self._network.description

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._network.mask_iou

    def run(self, image: FloatArray) -> HeadTensors:
        """Heads in float32, in batches of the network's size."""
        limit = self._network.max_batch or len(image)
        parts = [self._run(image[start : start + limit]) for start in range(0, len(image), limit)]
        return HeadTensors(
            *(np.concatenate(heads) if len(heads) > 1 else heads[0] for heads in zip(*parts, strict=True))
        )

    def close(self) -> None:
        """Give its device memory back, and close the network if it is its own."""
        with contextlib.suppress(DeviceError), self._driver.current():
            for close in (self._context.close, self._buffers.close):
                with contextlib.suppress(YolactDeployError):
                    close()
            self._driver.destroy_stream(self._stream)
        if self._owns_network:
            self._network.close()

    def _run(self, image: FloatArray) -> HeadTensors:
        batch, driver = len(image), self._driver
        shapes = self.spec.io_shapes()
        dtypes = self._network.dtypes
        sizes = {
            name: batch * int(np.prod(shape, dtype=np.int64)) * dtypes[name].itemsize for name, shape in shapes.items()
        }
        with driver.current():
            self._buffers.reserve(sizes, sizes)
            views: dict[str, AnyArray] = {
                name: self._buffers.pinned_view(name, nbytes).view(dtypes[name]).reshape(batch, *shapes[name])
                for name, nbytes in sizes.items()
            }
            addresses = {name: self._buffers.address(name) for name in sizes}
            try:
                views[INPUT][...] = image
                pixels = self._buffers.pinned_address(INPUT)
                driver.copy_to_device(addresses[INPUT], pixels, sizes[INPUT], self._stream)
                self._context.enqueue(addresses, batch)
                for name in OUTPUTS:
                    host = self._buffers.pinned_address(name)
                    driver.copy_to_host(host, addresses[name], sizes[name], self._stream)
            finally:
                driver.synchronize(self._stream)
        return HeadTensors(*(views[name].astype(np.float32) for name in OUTPUTS))


@dataclass(frozen=True)
class GpuBackend:
    """How each part of a GPU is opened; tests hand in their own. All raise DeviceError, EngineError or MissingDependencyError
    for what is not there."""

    check_network: Callable[[Runnable], None]  # whether networks of its kind can run on a GPU at all; costs nothing
    open_driver: Callable[[int], Driver]
    open_network: Callable[[Runnable, Driver, int | None, bool], DeviceNetwork]  # CPU threads; whether TF32 is allowed
    load_kernels: Callable[[Driver, Specialization, Callable[[str], None]], Kernels]


def open_gpu_pipeline(
    artifact: Runnable,
    index: int,  # of the GPU
    *,
    threads: int | None,
    nms: NmsMode | None,
    cuda_graph: bool,
    tf32: bool = False,
    backend: GpuBackend | None = None,  # REAL_GPU
) -> GpuPipeline | HostPipeline:
    """The kernels around the network; for traditional NMS, which they do not do, NumPy around the network.

    Raises DeviceError, EngineError, MissingDependencyError, SpecError for a model that the kernels are not made for, and
    OptionError for `tf32` on a GPU that has none.
    """
    parts = backend or REAL_GPU
    parts.check_network(artifact)
    driver = parts.open_driver(index)
    if tf32 and driver.device.compute_capability < _OLDEST_TF32_CAPABILITY:
        raise OptionError(
            f"gpu_precision can't be 'tf32' here: it takes a GPU since Ampere (compute capability 8.0), and cuda:{index} "
            f"({driver.device.name}) has {'.'.join(map(str, driver.device.compute_capability))}. Leave it out."
        )
    network = parts.open_network(artifact, driver, threads, tf32)
    if (nms or network.spec.postprocess.nms) == "traditional":
        return HostPipeline(
            HeadsOnHost(driver, network),
            nms=nms,
            suffix=", the rest on the CPU",
            notes=("Traditional NMS runs on the CPU: only the network is on the GPU.",),
            gpu_index=index,
        )
    return GpuPipeline(driver, network, parts.load_kernels, nms=nms, cuda_graph=cuda_graph)


def _check_network(artifact: Runnable) -> None:
    if isinstance(artifact, OnnxFile):
        from yolact_deploy.optional import require
        from yolact_deploy.runtime.onnxruntime.network import choose_providers

        choose_providers(require("onnxruntime", extra="gpu", purpose="running an ONNX model on a GPU"), "cuda")


def _open_driver(index: int) -> Driver:
    from yolact_deploy.cuda.drivers.opening import open_driver

    return open_driver(index)


def _open_network(artifact: Runnable, driver: Driver, threads: int | None, tf32: bool) -> DeviceNetwork:
    if isinstance(artifact, OnnxFile):
        from yolact_deploy.runtime.onnxruntime.cuda import OnnxCudaNetwork

        return OnnxCudaNetwork(artifact, driver, threads=threads, tf32=tf32)
    from yolact_deploy.runtime.tensorrt.network import PlanNetwork

    return PlanNetwork(artifact, driver, threads=threads)


def _load_kernels(driver: Driver, specialization: Specialization, notice: Callable[[str], None]) -> Kernels:
    from yolact_deploy.cuda.compile import load_kernels

    return load_kernels(driver, specialization, notice)


REAL_GPU: Final = GpuBackend(_check_network, _open_driver, _open_network, _load_kernels)
