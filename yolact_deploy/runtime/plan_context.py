"""Runs of a deserialized plan on one stream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolact_deploy.cuda.driver import Driver
from yolact_deploy.errors import DeviceError, DeviceMemoryError, EngineError
from yolact_deploy.runtime.network import OUTPUT_NAMES
from yolact_deploy.runtime.rtx_kernels import RtxKernels
from yolact_deploy.runtime.tensorrt_log import LogMessage, quote_errors
from yolact_deploy.sidecar import BatchRange

_INPUT = "image"
_OUT_OF_MEMORY = re.compile(r"(?i)out ?of ?memory")


@dataclass(frozen=True)
class OpenPlan:
    """What the contexts of a plan share."""

    path: Path
    title: str  # of the TensorRT that runs it, with its version
    trt: Any
    log: Any  # of tensorrt_log.runtime_log
    engine: Any  # None: closed
    runtime: Any  # after the engine, which it must outlive
    input_size: int
    batch: BatchRange
    kernels: RtxKernels | None  # None for TensorRT, whose plans hold their kernels


class PlanContext:
    """Runs one after the other on one stream, in activations allocated once for the largest batch. Methods are called with
    the driver's context current.

    Each batch has a TensorRT context of its own, in the same activations: TensorRT does part of the work of a change of
    shape in the run after it, which then can't be recorded, and a recorded run needs its context to stay as it was. (All are
    of profile 0, the builder's only one and since TensorRT 9 every new context's.)
    """

    def __init__(self, plan: OpenPlan, driver: Driver, stream: int) -> None:
        self._plan, self._driver, self._stream = plan, driver, stream
        self._messages: list[LogMessage] = []
        self._batches: dict[int, _Batch] = {}
        self._profiler: Any = None
        self._activation_bytes: int = plan.engine.device_memory_size_v2
        self._activations: int | None = None
        if self._activation_bytes:
            purpose = f"the activations of {plan.path} (batches up to {plan.batch.max})"
            self._activations = driver.allocate(self._activation_bytes, purpose)

    @property
    def capturable(self) -> bool:
        """After the first run; of TensorRT-RTX, unless the plan needs memory that it allocates while it runs."""
        ran = [batch.context for batch in self._batches.values()]
        if self._plan.kernels is None:
            return bool(ran)
        return bool(ran) and all(context.is_stream_capturable(self._stream) for context in ran)

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        """Enqueue a run; one of a batch that has run before can be recorded.

        Raises EngineError for a batch that the plan's profile has not and when TensorRT refuses, DeviceMemoryError.
        """
        if self._plan.engine is None:
            raise EngineError(f"a context of {self._plan.path} was run after it was closed.")
        self._plan.log.listen(self._messages)
        found = self._batches.get(batch)
        try:
            if found is None:
                found = self._open(batch)
            self._run(found, {name: addresses[name] for name in (_INPUT, *OUTPUT_NAMES)}, batch)
        except EngineError:
            self._batches.pop(batch, None)  # so that the next run begins anew
            raise
        if batch not in self._batches:
            self._batches[batch] = found
            if self._plan.kernels is not None:  # it may have compiled some for this batch
                self._plan.kernels.keep()

    def profile(self, report: Callable[[str, float], None]) -> None:
        """Have every later run waited for, and `report` told the milliseconds of each of its layers, by name. Before the first
        run: none can be recorded then."""
        self._profiler = _profiler(self._plan.trt, report)

    def close(self) -> None:
        """Free the activations; nothing of this context may be running.

        Safe to call twice, and where another library has reset the device, which has freed them already.
        """
        address, self._activations = self._activations, None
        with contextlib.suppress(DeviceError), self._driver.current():
            self._batches.clear()
            if address is not None:
                self._driver.free(address)
        self._batches.clear()
        self._plan = replace(self._plan, engine=None, runtime=None)  # for the network is closed next

    def _open(self, batch: int) -> _Batch:
        plan = self._plan
        fits = plan.batch
        if not fits.min <= batch <= fits.max:
            wanted = f"{min(batch, fits.min)},{fits.opt},{max(batch, fits.max)}"
            raise EngineError(
                f"{plan.path} takes batches of {fits.min} to {fits.max} (and is best at {fits.opt}), found {batch}. "
                f"Give {f'at most {fits.max}' if batch > fits.max else f'at least {fits.min}'} images at once, or build "
                f"again with --batch {wanted}."
            )
        try:
            context = plan.engine.create_execution_context(
                plan.trt.ExecutionContextAllocationStrategy.USER_MANAGED
                if plan.kernels is None
                else plan.kernels.configure(plan.trt, plan.engine)
            )
        except Exception as exc:  # its bindings raise what C++ threw
            raise self._no_context(f"  {exc}") from exc
        if context is None:
            raise self._no_context(quote_errors(self._messages))
        if self._profiler is not None:
            context.profiler = self._profiler  # which reports within execute_async_v3 (`enqueue_emits_profile`)
        if self._activations is not None:
            context.set_device_memory(self._activations, self._activation_bytes)
        if not context.set_input_shape(_INPUT, (batch, 3, plan.input_size, plan.input_size)):
            raise self._refusal(f"take a batch of {batch}", quote_errors(self._messages))
        return _Batch(context)

    def _run(self, found: _Batch, addresses: dict[str, int], batch: int) -> None:
        if addresses != found.addresses:
            for name, address in addresses.items():
                if not found.context.set_tensor_address(name, address):
                    raise self._refusal(f"take {address:#x} as the address of {name}", quote_errors(self._messages))
            found.addresses = addresses
        try:
            enqueued = found.context.execute_async_v3(self._stream)
        except Exception as exc:  # its bindings raise what C++ threw
            raise self._refusal(f"run a batch of {batch}", f"  {exc}") from exc
        if not enqueued:
            raise self._refusal(f"run a batch of {batch}", quote_errors(self._messages))

    def _refusal(self, what: str, reasons: str) -> EngineError:
        return EngineError(f"{self._plan.title} can't {what} with {self._plan.path}:\n{reasons}")

    def _no_context(self, reasons: str) -> EngineError:
        plan = self._plan
        if _OUT_OF_MEMORY.search(reasons):
            free, total = self._driver.memory_info()
            return DeviceMemoryError(
                f"no memory for an execution context of {plan.path}: of the GPU's {total >> 20} MiB, {free >> 20} are free. "
                f"Free some, run fewer lanes, or build with a smaller --batch. {plan.title} says:\n{reasons}"
            )
        return EngineError(f"{plan.title} can't make an execution context of {plan.path}:\n{reasons}")


def _profiler(trt: Any, report: Callable[[str, float], None]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]  # TensorRT is not typed
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # its bindings want it by name

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()


@dataclass
class _Batch:
    context: Any  # TensorRT's
    addresses: dict[str, int] | None = None  # what it has been told
