"""What a GPU path is made of, and whether it can be made here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.cuda.driver import Driver
from yolact_deploy.cuda.kernels import Kernels
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.runtime.gpu_heads import HeadsOnHost
from yolact_deploy.runtime.gpu_pipeline import GpuPipeline
from yolact_deploy.runtime.host_pipeline import HostPipeline
from yolact_deploy.runtime.network import DeviceNetwork
from yolact_deploy.spec import NmsMode

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class GpuBackend:
    """The parts. All raise DeviceError, EngineError or MissingDependencyError for what is not there."""

    check_network: Callable[[Path], None]  # whether networks of a file's kind can run on a GPU at all; costs nothing
    open_driver: Callable[[int], Driver]
    open_network: Callable[[Path, Driver, int | None], DeviceNetwork]
    load_kernels: Callable[[Driver, Specialization, Callable[[str], None]], Kernels]


def open_gpu_pipeline(
    artifact: Path,
    index: int,  # of the GPU
    *,
    threads: int | None,
    nms: NmsMode | None,
    cuda_graph: bool,
) -> GpuPipeline | HostPipeline:
    """The kernels around the network; for traditional NMS, which they do not do, NumPy around the network.

    Raises DeviceError, EngineError, MissingDependencyError, and SpecError for a model that the kernels are not made for.
    """
    parts = BACKEND
    parts.check_network(artifact)
    driver = parts.open_driver(index)
    network = parts.open_network(artifact, driver, threads)
    if (nms or network.spec.postprocess.nms) == "traditional":
        return HostPipeline(
            HeadsOnHost(driver, network),
            nms=nms,
            suffix=", the rest on the CPU",
            notes=("Traditional NMS runs on the CPU: only the network is on the GPU.",),
        )
    return GpuPipeline(driver, network, parts.load_kernels, nms=nms, cuda_graph=cuda_graph)


def _check_network(artifact: Path) -> None:
    if artifact.suffix.lower() == ONNX_SUFFIX:
        from yolact_deploy.optional import require
        from yolact_deploy.runtime.onnx_network import choose_providers

        choose_providers(require("onnxruntime", extra="gpu", purpose="running an ONNX model on a GPU"), "cuda")


def _open_driver(index: int) -> Driver:
    from yolact_deploy.cuda.drivers import open_driver

    return open_driver(index)


def _open_network(artifact: Path, driver: Driver, threads: int | None) -> DeviceNetwork:
    if artifact.suffix.lower() == ONNX_SUFFIX:
        from yolact_deploy.runtime.onnx_cuda_network import OnnxCudaNetwork

        return OnnxCudaNetwork(artifact, driver, threads=threads)
    from yolact_deploy.runtime.plan_network import PlanNetwork

    return PlanNetwork(artifact, driver, threads=threads)


def _load_kernels(driver: Driver, specialization: Specialization, notice: Callable[[str], None]) -> Kernels:
    from yolact_deploy.cuda.kernels import load_kernels

    return load_kernels(driver, specialization, notice)


BACKEND = GpuBackend(_check_network, _open_driver, _open_network, _load_kernels)  # tests put another one here
