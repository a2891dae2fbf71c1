"""How cost grows with work on a GPU: the points of a sweep, by the Detector's own parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from benchmarks.device import DeviceSamples, Memory, open_driver, open_network, open_pipeline
from benchmarks.subjects import synthetic_scores
from yolact_deploy import Detector
from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.reference.postprocess import MaskIouModel, make_priors
from yolact_deploy.runtime.protocols import DeviceNetwork, ExecutionContext
from yolact_deploy.spec import ModelSpec

_LEAST_SCORE = 0.25  # below all that is planted, above all that is not
_NETWORK = "network"
_LEAST = 1e-6  # a probability whose logarithm half precision holds


class DevicePoints:
    """Each kind in a pipeline of its own around a network of its own. Raises EngineError where that finds no room."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    @contextmanager
    def batches(self) -> Iterator[Callable[[Callable[[], list[Image]]], dict[str, Any]]]:
        detector, driver = self._detector, open_driver(self._detector)
        with open_pipeline(detector, driver, open_network(detector, driver)) as calls:

            def time_batch(inputs: Callable[[], list[Image]]) -> dict[str, Any]:
                samples = DeviceSamples(detector, calls)
                samples.repeat(inputs)
                return samples.times()

            yield time_batch

    @contextmanager
    def work(self) -> Iterator[Callable[[Image, int], dict[str, Any]]]:
        """Objects are planted on the device, behind the network, which runs as ever but is not shown as a stage."""
        detector, driver = self._detector, open_driver(self._detector)
        priors, classes = make_priors(detector.spec), len(detector.spec.class_names)
        network = SyntheticHeadsNetwork(open_network(detector, driver), driver)
        with open_pipeline(detector, driver, network) as calls:

            def time_work(image: Image, count: int) -> dict[str, Any]:
                network.set_heads(*synthetic_scores(priors, classes, count))
                samples = DeviceSamples(detector, calls)
                samples.repeat(lambda: [image], _LEAST_SCORE)
                (found,) = calls([image], score_threshold=_LEAST_SCORE)
                times = samples.times()
                del times["stages_ms"][_NETWORK]
                return {"detections": len(found), **times}

            yield time_work


class SyntheticHeadsNetwork:
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

    def set_heads(
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
    def engine(self) -> str:
        return self._network.engine

    @property
    def dtypes(self) -> Mapping[str, np.dtype[np.generic]]:
        return self._network.dtypes

    @property
    def max_batch(self) -> int | None:
        return 1

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._network.mask_iou

    def new_execution_context(self, stream: int) -> SyntheticHeadsContext:
        return SyntheticHeadsContext(self._network.new_execution_context(stream), self._driver, self.sources, stream)

    def close(self) -> None:
        with self._driver.current():
            self._memory.close()
        self._network.close()


class SyntheticHeadsContext:
    """A network's context whose heads are then replaced by planted ones."""

    def __init__(
        self, context: ExecutionContext, driver: Driver, sources: Mapping[str, tuple[int, int]], stream: int
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
