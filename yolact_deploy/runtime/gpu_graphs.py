"""What a lane remembers of the layouts it has run: their plans, and the CUDA graphs captured of them."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable

from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.cuda.frames import BatchLayout
from yolact_deploy.errors import DeviceError, YolactDeployError
from yolact_deploy.runtime.gpu_frame import FramePlan, Request, Segment, Stage, Step

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
