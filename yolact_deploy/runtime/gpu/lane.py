"""A lane: one stream with its execution context and buffers, and at most one batch in flight on it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from yolact_deploy.cuda import launches
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.device_arrays import DeviceImage, import_image
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.program import BatchLayout, ImageKind, Model, order_images
from yolact_deploy.errors import DeviceError, EngineError, YolactDeployError
from yolact_deploy.reference.detections import Detections
from yolact_deploy.runtime.gpu.frame import (
    FramePlan,
    Request,
    Segment,
    Step,
    plan_frames,
    preprocess_values,
    write_staging,
)
from yolact_deploy.runtime.gpu.results import Crossing, ResultReader
from yolact_deploy.runtime.protocols import DeviceNetwork, Stage


@dataclass(frozen=True)
class Frame:
    """An image as it was given, checked if it is the host's."""

    pixels: Any  # uint8 [H, W, 3], a NumPy array or an array on the device
    is_rgb: bool
    on_device: bool


class Lane:
    """Raises DeviceError or EngineError when it can't be set up."""

    def __init__(
        self,
        driver: Driver,
        model: Model,
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
        with driver.current(), ExitStack() as undo:
            self._stream = driver.create_stream()
            undo.callback(driver.destroy_stream, self._stream)
            self._context = network.new_context(self._stream)
            undo.pop_all()
        self._buffers = Buffers(driver)
        self._plans = PlanCache(driver, self._buffers)
        self._runner = GraphRunner(driver, self._stream, wanted=cuda_graph, note=note)
        self._reader = ResultReader(driver, model, kernels, self._buffers, self._stream, network.mask_iou, note)

    @property
    def is_idle(self) -> bool:
        return self._in_flight is None

    @property
    def graph_stages(self) -> frozenset[Stage]:
        return self._plans.graph_stages

    def submit(self, frames: Sequence[Frame], request: Request) -> PendingBatch:
        """Enqueue a batch. One that is still in flight is waited for first, and what it found is kept for its owner."""
        self.settle()
        with self._usable():
            plan, order, first_steps = self._stage(frames, request)
            for step in first_steps:
                step.enqueue()
            self._runner.enqueue(plan)
            sent = self._reader.send_expected(plan)
        self._in_flight = PendingBatch(self, plan, order, sent)
        return self._in_flight

    def timed(self, frames: Sequence[Frame], request: Request) -> tuple[list[Detections], dict[Stage, float]]:
        """Detections of a batch, and milliseconds on the device by stage, without graphs."""
        self.settle()
        driver, stream = self._driver, self._stream
        with self._usable(), ExitStack() as stack:

            def mark() -> int:
                event = driver.create_event(timing=True)
                stack.callback(driver.destroy_event, event)
                driver.record(event, stream)
                return event

            plan, order, first_steps = self._stage(frames, request)
            spans: list[tuple[Stage, int, int]] = []
            for step in (*first_steps, *plan.steps):
                begin = mark()
                step.enqueue()
                spans.append((step.stage, begin, mark()))
            plan.runs += 1
            driver.synchronize(stream)
            begin = mark()
            crossing, _ = self._reader.send_rest(plan, None)
            spans.append(("device_to_host", begin, mark()))
            driver.synchronize(stream)
            found = self._reader.build(plan, crossing)
            self._release()
            stages: dict[Stage, float] = {}
            for stage, begin, end in spans:
                stages[stage] = stages.get(stage, 0.0) + driver.elapsed_ms(begin, end)
        return _reorder(found, order), stages

    def settle(self) -> None:
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
            crossing, waits = self._reader.send_rest(pending.plan, pending.sent)
            if waits:
                self._driver.synchronize(self._stream)
            found = self._reader.build(pending.plan, crossing)
        return _reorder(found, pending.order)

    def abandon(self) -> None:
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
            self._plans.clear()
            for close in (self._context.close, self._reader.close, self._buffers.close):
                with contextlib.suppress(YolactDeployError):
                    close()
            self._driver.destroy_stream(self._stream)

    @contextlib.contextmanager
    def _usable(self) -> Any:
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

    def _stage(self, frames: Sequence[Frame], request: Request) -> tuple[FramePlan, list[int], list[Step]]:
        """The plan for a batch, the order in which it takes the images, and steps that come before it. Images of the host
        are where they cross from; those of the device are borrowed."""
        images = []
        for frame in frames:
            image = frame.pixels
            if frame.on_device:
                image = import_image(frame.pixels, self._driver, self._stream)
                self._borrowed.append(image)
            images.append(image)
        kinds = [
            ImageKind(image.image_hw if frame.on_device else image.shape[:2], frame.is_rgb, frame.on_device)
            for frame, image in zip(frames, images, strict=True)
        ]
        order = order_images(kinds)
        layout = BatchLayout(tuple(kinds[i] for i in order))
        plan = self._plans.get(layout, request, lambda: self._plan(layout, request))
        write_staging(plan, [None if frames[i].on_device else images[i] for i in order])
        steps = [
            Step("preprocess", lambda n=n, i=i: self._preprocess(plan, n, images[i]))  # type: ignore[misc]
            for n, i in enumerate(order)
            if frames[i].on_device
        ]
        return plan, order, steps

    def _plan(self, layout: BatchLayout, request: Request) -> FramePlan:
        return plan_frames(
            layout,
            request,
            self._model,
            driver=self._driver,
            kernels=self._kernels,
            context=self._context,
            buffers=self._buffers,
            priors=self._priors,
            stream=self._stream,
        )

    def _preprocess(self, plan: FramePlan, number: int, image: DeviceImage) -> None:
        """An image where its owner has it: no graph can know its address."""
        kind = plan.layout.kinds[number]
        values = {
            **plan.values,
            **preprocess_values(self._model, plan.values, number, kind.image_hw, kind.is_rgb),
            "images": image.address,
            "row_pitch": image.row_pitch,
            "image_pitch": 0,
        }
        self._kernels.launch(launches.preprocess_launch(self._model.spec.input_size, 1), values, self._stream)


class PendingBatch:
    """A batch that the device is at work on."""

    def __init__(self, lane: Lane, plan: FramePlan, order: list[int], sent: Crossing | None) -> None:
        self.plan, self.order, self.sent = plan, order, sent
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
            lane.abandon()


def _reorder(found: list[Detections], order: list[int]) -> list[Detections]:
    """From the layout's order to that of the images as given."""
    by_image = dict(zip(order, found, strict=True))
    return [by_image[i] for i in range(len(order))]


MAX_PLANS = 16  # of a lane; the one unused for longest makes room


class PlanCache:
    """The plans last used, with their graphs. Methods are called with the context current and the lane idle."""

    def __init__(self, driver: Driver, buffers: Buffers) -> None:
        self._driver, self._buffers = driver, buffers
        self._plans: OrderedDict[tuple[BatchLayout, Request], FramePlan] = OrderedDict()
        self._generation = buffers.generation

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, layout: BatchLayout, request: Request, make: Callable[[], FramePlan]) -> FramePlan:
        """The plan, made where there is none or where buffers have moved since."""
        self._drop_moved()
        key = layout, request
        plan = self._plans.get(key)
        if plan is None:
            plan = make()
            self._drop_moved()
            self._plans[key] = plan
            while len(self._plans) > MAX_PLANS:
                self._destroy(self._plans.popitem(last=False)[1])
        self._plans.move_to_end(key)
        return plan

    @property
    def graph_stages(self) -> frozenset[Stage]:
        """Stages that are replayed as CUDA graphs, of any plan."""
        segments = (segment for plan in self._plans.values() for segment in plan.segments)
        return frozenset(step.stage for segment in segments if segment.graph is not None for step in segment.steps)

    def clear(self) -> None:
        while self._plans:
            self._destroy(self._plans.popitem()[1])

    def _drop_moved(self) -> None:
        if self._generation != self._buffers.generation:
            self.clear()
            self._generation = self._buffers.generation

    def _destroy(self, plan: FramePlan) -> None:
        for segment in plan.segments:
            graph, segment.graph = segment.graph, None
            if graph is not None:
                with contextlib.suppress(DeviceError):  # a context that is gone has taken it along
                    self._driver.destroy_graph(graph)


class GraphRunner:
    """Runs plans: the first time step by step, which warms everything up; from the second time on as CUDA graphs.

    A driver or a network that can't be captured after all is used without graphs from then on, and `note` is told why.
    """

    def __init__(self, driver: Driver, stream: int, *, wanted: bool, note: Callable[[str], None]) -> None:
        self._driver, self._stream, self._note = driver, stream, note
        self._wanted = wanted and driver.captures_graphs

    def enqueue(self, plan: FramePlan) -> None:
        if plan.runs and not plan.segments:
            plan.split()
        if not plan.segments:
            _enqueue(plan.steps)
        for segment in plan.segments:
            if self._wanted and segment.capturable and segment.graph is None:
                self._capture(segment)
            if segment.graph is not None:
                self._driver.launch_graph(segment.graph, self._stream)
            else:
                _enqueue(segment.steps)
        plan.runs += 1

    def _capture(self, segment: Segment) -> None:
        try:
            self._driver.begin_capture(self._stream)
            try:
                _enqueue(segment.steps)
            except BaseException:
                with contextlib.suppress(DeviceError):  # a capture that was broken is reported a second time
                    self._driver.destroy_graph(self._driver.end_capture(self._stream))
                raise
            segment.graph = self._driver.end_capture(self._stream)
        except YolactDeployError as exc:
            self._wanted = False
            self._note(f"CUDA graphs are not used, as capturing one failed: {exc}")


def _enqueue(steps: Iterable[Step]) -> None:
    for step in steps:
        step.enqueue()
