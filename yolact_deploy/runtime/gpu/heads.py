"""A network on a GPU whose heads come to the host: for what the kernels do not do, and to look at stages by themselves."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray
from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import DeviceError, YolactDeployError
from yolact_deploy.reference.mask_iou import MaskIouModel
from yolact_deploy.runtime.protocols import DeviceNetwork, HeadTensors
from yolact_deploy.spec import ModelSpec


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
            self._context = network.new_context(self._stream)
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
