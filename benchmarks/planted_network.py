"""A network on a GPU with objects planted in its heads: to vary the number of detections, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import numpy as np

from benchmarks.gpu_timer import Memory
from yolact_deploy.arrays import AnyArray, FloatArray
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.mask_iou import MaskIouModel
from yolact_deploy.runtime.network import DeviceContext, DeviceNetwork
from yolact_deploy.spec import ModelSpec

_LEAST = 1e-6  # a probability whose logarithm half precision holds


class PlantedNetwork:
    """A DeviceNetwork that runs another one, which it owns, and then overwrites `loc` and `conf` of a single image on the
    device: what follows sees what was planted last."""

    def __init__(self, network: DeviceNetwork, driver: Driver) -> None:
        self._network, self._driver = network, driver
        self._memory = Memory(driver)
        self.sources: dict[str, tuple[int, int]] = {}  # address, bytes
        shapes = network.spec.output_shapes()
        with ExitStack() as undo:
            undo.callback(self.close)
            with driver.current():
                for name in ("loc", "conf"):
                    nbytes = int(np.prod(shapes[name])) * network.dtypes[name].itemsize
                    self.sources[name] = self._memory.device(nbytes, f"planted {name}"), nbytes
            undo.pop_all()

    def plant(
        self,
        loc: FloatArray,  # [1, P, 4]
        conf: FloatArray,  # [1, P, 1 + C], probabilities
    ) -> None:
        """For the runs from now on; nothing may be running."""
        if self.spec.conf_activation != "softmax":
            conf = np.log(np.maximum(conf, _LEAST))
        with self._driver.current(), Memory(self._driver) as memory:
            stream = memory.stream()
            for name, head in (("loc", loc), ("conf", conf)):
                content: AnyArray = np.ascontiguousarray(head, dtype=self.dtypes[name])
                address, nbytes = self.sources[name]
                self._driver.copy_to_device(address, content.ctypes.data, nbytes, stream)
                self._driver.synchronize(stream)

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        return f"{self._network.description}, with planted objects"

    @property
    def dtypes(self) -> Mapping[str, np.dtype[np.generic]]:
        return self._network.dtypes

    @property
    def max_batch(self) -> int | None:
        return 1

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._network.mask_iou

    def new_context(self, stream: int) -> PlantedContext:
        return PlantedContext(self._network.new_context(stream), self._driver, self.sources, stream)

    def close(self) -> None:
        with self._driver.current():
            self._memory.close()
        self._network.close()


class PlantedContext:
    def __init__(
        self, context: DeviceContext, driver: Driver, sources: Mapping[str, tuple[int, int]], stream: int
    ) -> None:
        self._context, self._driver, self._sources, self._stream = context, driver, sources, stream

    @property
    def capturable(self) -> bool:
        return self._context.capturable

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        self._context.enqueue(addresses, batch)
        for name, (source, nbytes) in self._sources.items():
            self._driver.copy_on_device(addresses[name], source, nbytes, self._stream)

    def close(self) -> None:
        self._context.close()
