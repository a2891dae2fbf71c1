"""A GPU for `Detector`: the emulated driver, the kernels in the emulator, onnxruntime's CPU session as the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.emulator.cpu_network import CpuNetwork
from tests.emulator.driver import EmulatedDriver
from yolact_deploy import Detector
from yolact_deploy.artifacts.open import Runnable
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.errors import DeviceError
from yolact_deploy.runtime.gpu.pipeline import GpuBackend


class EmulatedGpu:
    """`backend` opens networks with the given options on `driver`; those it has opened are in `networks`."""

    def __init__(self, driver: EmulatedDriver | None = None, **network_options: Any) -> None:
        self.driver = driver or EmulatedDriver()
        self.networks: list[CpuNetwork] = []
        self.network_options = network_options
        self.allows_tf32: bool | None = None  # of the network that was opened last

    def open(self, artifact: str | os.PathLike[str] | Runnable, **options: Any) -> Detector:
        """A Detector on it."""
        return Detector(artifact, device="cuda:0", gpu=self.backend, **options)

    @property
    def backend(self) -> GpuBackend:
        return GpuBackend(lambda _: None, self._open_driver, self._open_network, self._load_kernels)

    def _open_driver(self, index: int) -> Driver:
        if index != self.driver.device.index:
            raise DeviceError(f"no GPU {index}")
        return self.driver

    def _open_network(self, artifact: Runnable, driver: Driver, threads: int | None, tf32: bool) -> CpuNetwork:
        network = CpuNetwork(artifact.path, driver, threads=threads or 1, **self.network_options)
        self.networks.append(network)
        self.allows_tf32 = tf32
        return network

    def _load_kernels(self, driver: Driver, specialization: Specialization, notice: Callable[[str], None]) -> Kernels:
        return self.driver.load_kernels(specialization)
