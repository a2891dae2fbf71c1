"""What the host adds to a frame on a GPU, without one: `python -m benchmarks.figures.host_overhead`.

A `Detector` runs over a driver and a network that do nothing; the detections it reads were put there beforehand. Prints, in
microseconds: a whole frame (the same image again and again, as a replayed CUDA graph); how long the copy of its pixels into
page-locked memory takes alone; the difference, which is Python; and a frame whose masks have to be copied out of page-locked
memory, as more results are kept than may stay there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx

from benchmarks.statistics import percentiles
from exporters.checkpoints.configs import published_spec
from yolact_deploy import Detector
from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.cuda.buffers import MAX_BLOCKS
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Argument, Driver, GpuDevice
from yolact_deploy.cuda.launches import Launch, result_buffers
from yolact_deploy.cuda.program import pack
from yolact_deploy.cuda.specialization import Specialization, specialize
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.gpu.pipeline import GpuBackend
from yolact_deploy.spec import ModelSpec

IMAGE_SIZES_HW = ((550, 550), (1080, 1920))
DETECTIONS = (0, 10, 100)
_WARMUP = 20
_PAGE = 4096


def main() -> None:
    """Time the host's part of a frame, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="yolact_base", help="whose sizes the model has")
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [
        measure(arguments.config, image_hw, detections, arguments.repeats)
        for image_hw in IMAGE_SIZES_HW
        for detections in DETECTIONS
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{'image':>9} {'found':>5} {'frame':>8} {'pixels':>8} {'Python':>8} {'all kept':>8}  driver calls of a frame"
    )
    for row in rows:
        height, width = row["image_hw"]
        times = "{frame_us:8.1f} {pixels_us:8.1f} {python_us:8.1f} {kept_us:8.1f}".format(**row)
        calls = ", ".join(f"{count} {name}" for name, count in row["driver_calls"].items())
        print(f"{f'{height}x{width}':>9} {row['detections']:>5} {times}  {calls}")


def measure(config: str, image_hw: tuple[int, int], detections: int, repeats: int) -> dict[str, Any]:
    """{"image_hw", "detections", "frame_us", "pixels_us", "python_us", "kept_us": medians, "pixels_bytes", "masks_bytes",
    "driver_calls": of a frame by name}."""
    image = np.full((*image_hw, 3), 127, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        run = _frames(NullDriver(), config, folder, image, detections)
        frame_us = _median_us(run, repeats)
        _kept = [run() for _ in range(MAX_BLOCKS)]
        kept_us = _median_us(run, repeats)
        counter = CallCounter(NullDriver())
        run = _frames(counter, config, folder, image, detections)
        counter.calls.clear()
        run()
    staging = np.zeros(image.size, np.uint8).reshape(image.shape)
    pixels_us = _median_us(lambda: np.copyto(staging, image), repeats)
    return {
        "image_hw": list(image_hw),
        "detections": detections,
        "frame_us": frame_us,
        "pixels_us": pixels_us,
        "python_us": frame_us - pixels_us,
        "kept_us": kept_us,
        "pixels_bytes": image.nbytes,
        "masks_bytes": 4 * int(_windows(image_hw, detections)[1][-1]),
        "driver_calls": dict(counter.calls),
    }


def _frames(driver: Any, config: str, folder: str, image: Any, detections: int) -> Callable[[], object]:
    """A steady frame of a Detector that finds so many."""
    artifact = null_artifact(Path(folder))
    spec = published_spec(config)
    detector = Detector(artifact, device="cuda:0", gpu=null_backend(driver, NullNetwork(spec)))
    results = pack(result_buffers(specialize(spec), 1))
    detector(image)
    windows, starts = _windows(image.shape[:2], detections)
    write_block(driver.results, results.offsets["windows"], windows)
    write_block(driver.results, results.offsets["window_start"], starts)
    write_block(driver.results, results.offsets["count"], np.array([detections], np.int32))
    for _ in range(_WARMUP):
        if len(detector(image)) != detections:
            raise SystemExit("the detections put in place were not read.")
    return lambda: detector(image)


def null_artifact(folder: Path) -> Path:
    """An ONNX to open where a network of one's own takes its place."""
    artifact = folder / "null.onnx"
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", [INPUT], [OUTPUTS[0]])], "null", [], [])
    onnx.save(onnx.helper.make_model(graph), str(artifact))
    return artifact


def _windows(image_hw: tuple[int, int], detections: int) -> tuple[AnyArray, AnyArray]:
    """Windows of half the image's height and width, and where their words begin; the rest of 100 are empty."""
    windows = np.zeros((100, 4), np.int32)
    windows[:detections, 2:] = image_hw[0] // 2, -(-image_hw[1] // 64)
    return windows, np.cumsum([0, *(windows[:, 2] * windows[:, 3])]).astype(np.uint32)


def _median_us(work: Callable[[], object], repeats: int) -> float:
    times_ns = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            begin = perf_counter_ns()
            work()
            times_ns.append(perf_counter_ns() - begin)
    finally:
        gc.enable()
    return percentiles(times_ns)["p50"] * 1e3


class NullDriver:
    """A `Driver`: page-locked memory is the host's, addresses on the device are numbers, and whatever is enqueued is done.

    `results` is the page-locked block that the first copy from the device goes to: of a frame, its results.
    """

    name = "null driver"
    captures_cuda_graphs = True

    def __init__(self) -> None:
        self.device = GpuDevice(0, "null GPU", (9, 0), (13, 0), 1 << 40, 1)
        self.results: Image | None = None
        self._pinned: dict[int, Image] = {}  # by their addresses
        self._context: AbstractContextManager[None] = contextlib.nullcontext()
        self._addresses = itertools.count(1 << 40, 1 << 32)
        self._handles = itertools.count(1)

    def current(self) -> AbstractContextManager[None]:
        return self._context

    def allocate(self, nbytes: int, purpose: str) -> int:
        return next(self._addresses)

    def free(self, address: int) -> None:
        pass

    def allocate_pinned(self, nbytes: int, purpose: str) -> int:
        block: Image = np.zeros(nbytes + _PAGE, np.uint8)
        first = -block.ctypes.data % _PAGE  # as the driver's is
        address: int = block.ctypes.data + first
        self._pinned[address] = block[first : first + nbytes]
        return address

    def free_pinned(self, address: int) -> None:
        del self._pinned[address]

    def lock_pages(self, address: int, nbytes: int) -> None:
        pass

    def unlock_pages(self, address: int) -> None:
        pass

    def memory_info(self) -> tuple[int, int]:
        return self.device.memory_bytes, self.device.memory_bytes

    def device_of(self, address: int) -> int | None:
        return 0

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        pass

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        if self.results is None:
            self.results = self._pinned[target]

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        pass

    def create_stream(self) -> int:
        return next(self._handles)

    def destroy_stream(self, stream: int) -> None:
        pass

    def synchronize(self, stream: int) -> None:
        pass

    def create_event(self, *, timing: bool = False) -> int:
        return next(self._handles)

    def destroy_event(self, event: int) -> None:
        pass

    def record(self, event: int, stream: int) -> None:
        pass

    def wait(self, stream: int, event: int) -> None:
        pass

    def synchronize_event(self, event: int) -> None:
        pass

    def elapsed_ms(self, start: int, end: int) -> float:
        return 0.0

    def load_module(self, image: bytes) -> int:
        return next(self._handles)

    def unload_module(self, module: int) -> None:
        pass

    def get_function(self, module: int, name: str) -> int:
        return next(self._handles)

    def launch(self, function: int, launch: Launch, arguments: Sequence[Argument], stream: int) -> None:
        pass

    def begin_capture(self, stream: int) -> None:
        pass

    def end_capture(self, stream: int) -> int:
        return next(self._handles)

    def launch_cuda_graph(self, graph: int, stream: int) -> None:
        pass

    def destroy_cuda_graph(self, graph: int) -> None:
        pass


class CallCounter:
    """Another driver, whose calls are counted in `calls` by name."""

    def __init__(self, driver: NullDriver) -> None:
        self.calls: Counter[str] = Counter()
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._driver, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return attribute(*arguments, **options)

        return call


class NullNetwork:
    """A DeviceNetwork, and its own context, that leaves everything as it is."""

    description = engine = "null network"
    max_batch = None
    mask_iou: MaskIouModel | None = None
    capturable: bool

    def __init__(self, spec: ModelSpec, *, capturable: bool = True) -> None:
        self.spec, self.capturable = spec, capturable
        self.dtypes: Mapping[str, np.dtype[np.generic]] = dict.fromkeys((INPUT, *OUTPUTS), np.dtype(np.float32))

    def new_execution_context(self, stream: int) -> NullNetwork:
        return self

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        pass

    def close(self) -> None:
        pass


def null_backend(driver: Any, network: NullNetwork) -> GpuBackend:
    """In the place of a GPU."""

    def open_network(artifact: object, driver: Driver, threads: int | None, tf32: bool) -> NullNetwork:
        return network

    def load(driver: Driver, specialization: Specialization, notice: Callable[[str], None]) -> Kernels:
        return Kernels(driver, specialization, b"")

    return GpuBackend(lambda _: None, lambda _: driver, open_network, load)


def write_block(block: Image, offset: int, values: AnyArray) -> None:
    """An array of any shape into a block of bytes."""
    block[offset : offset + values.nbytes] = values.reshape(-1).view(np.uint8)


if __name__ == "__main__":
    main()
