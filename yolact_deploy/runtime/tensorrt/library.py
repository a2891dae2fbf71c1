"""TensorRT's library as a plan uses it: whether it can run the plan here, each doubt an error in words; what it says, kept for
whoever made the call; and the kernels that TensorRT-RTX compiles when a plan runs, kept for the next process.

A plan of TensorRT-RTX holds no kernels for a GPU: these are compiled when a context is made and, where the batch is dynamic,
again at the first run of each batch (its documentation, "Working with Runtime Cache" and "Working with Dynamic Shapes").
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifacts.contract import IoTensor, io_problem
from yolact_deploy.artifacts.names import END_TO_END, INPUT, PLAN_RUNTIMES, TENSORRT, tensorrt_dtype
from yolact_deploy.artifacts.plan_file import BatchRange, PlanFile, Sidecar
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.errors import EngineError, OutputError, PlanMismatchError, SpecError, pip_install
from yolact_deploy.files import CACHE_VARIABLE, atomic_path
from yolact_deploy.optional import require

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # else Python itself prints warnings of a program that set up no logging

_KEPT_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")
_MAX_QUOTED, _MESSAGE_CHARS = 5, 400
_RELEASE_NUMBERS = 3  # of 10.13.3.9: the fourth counts builds of one release


@dataclass(frozen=True)
class LogMessage:
    """What TensorRT said while a plan was opened or run."""

    is_error: bool
    text: str


@functools.cache
def runtime_log(trt: Any) -> Any:
    """The process's one logger of a TensorRT module.

    TensorRT keeps the first logger it is given for as long as any of its objects lives, so networks can't have one each.
    `listen(messages)` says which list takes what is said in this thread from now on; what TensorRT says in threads of its
    own is only logged.
    """

    class _RuntimeLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._listening = threading.local()

        def listen(self, messages: list[LogMessage]) -> None:
            messages.clear()
            self._listening.messages = messages

        def log(self, severity: Any, msg: str) -> None:
            if severity.name not in _KEPT_SEVERITIES:
                return
            is_error = severity.name != "WARNING"
            messages: list[LogMessage] | None = getattr(self._listening, "messages", None)
            if messages is not None:
                messages.append(LogMessage(is_error, msg.strip()))
            if not is_error:
                _LOG.warning("%s", msg.strip())
            elif messages is None:
                _LOG.error("%s", msg.strip())

    return _RuntimeLog()


def quote_errors(messages: Iterable[LogMessage]) -> str:
    """What was said of an error, one message a line, for the end of our own message."""
    texts = list(dict.fromkeys(" ".join(message.text.split()) for message in messages if message.is_error))
    if not texts:
        return "  it gave no reason."
    return "\n".join(
        f"  {text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + '...'}" for text in texts[:_MAX_QUOTED]
    )


class RtxKernels:
    """The runtime cache of one plan on one GPU, in memory and in the file `path`.

    The file is a cache and no more: one that can't be read, is damaged or is of another driver is passed over, and one that
    can't be written is a warning in Python's logging. Methods are called with the GPU's context current.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None
        self._kept = _read(path)

    def configure(self, trt: Any, engine: Any) -> Any:
        """The runtime configuration of a new context of `engine`.

        EAGER compiles a batch's own kernels within its first run: by default they come later, from a thread of
        TensorRT's, and a CUDA graph recorded before then would hold the slower stand-ins for good. Its own CUDA graphs are
        off, as the whole batch is recorded by us, and its activations are ours.
        """
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._kept and not self._cache.deserialize(self._kept):
                self._kept = b""
        config.set_runtime_cache(self._cache)
        return config

    def keep(self) -> None:
        """Write the file, where kernels were compiled since."""
        memory = self._cache.serialize()
        compiled = b"" if memory is None else bytes(memory)
        if not compiled or compiled == self._kept:
            return
        self._kept = compiled  # also where it can't be written: once is enough to say so
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._path) as temporary:
                temporary.write_bytes(compiled)
        except (OSError, OutputError) as exc:
            _LOG.warning(
                "the kernels of TensorRT-RTX were not kept and will be compiled again: %s Set %s to a folder that can be "
                "written.",
                exc,
                CACHE_VARIABLE,
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def check_form(plan: PlanFile) -> None:
    """Raise EngineError for an end-to-end plan: its outputs are detections, and heads are what is looked for here."""
    if plan.form == END_TO_END:
        raise EngineError(
            f"{plan.path} is an end-to-end plan: images in, detections out. It is for programs that run plans themselves. "
            f"Run the ONNX it was built from ({plan.sidecar.onnx_name}), or build a plan of an ordinary export."
        )


def check_gpu(plan: PlanFile, device: GpuDevice) -> None:
    """Raise PlanMismatchError when the plan was built for other GPUs."""
    here, sidecar = device.target, plan.sidecar
    if not sidecar.targets or here in sidecar.targets:
        return
    remedy = (
        f"Build it on this machine with {plan.rebuild}"
        if sidecar.runtime == TENSORRT
        else f"Build it again with --target {here} where TensorRT-RTX has that target, else by TensorRT on this machine"
    )
    raise PlanMismatchError(
        f"{plan.path} was built for {', '.join(sidecar.targets)}; this GPU is {device.name} ({here}). {remedy}, or run the ONNX "
        f"it was built from ({plan.sidecar.onnx_name})."
    )


def import_runtime(plan: PlanFile) -> Any:
    """The module that runs the plan. Raises MissingDependencyError, EngineError for one without its libraries."""
    runtime = plan.sidecar.runtime
    title, module, extra = PLAN_RUNTIMES[runtime]
    install = pip_install(extra, "--force-reinstall")
    try:
        trt = require(module, extra=extra, purpose=f"running the plan {plan.path}", package=runtime)
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineError(
            f"{title} is installed, but can't be loaded, so {plan.path} can't run: {exc}. Install it again:\n  {install}"
        ) from exc
    if not hasattr(trt, "Runtime"):
        # PyPI's `tensorrt` is a stub that fetches its libraries when it is installed, and may be left without them.
        raise EngineError(
            f"{title} is installed without its libraries, so {plan.path} can't run. Install it again:\n  {install}"
        )
    return trt


def check_version(plan: PlanFile, installed: str) -> None:
    """Raise PlanMismatchError when another release built the plan.

    Plans open only with the release that built them: of TensorRT unless they are built to be version-compatible, which ours
    are not, and of TensorRT-RTX always (its documentation, "Engine Compatibility").
    """
    sidecar = plan.sidecar
    if _release(sidecar.runtime_version) == _release(installed):
        return
    title = PLAN_RUNTIMES[sidecar.runtime].title
    raise PlanMismatchError(
        f"{plan.path} was built by {title} {sidecar.runtime_version}, but {title} {installed} is installed here, and a plan "
        f"opens only with the release that built it. Build it again with {plan.rebuild}, or install that release:\n"
        f'  pip install "{sidecar.runtime}=={sidecar.runtime_version}"'
    )


def check_io(plan: PlanFile, trt: Any, engine: Any) -> tuple[dict[str, np.dtype[np.generic]], BatchRange]:
    """Types of the inputs and outputs and the batches of the profile, as the engine has them.

    Raises PlanMismatchError naming the first in which the engine differs from the spec or the sidecar.
    """
    tensors = _io_tensors(trt, engine)
    if difference := io_problem(tensors, plan.spec) or _recorded_otherwise(tensors, plan.sidecar):
        raise _plan_mismatch(plan, difference)
    smallest, best, largest = (shape[0] for shape in engine.get_tensor_profile_shape(INPUT, 0))
    try:
        batch = BatchRange(smallest, best, largest)
    except SpecError as exc:
        raise _plan_mismatch(plan, f"in its profile, {exc}") from exc
    if batch != plan.sidecar.batch:
        said = plan.sidecar.batch
        raise _plan_mismatch(
            plan,
            f"its profile is for batches of {smallest},{best},{largest}, its sidecar says {said.min},{said.opt},{said.max}",
        )
    return {tensor.name: np.dtype(tensor.dtype) for tensor in tensors}, batch


def _recorded_otherwise(tensors: list[IoTensor], sidecar: Sidecar) -> str | None:
    recorded = {tensor.name: tensor.dtype for tensor in sidecar.io_tensors}
    for tensor in tensors:
        if tensor.dtype != recorded.get(tensor.name, tensor.dtype):
            return f"{tensor.name} is {tensor.dtype}, its sidecar says {recorded[tensor.name]}"
    return None


def _io_tensors(trt: Any, engine: Any) -> list[IoTensor]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return [
        IoTensor(
            name=name,
            mode="input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output",
            dtype=tensorrt_dtype(engine.get_tensor_dtype(name)),
            shape=tuple(engine.get_tensor_shape(name)),
        )
        for name in names
    ]


def _plan_mismatch(plan: PlanFile, difference: str) -> PlanMismatchError:
    return PlanMismatchError(
        f"{plan.path} contradicts its own sidecar: {difference}. Build it again with {plan.rebuild}."
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:_RELEASE_NUMBERS])
