"""Networks for tests of the GPU path where there is no GPU: onnxruntime's CPU session between device buffers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tests.emulator.driver import EmulatedDriver
from yolact_deploy.arrays import AnyArray
from yolact_deploy.artifacts.names import OUTPUTS
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

RunHeads = Callable[[AnyArray], HeadTensors]


class CpuNetwork:
    """An ONNX file as a DeviceNetwork that copies through the host, by nothing but the Driver interface.

    `in_stream` (with an EmulatedDriver) computes where the stream comes to it instead, so that it can be captured, as a
    plan can be. `alter` changes the heads of a batch before they are handed on; `wrap_mask_iou` puts
    something around the network that scores masks.
    """

    def __init__(
        self,
        path: Path,
        driver: Driver,
        *,
        threads: int | None = 1,
        in_stream: bool = False,
        half: bool = False,
        max_batch: int | None = None,
        alter: Callable[[HeadTensors], HeadTensors] | None = None,
        wrap_mask_iou: Callable[[MaskIouModel], MaskIouModel] | None = None,
    ) -> None:
        self._network = OnnxNetwork(path, device="cpu", threads=threads)
        self._driver, self._in_stream, self._alter = driver, in_stream, alter
        model = self._network.mask_iou
        self.mask_iou = wrap_mask_iou(model) if wrap_mask_iou is not None and model is not None else model
        dtype = np.dtype(np.float16 if half else np.float32)
        self.dtypes: Mapping[str, np.dtype[Any]] = dict.fromkeys(("image", *OUTPUTS), dtype)
        self.max_batch = max_batch
        self.batches: list[int] = []  # of every run
        self.is_closed = False

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        return f"{self.engine} between device buffers"

    @property
    def engine(self) -> str:
        return self._network.description

    def new_execution_context(self, stream: int) -> CpuContext | InStreamContext:
        if self._in_stream:
            assert isinstance(self._driver, EmulatedDriver)
            return InStreamContext(self._run, self.shapes, self.dtypes, self._driver, stream)
        return CpuContext(self._run, self.shapes, self.dtypes, self._driver, stream)

    def close(self) -> None:
        self.is_closed = True

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        size = self.spec.input_size
        each = {"image": (3, size, size), **self.spec.output_shapes()}
        return {name: (batch, *shape) for name, shape in each.items()}

    def _run(self, image: AnyArray) -> HeadTensors:
        self.batches.append(len(image))
        heads = self._network.run(image.astype(np.float32))
        return heads if self._alter is None else self._alter(heads)


Shapes = Callable[[int], dict[str, tuple[int, ...]]]


class CpuContext:
    """Waits for the stream, runs, and copies the heads back."""

    capturable = False

    def __init__(
        self, run: RunHeads, shapes: Shapes, dtypes: Mapping[str, np.dtype[Any]], driver: Driver, stream: int
    ) -> None:
        self._run, self._shapes, self._dtypes, self._driver, self._stream = run, shapes, dtypes, driver, stream
        self._pinned: dict[str, tuple[int, int]] = {}  # address, bytes

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        shapes = self._shapes(batch)
        image = self._array("image", shapes["image"])
        self._driver.copy_to_host(image.ctypes.data, addresses["image"], image.nbytes, self._stream)
        self._driver.synchronize(self._stream)
        heads = self._run(image)._asdict()
        for name in OUTPUTS:
            head = self._array(name, shapes[name])
            head[...] = heads[name]
            self._driver.copy_to_device(addresses[name], head.ctypes.data, head.nbytes, self._stream)

    def close(self) -> None:
        with ExitStack() as stack:
            for address, _ in self._pinned.values():
                stack.callback(self._driver.free_pinned, address)
        self._pinned.clear()

    def _array(self, name: str, shape: tuple[int, ...]) -> AnyArray:
        dtype = self._dtypes[name]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        address, capacity = self._pinned.get(name, (0, 0))
        if capacity < nbytes:
            if address:
                self._driver.free_pinned(address)
            address = self._driver.allocate_pinned(nbytes, name)
            self._pinned[name] = address, nbytes
        memory = memoryview((ctypes.c_uint8 * nbytes).from_address(address))
        array: AnyArray = np.ndarray(shape, dtype, buffer=memory)
        return array


class InStreamContext:
    """Runs where an EmulatedDriver's stream comes to it."""

    capturable = True

    def __init__(
        self, run: RunHeads, shapes: Shapes, dtypes: Mapping[str, np.dtype[Any]], driver: EmulatedDriver, stream: int
    ) -> None:
        self._run, self._shapes, self._dtypes, self._driver, self._stream = run, shapes, dtypes, driver, stream

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        arrays = {
            name: self._driver.view(addresses[name], int(np.prod(shape)) * self._dtypes[name].itemsize)
            .view(self._dtypes[name])
            .reshape(shape)
            for name, shape in self._shapes(batch).items()
        }

        def work() -> None:
            heads = self._run(arrays["image"])._asdict()
            for name in OUTPUTS:
                arrays[name][...] = heads[name]

        self._driver.call(self._stream, work)

    def close(self) -> None:
        pass
