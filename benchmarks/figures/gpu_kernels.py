"""The kernels on a GPU, each and together, in scenes of the recorded heads.

Times are of CUDA graphs, twice: cold, over so many copies of all buffers that together they are more than twice what the L2
cache holds, so that none finds its inputs there; and warm, over one copy again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from benchmarks.device import Memory
from benchmarks.figures.gpu_timing import REPLAYS, SPIN_S, CudaGraphTimer, SmClock, Work, l2_bytes
from benchmarks.figures.scenes import candidates
from yolact_deploy.arrays import AnyArray
from yolact_deploy.cuda.compile import Kernels, load_kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.launches import Buffer
from yolact_deploy.cuda.program import (
    BatchLayout,
    BatchProgram,
    ImageKind,
    ModelConstants,
    PackedBuffers,
    Request,
    Step,
    pack,
)
from yolact_deploy.cuda.specialization import Specialization, specialize
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import INPUT, ModelSpec

LoadSpecialized: TypeAlias = Callable[[Driver, Specialization], Kernels]
_BITS = Request()
_KERNEL_BYTES = 1 << 19  # what the least of the kernels touches, about
_MOST_COPIES = 256
_LEAST_COPIES = 2
_MEMORY_SHARE = 0.5  # of what is free, for the copies


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    copies: int | None = None  # None: as many as the L2 cache asks for
    repeats: int = 7
    replays: int = REPLAYS
    spin_s: float = SPIN_S


class BatchOfOne:
    """Heads of one image on the device, and all that the kernels make of them for an image size, in one block of memory."""

    def __init__(self, memory: Memory, kernels: Kernels, program: BatchProgram, inputs: Mapping[str, AnyArray]) -> None:
        self._memory, self._kernels, self.program = memory, kernels, program
        self._results = pack(program.results)
        self._block = packed_batch(program)
        self._address = memory.device(self._block.nbytes, "a batch")
        block = self._block.at(self._address)
        self.at = {**block, **self._results.at(block["results"])}
        self._inputs = {name: array.nbytes for name, array in inputs.items()}
        self._pinned = memory.pinned(self._results.nbytes, "results on the host")
        self.steps: Sequence[Step] = (*program.detect(self.at), *program.masks(self.at))

    @property
    def input_bytes(self) -> int:
        """Of the heads and what else the kernels are given."""
        return sum(self._inputs.values())

    def copy_inputs(self, other: BatchOfOne, stream: int) -> None:
        """What another one has, on the device."""
        for name, nbytes in self._inputs.items():
            self._memory.driver.copy_on_device(self.at[name], other.at[name], nbytes, stream)

    def launch(self, number: int, stream: int) -> None:
        """One of `steps`."""
        self._kernels.launch(*self.steps[number], stream)

    def enqueue(self, stream: int) -> None:
        """Every kernel, and the detections (not the masks) to pinned memory."""
        for step in self.steps:
            self._kernels.launch(*step, stream)
        self._memory.driver.copy_to_host(self._pinned, self.at["results"], self._results.nbytes, stream)

    def read(self, stream: int) -> dict[str, AnyArray]:
        """The results, once `stream` is done."""
        found = np.empty(self._results.nbytes, np.uint8)
        self._memory.driver.copy_to_host(found.ctypes.data, self.at["results"], found.nbytes, stream)
        self._memory.driver.synchronize(stream)
        return self._results.views(found)


class Bench(NamedTuple):
    """What is measured, and with what."""

    batches: list[BatchOfOne]
    memory: Memory
    kernels: Kernels
    stream: int


def packed_batch(program: BatchProgram) -> PackedBuffers:
    """All that a batch has on the device."""
    priors = Buffer((program.model.num_priors, 4), np.dtype(np.float32))
    results = Buffer((pack(program.results).nbytes,), np.dtype(np.uint8))
    sizes = Buffer((program.layout.batch, 2), np.dtype(np.int32))
    return pack({**program.workspace, "results": results, "priors": priors, "image_hw": sizes})


def measure_kernels(
    driver: Driver,
    spec: ModelSpec,
    heads: HeadTensors,  # of one image, batch 1, float32
    image_hw: tuple[int, int],
    settings: Settings = Settings(),
    *,
    load: LoadSpecialized = load_kernels,
) -> dict[str, Any]:
    """{"image_hw", "detections", "candidates", "copies", "kernels": [{"kernel", "blocks", "cold_us", "warm_us"}], "cold_us",
    "warm_us", "call_us", "least_bytes", "mask_copy_us", "mask_copy_bytes", "sm_mhz", "notes"}.

    "cold_us" and "warm_us" of the whole are decode, FastNMS and masks, and the detections in pinned host memory, in a CUDA graph;
    "call_us" the same as a host sees it, from the graph's launch to the end of waiting for it, warm. "least_bytes" are each head
    read once, each result and each word of the masks written once. "sm_mhz" are clocks read while the cold whole ran.
    """
    with batches_of(driver, spec, heads, image_hw, settings.copies, load=load) as bench:
        batches, stream = bench.batches, bench.stream
        one, program = batches[0], batches[0].program
        found = one.read(stream)
        detections, (mask_bytes,) = int(found["count"][0]), program.mask_bytes(found)
        clock = SmClock(driver.device.index)
        timer = CudaGraphTimer(
            driver, stream, settings.repeats, replays=settings.replays, clock=clock, kernels=bench.kernels
        )
        timer.spin(one.enqueue, settings.spin_s)
        row: dict[str, Any] = {
            "image_hw": list(image_hw),
            "detections": detections,
            "candidates": candidates(spec, heads),
            "copies": len(batches),
            "cold_us": timer.each([batch.enqueue for batch in batches]),
            "sm_mhz": timer.sm_mhz,
            "warm_us": timer.each([one.enqueue]),
            "call_us": timer.call(one.enqueue),
            "least_bytes": one.input_bytes + pack(program.results).nbytes + mask_bytes,
        }
        row["kernels"] = [
            {
                "kernel": launch.kernel,
                "blocks": int(np.prod(launch.grid)),
                "cold_us": timer.each([partial(batch.launch, number) for batch in batches]),
                "warm_us": timer.each([partial(one.launch, number)] * settings.replays),
            }
            for number, (launch, _) in enumerate(one.steps)
        ]
        pinned = bench.memory.pinned(mask_bytes, "masks on the host")
        masks = one.at[program.mask_block]
        copy = partial(driver.copy_to_host, pinned, masks, mask_bytes)
        row["mask_copy_us"] = timer.each([copy]) if mask_bytes else 0.0
        return {**row, "mask_copy_bytes": mask_bytes, "notes": timer.notes}


@contextmanager
def batches_of(
    driver: Driver,
    spec: ModelSpec,
    heads: HeadTensors,  # of one image, batch 1, float32
    image_hw: tuple[int, int],
    copies: int | None = None,  # None: as many as the L2 cache asks for
    *,
    request: Request = _BITS,
    load: LoadSpecialized = load_kernels,
) -> Iterator[Bench]:
    """Copies of a batch that has run once; the driver's context is current."""
    model = ModelConstants.of(spec, specialize(spec), multiprocessors=driver.device.multiprocessors)
    program = BatchProgram(model, BatchLayout((ImageKind(image_hw, is_rgb=False, on_device=True),)), request)
    inputs = {**heads._asdict(), "priors": make_priors(spec), "image_hw": np.array([image_hw], np.int32)}
    with driver.current(), Memory(driver) as memory:
        kernels = load(driver, model.specialization)
        memory.callback(kernels.close)
        stream = memory.stream()
        count = copies or _copies(driver, packed_batch(program).nbytes)
        batches = [BatchOfOne(memory, kernels, program, inputs) for _ in range(count)]
        for name, array in inputs.items():
            held = np.ascontiguousarray(array)
            driver.copy_to_device(batches[0].at[name], held.ctypes.data, held.nbytes, stream)
            driver.synchronize(stream)
        for batch in batches:
            if batch is not batches[0]:
                batch.copy_inputs(batches[0], stream)
            batch.enqueue(stream)
        driver.synchronize(stream)
        yield Bench(batches, memory, kernels, stream)


def _copies(driver: Driver, batch_bytes: int) -> int:
    """Of a batch: more than twice the L2 cache even of what the least kernel touches, as far as there is memory."""
    wanted = -(-2 * l2_bytes(driver.device.index) // _KERNEL_BYTES)
    room = int(_MEMORY_SHARE * driver.memory_info()[0] / batch_bytes)
    return max(_LEAST_COPIES, min(wanted, room, _MOST_COPIES))


def measure_preprocess(
    driver: Driver,
    spec: ModelSpec,
    image_hw: tuple[int, int],
    settings: Settings = Settings(),
    *,
    load: LoadSpecialized = load_kernels,
) -> dict[str, Any]:
    """{"image_hw", "input_size", "copies", "cold_us", "warm_us", "least_bytes", "sm_mhz", "notes"} of one uint8 image to the
    network's input."""
    size = spec.input_size
    rng = np.random.default_rng(0)
    program = BatchProgram(
        ModelConstants.of(spec, specialize(spec)), BatchLayout((ImageKind(image_hw, is_rgb=False, on_device=False),))
    )
    pixels = list(program.staging)[-1]
    moved = 3 * image_hw[0] * image_hw[1] + 12 * size * size
    with driver.current(), Memory(driver) as memory:
        kernels = load(driver, program.model.specialization)
        memory.callback(kernels.close)
        stream = memory.stream()
        works: list[Work] = []
        for _ in range(settings.copies or max(_LEAST_COPIES, -(-2 * l2_bytes(driver.device.index) // moved))):
            image = rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8)
            at = {pixels: memory.upload(image, "image", stream), INPUT: memory.device(12 * size * size, "input")}
            works += [partial(kernels.launch, launch, values) for launch, values in program.preprocess(at)]
        clock = SmClock(driver.device.index)
        timer = CudaGraphTimer(driver, stream, settings.repeats, replays=settings.replays, clock=clock, kernels=kernels)
        timer.spin(works[0], settings.spin_s)
        cold_us = timer.each(works)
        return {
            "image_hw": list(image_hw),
            "input_size": size,
            "copies": len(works),
            "cold_us": cold_us,
            "sm_mhz": timer.sm_mhz,
            "warm_us": timer.each([works[0]] * settings.replays),
            "least_bytes": moved,
            "notes": timer.notes,
        }
