"""A lane: one stream with its execution context and buffers, and at most one batch in flight on it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.device_arrays import DeviceImage, LoadedImage, import_image
from yolact_deploy.cuda.drivers.interface import Driver, without_garbage_collection
from yolact_deploy.cuda.program import (
    BatchLayout,
    BatchProgram,
    ImageKind,
    ModelConstants,
    Request,
    Step,
    order_by_layout,
    pack,
    run_capacity,
)
from yolact_deploy.cuda.stopwatch import Stopwatch
from yolact_deploy.errors import DeviceError, EngineError, YolactDeployError
from yolact_deploy.reference.detections import Detections
from yolact_deploy.runtime.gpu.results import BatchResults, MaskTransfer, ResultReader
from yolact_deploy.runtime.protocols import DEVICE_STAGES, DeviceNetwork, ExecutionContext, Stage

Work: TypeAlias = tuple[Stage, Callable[[], None]]  # what a stage enqueues

MAX_PREPARED = 16  # batches of a lane; the one unused for longest makes room
_CAPTURES = 3  # that may fail, as other work in the process can break one, before a lane does without graphs


class Lane:
    """Raises DeviceError or EngineError when it can't be set up."""

    def __init__(
        self,
        driver: Driver,
        model: ModelConstants,
        network: DeviceNetwork,
        kernels: Kernels,
        priors: int,  # their address
        *,
        cuda_graph: bool,
        note: Callable[[str], None],
    ) -> None:
        self._driver, self._model, self._kernels, self._priors = driver, model, kernels, priors
        self._in_flight: PendingBatch | None = None
        self._borrowed: list[DeviceImage] = []
        self._buffers = Buffers(driver)
        with driver.current(), ExitStack() as undo:
            self._stream = driver.create_stream()
            undo.callback(driver.destroy_stream, self._stream)
            self._context = network.new_execution_context(self._stream)
            undo.callback(self._context.close)
            self._reader = ResultReader(driver, network, kernels, self._buffers, self._stream, note)
            undo.pop_all()
        self._prepared = PreparedBatches(driver, self._buffers, self._stream, cuda_graph=cuda_graph, note=note)
        self._watch = Stopwatch(driver, kernels, self._stream, note)

    @property
    def is_idle(self) -> bool:
        """Whether no batch is in flight."""
        return self._in_flight is None

    @property
    def graph_stages(self) -> frozenset[Stage]:
        """Stages that are replayed as CUDA graphs, of any batch."""
        return self._prepared.graph_stages

    def submit(self, images: Sequence[LoadedImage], request: Request) -> PendingBatch:
        """Enqueue a batch. One that is still in flight is waited for first, and what it found is kept for its owner."""
        self.finish_in_flight()
        with self._usable():
            prepared, order, first_steps = self._stage(images, request)
            self._launch(first_steps)
            self._prepared.enqueue(prepared)
            sent = self._reader.send_expected(prepared.results)
        self._in_flight = PendingBatch(self, prepared.results, order, sent)
        return self._in_flight

    def timed(self, images: Sequence[LoadedImage], request: Request) -> tuple[list[Detections], dict[Stage, float]]:
        """Detections of a batch, and milliseconds on the device by stage, without graphs and without the host's time."""
        self.finish_in_flight()
        with self._usable():
            prepared, order, first_steps = self._stage(images, request)
            works: dict[str, Callable[[], None]] = dict(prepared.work)
            if first_steps:
                works["preprocess"] = partial(_enqueue, (partial(self._launch, first_steps), works["preprocess"]))
            if not prepared.runs:  # what is loaded or allocated at first use is no stage's
                _enqueue(works.values())
                self._driver.synchronize(self._stream)
            prepared.runs += 1
            stages = self._watch.time(works)
            masks, copies = self._reader.plan_rest(prepared.results, None)
            if copies:
                rest = "the rest of the masks"
                stages["device_to_host"] += self._watch.time({rest: partial(_enqueue, copies)})[rest]
            found = self._reader.build(prepared.results, masks)
            self._release()
        return _reorder(found, order), {stage: stages[stage] for stage in DEVICE_STAGES}

    def finish_in_flight(self) -> None:
        """Wait for the batch in flight, if there is one; what it found, or its error, is kept for its owner."""
        if self._in_flight is not None:
            with contextlib.suppress(YolactDeployError):
                self._in_flight.result()

    def finish(self, pending: PendingBatch) -> list[Detections]:
        """What the batch in flight has found."""
        self._in_flight = None
        with self._usable():
            self._driver.synchronize(self._stream)
            self._release()
            masks, copies = self._reader.plan_rest(pending.results, pending.sent)
            if copies:
                _enqueue(copies)
                self._driver.synchronize(self._stream)
            found = self._reader.build(pending.results, masks)
        return _reorder(found, pending.order)

    def drop_in_flight(self) -> None:
        """Let the batch in flight run to its end, and forget it."""
        self._in_flight = None
        try:
            with contextlib.suppress(DeviceError), self._driver.current():
                self._recover()
        finally:
            self._release()

    def close(self) -> None:
        """Free everything; what fails in a context that is gone has nothing left to free."""
        if self._in_flight is not None:
            self._in_flight.discard()
        with contextlib.suppress(DeviceError), self._driver.current():
            self._recover()
            self._prepared.clear()
            for close in (self._context.close, self._reader.close, self._watch.close, self._buffers.close):
                with contextlib.suppress(YolactDeployError):
                    close()
            self._driver.destroy_stream(self._stream)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """The context current; whatever goes wrong, nothing is running or borrowed afterwards."""
        with self._driver.current():
            try:
                yield
            except BaseException:
                self._recover()
                raise

    def _recover(self) -> None:
        with contextlib.suppress(DeviceError):
            self._driver.synchronize(self._stream)
        self._release()

    def _release(self) -> None:
        while self._borrowed:
            self._borrowed.pop().release()

    def _stage(self, images: Sequence[LoadedImage], request: Request) -> tuple[PreparedBatch, list[int], list[Step]]:
        """The prepared batch, the order in which it takes the images, and steps that come before it: pixels of the host are
        where they cross from, images on the device are borrowed where they are, at addresses that no graph can know."""
        pixels: list[Any] = []
        for image in images:
            if image.on_device:
                self._borrowed.append(import_image(image.pixels, self._driver, self._stream))
            pixels.append(self._borrowed[-1] if image.on_device else image.pixels)
        kinds = [
            ImageKind(own.image_hw if image.on_device else own.shape[:2], image.is_rgb, image.on_device)
            for image, own in zip(images, pixels, strict=True)
        ]
        layout, order = order_by_layout(kinds)
        prepared = self._prepared.get(layout, request, lambda: self._prepare(layout, request))
        prepared.write_staging([pixels[i] for i in order if not images[i].on_device])
        program, at = prepared.results.program, prepared.results.at
        steps = [
            program.preprocess_on_device(at, number, pixels[i].address, pixels[i].row_pitch)
            for number, i in enumerate(order)
            if images[i].on_device
        ]
        return prepared, order, steps

    def _prepare(self, layout: BatchLayout, request: Request) -> PreparedBatch:
        """Raises DeviceMemoryError."""
        driver, buffers, stream = self._driver, self._buffers, self._stream
        program = BatchProgram(self._model, layout, request, run_capacity(buffers.device_bytes("runs"), layout.batch))
        staging, results = pack(program.staging), pack(program.results)  # each is copied as a whole
        blocks = {"staging": staging.nbytes, "results": results.nbytes}
        buffers.reserve({**blocks, **{name: buffer.nbytes for name, buffer in program.workspace.items()}}, blocks)
        staging_at, results_at = buffers.address("staging"), buffers.address("results")
        at = {
            "priors": self._priors,
            **{name: buffers.address(name) for name in program.workspace},
            **staging.at(staging_at),
            **results.at(results_at),
        }
        copy_in = (staging_at, buffers.pinned_address("staging"), staging.nbytes, stream)
        copy_out = (buffers.pinned_address("results"), results_at, results.nbytes, stream)
        work: tuple[Work, ...] = (
            ("host_to_device", partial(driver.copy_to_device, *copy_in)),
            ("preprocess", partial(self._launch, program.preprocess(at))),
            ("network", partial(self._context.enqueue, {name: at[name] for name in (INPUT, *OUTPUTS)}, layout.batch)),
            ("detect", partial(self._launch, program.detect(at))),
            ("masks", partial(self._launch, program.masks(at))),
            ("device_to_host", partial(driver.copy_to_host, *copy_out)),
        )
        return PreparedBatch(
            BatchResults(program, at, results.views(buffers.pinned_view("results", results.nbytes))),
            staging.views(buffers.pinned_view("staging", staging.nbytes)),
            self._context,
            work,
        )

    def _launch(self, steps: Iterable[Step]) -> None:
        for launch, values in steps:
            self._kernels.launch(launch, values, self._stream)


class PendingBatch:
    """A batch that the device is at work on."""

    def __init__(self, lane: Lane, results: BatchResults, order: list[int], sent: MaskTransfer | None) -> None:
        self.results, self.order, self.sent = results, order, sent
        self._lane: Lane | None = lane
        self._found: list[Detections] = []
        self._error: BaseException | None = None

    def result(self) -> list[Detections]:
        """Detections in the order in which the images were given; waits for them. Raises what went wrong."""
        lane, self._lane = self._lane, None
        if lane is not None:
            try:
                self._found = lane.finish(self)
            except BaseException as exc:
                self._error = exc
                raise
        if self._error is not None:
            raise self._error
        return self._found

    def discard(self) -> None:
        """Wait until the device is done with it, and forget it."""
        lane, self._lane = self._lane, None
        if lane is not None:
            self._error = EngineError("this batch was discarded before its detections were asked for.")
            lane.drop_in_flight()


def _reorder(found: list[Detections], order: list[int]) -> list[Detections]:
    """From the layout's order to that of the images as given."""
    return [found[place_of] for place_of in np.argsort(order)]


@dataclass
class Segment:
    """Work that goes together into a CUDA graph, or as it is where it can't."""

    work: tuple[Work, ...]
    capturable: bool
    graph: int | None = None


@dataclass(eq=False)
class PreparedBatch:
    """Batches of one layout: buffers, views of the host and work, made once and enqueued many times."""

    results: BatchResults
    staged: dict[str, AnyArray]  # where sizes and pixels cross from: views of the block "staging" on the host
    context: ExecutionContext
    work: tuple[Work, ...]
    segments: tuple[Segment, ...] = ()
    runs: int = 0

    def write_staging(self, pixels: Sequence[Image]) -> None:
        """Sizes, and the pixels of the images of the host in the layout's order, to where they cross from."""
        sizes, *places = self.staged.values()
        sizes[...] = self.results.program.sizes_hw
        for place_of, image in zip(places, pixels, strict=True):
            place_of[...] = image

    def split(self) -> None:
        """Work to segments. What the network says of itself holds once it has run."""
        together = groupby(self.work, lambda work: work[0] != "network" or self.context.capturable)
        self.segments = tuple(Segment(tuple(work), capturable) for capturable, work in together)


class PreparedBatches:
    """Those last used. Methods are called with the context current and the lane idle.

    A batch runs as it is the first time, which warms everything up, and from the second time on as CUDA graphs. A driver or a
    network that can't be captured after all, three times, is used without graphs from then on, and `note` is told why.
    """

    def __init__(
        self, driver: Driver, buffers: Buffers, stream: int, *, cuda_graph: bool, note: Callable[[str], None]
    ) -> None:
        self._driver, self._buffers, self._stream, self._note = driver, buffers, stream, note
        self._captures_left = _CAPTURES if cuda_graph and driver.captures_cuda_graphs else 0
        self._kept: OrderedDict[tuple[BatchLayout, Request], PreparedBatch] = OrderedDict()
        self._generation = buffers.generation

    @property
    def graph_stages(self) -> frozenset[Stage]:
        """Stages that are replayed as CUDA graphs, of any batch."""
        segments = (segment for prepared in self._kept.values() for segment in prepared.segments)
        return frozenset(stage for segment in segments if segment.graph is not None for stage, _ in segment.work)

    def get(self, layout: BatchLayout, request: Request, make: Callable[[], PreparedBatch]) -> PreparedBatch:
        """The prepared batch, made where there is none or where buffers have moved since."""
        self._drop_moved()
        key = layout, request
        prepared = self._kept.get(key)
        if prepared is None:
            prepared = make()
            self._drop_moved()
            self._kept[key] = prepared
            while len(self._kept) > MAX_PREPARED:
                self._destroy(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(key)
        return prepared

    def enqueue(self, prepared: PreparedBatch) -> None:
        """All of its work."""
        if prepared.runs and not prepared.segments:
            prepared.split()
        if not prepared.segments:
            _enqueue(enqueue for _, enqueue in prepared.work)
        for segment in prepared.segments:
            if self._captures_left and segment.capturable and segment.graph is None:
                self._capture(segment)
            if segment.graph is not None:
                self._driver.launch_cuda_graph(segment.graph, self._stream)
            else:
                _enqueue(enqueue for _, enqueue in segment.work)
        prepared.runs += 1

    def clear(self) -> None:
        """Forget all, and destroy their graphs."""
        while self._kept:
            self._destroy(self._kept.popitem()[1])

    def _capture(self, segment: Segment) -> None:
        try:
            with without_garbage_collection():
                self._driver.begin_capture(self._stream)
                try:
                    _enqueue(enqueue for _, enqueue in segment.work)
                except BaseException:
                    with contextlib.suppress(DeviceError):  # a capture that was broken is reported a second time
                        self._driver.destroy_cuda_graph(self._driver.end_capture(self._stream))
                    raise
                segment.graph = self._driver.end_capture(self._stream)
        except YolactDeployError as exc:
            self._captures_left -= 1
            if not self._captures_left:
                self._note(f"CUDA graphs are not used, as capturing one failed {_CAPTURES} times: {exc}")

    def _drop_moved(self) -> None:
        if self._generation != self._buffers.generation:
            self.clear()
            self._generation = self._buffers.generation

    def _destroy(self, prepared: PreparedBatch) -> None:
        for segment in prepared.segments:
            graph, segment.graph = segment.graph, None
            if graph is not None:
                with contextlib.suppress(DeviceError):  # a context that is gone has taken it along
                    self._driver.destroy_cuda_graph(graph)


def _enqueue(work: Iterable[Callable[[], None]]) -> None:
    for enqueue in work:
        enqueue()
