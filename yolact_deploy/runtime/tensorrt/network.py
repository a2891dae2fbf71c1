"""A TensorRT or TensorRT-RTX plan on a GPU.

Only what TensorRT 10.3 to 11 and TensorRT-RTX since 1.4 all have is used; the little that TensorRT-RTX has more is in
`rtx_kernels`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifacts.names import INPUT, OUTPUTS, PLAN_RUNTIMES, TENSORRT, TENSORRT_RTX
from yolact_deploy.artifacts.plan_file import BatchRange, PlanFile, open_plan
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import DeviceError, DeviceMemoryError, EngineError, PlanMismatchError
from yolact_deploy.files import cache_folder
from yolact_deploy.optional import require
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.tensorrt.library import (
    LogMessage,
    RtxKernels,
    check_form,
    check_gpu,
    check_io,
    check_version,
    import_runtime,
    quote_errors,
    runtime_log,
)
from yolact_deploy.spec import ModelSpec

_OUT_OF_MEMORY = re.compile(r"(?i)out ?of ?memory")


class PlanNetwork:
    """A plan, deserialized once: all contexts share its weights.

    A YOLACT++ plan's mask-IoU network runs in onnxruntime: on its CUDA provider where that starts, else on the CPU, with
    `threads` threads. `rtx_cache` is the folder where TensorRT-RTX's compiled kernels are kept (default: the user's).

    Raises PlanMismatchError for a plan that is not its sidecar's, or was built for other GPUs or by another release;
    MissingDependencyError without the package that runs it; EngineError when that refuses the plan.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | PlanFile,
        driver: Driver,
        *,
        threads: int | None = None,
        rtx_cache: Path | None = None,
    ) -> None:
        plan = open_plan(source)
        self._file, self._path, self._driver = plan.without_content(), plan.path, driver
        check_form(plan)
        check_gpu(plan, driver.device)
        self._trt = import_runtime(plan)
        check_version(plan, self._trt.__version__)
        self._engine = f"{PLAN_RUNTIMES[self._file.sidecar.runtime].title} {self._trt.__version__}"
        self._mask_iou = self._open_mask_iou(plan.mask_iou, threads)
        with driver.current():
            self._plan: OpenPlan | None
            self._plan, self._dtypes = self._open(plan.content, rtx_cache)
        self._batch = self._plan.batch

    @property
    def spec(self) -> ModelSpec:
        return self._file.spec

    @property
    def file(self) -> PlanFile:
        """What it was made of, without the plan's bytes."""
        return self._file

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        return f"{self._engine} on {self._driver.device.name}"

    @property
    def engine(self) -> str:
        return self._engine

    @property
    def dtypes(self) -> Mapping[str, np.dtype[np.generic]]:
        return self._dtypes

    @property
    def batch(self) -> BatchRange:
        """The batches of the plan's optimization profile."""
        return self._batch

    @property
    def max_batch(self) -> int | None:
        return self._batch.max

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._mask_iou

    def new_execution_context(self, stream: int) -> PlanContext:
        """Raises DeviceMemoryError when its activations do not fit, EngineError after `close` and for the default stream, on
        which TensorRT would synchronize the device.
        """
        if self._plan is None:
            raise EngineError(f"{self._path} was closed: it takes no more contexts.")
        if not stream:
            raise EngineError(f"{self._path} can't run on the default stream. Give a stream of its own.")
        with self._driver.current():
            return PlanContext(self._plan, self._driver, stream)

    def close(self) -> None:
        """Free the weights. Contexts first. Safe to call twice, and where another library has reset the device."""
        with contextlib.suppress(DeviceError), self._driver.current():
            self._plan = None
        self._plan = None

    def _open(self, data: bytes, rtx_cache: Path | None) -> tuple[OpenPlan, dict[str, np.dtype[np.generic]]]:
        log = runtime_log(self._trt)
        messages: list[LogMessage] = []
        log.listen(messages)
        try:
            runtime = self._trt.Runtime(log)
            engine = runtime.deserialize_cuda_engine(data)
        except Exception as exc:  # its bindings raise what C++ threw; TypeError for an object that could not be made
            reasons = quote_errors(messages) if messages else f"  {exc}"
            raise EngineError(f"{self._engine} can't open {self._path}:\n{reasons}") from exc
        if engine is None:
            raise EngineError(
                f"{self._engine} can't open {self._path}:\n{quote_errors(messages)}\n"
                f"Build it again here with {self._file.rebuild}."
            )
        dtypes, batch = check_io(self._file, self._trt, engine)
        kernels = self._open_kernels(rtx_cache)
        size = self.spec.input_size
        return OpenPlan(self._path, self._engine, self._trt, log, engine, runtime, size, batch, kernels), dtypes

    def _open_kernels(self, folder: Path | None) -> RtxKernels | None:
        if self._file.sidecar.runtime != TENSORRT_RTX:
            return None
        name = f"{self._file.sha256[:16]}-{self._driver.device.architecture}-{self._trt.__version__}.cache"
        return RtxKernels((folder / TENSORRT_RTX if folder else cache_folder(TENSORRT_RTX)) / name)

    def _open_mask_iou(self, content: bytes | None, threads: int | None) -> MaskIouModel | None:
        if content is None and self.spec.mask_iou_layers:
            raise PlanMismatchError(
                f"{self._path} is a YOLACT++ by its spec, but its sidecar names no mask-IoU network, so its masks can't be "
                f"scored. It was built by an older version: build it again with {self._file.rebuild}."
            )
        if content is None:
            return None
        from yolact_deploy.runtime.onnxruntime.network import CUDA_PROVIDER, choose_providers, mask_iou_model

        ort = require(
            "onnxruntime",
            extra="gpu" if self._file.sidecar.runtime == TENSORRT else "cpu",
            purpose=f"scoring the masks of {self._path}, a YOLACT++,",
        )
        has_cuda = CUDA_PROVIDER in ort.get_available_providers()
        providers = choose_providers(ort, f"cuda:{self._driver.device.index}" if has_cuda else "cpu")
        return mask_iou_model(ort, content, self.spec, str(self._path), providers, threads)


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
            self._run(found, {name: addresses[name] for name in (INPUT, *OUTPUTS)}, batch)
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
        self._profiler = make_profiler(self._plan.trt, report)

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
            raise self._no_execution_context(f"  {exc}") from exc
        if context is None:
            raise self._no_execution_context(quote_errors(self._messages))
        if self._profiler is not None:
            context.profiler = self._profiler  # which reports within execute_async_v3 (`enqueue_emits_profile`)
        if self._activations is not None:
            context.set_device_memory(self._activations, self._activation_bytes)
        if not context.set_input_shape(INPUT, (batch, 3, plan.input_size, plan.input_size)):
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

    def _no_execution_context(self, reasons: str) -> EngineError:
        plan = self._plan
        if _OUT_OF_MEMORY.search(reasons):
            free, total = self._driver.memory_info()
            return DeviceMemoryError(
                f"no memory for an execution context of {plan.path}: of the GPU's {total >> 20} MiB, {free >> 20} are free. "
                f"Free some, run fewer lanes, or build with a smaller --batch. {plan.title} says:\n{reasons}"
            )
        return EngineError(f"{plan.title} can't make an execution context of {plan.path}:\n{reasons}")


def make_profiler(trt: Any, report: Callable[[str, float], None]) -> Any:
    """TensorRT's profiler that reports the milliseconds of every layer, by name."""

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
