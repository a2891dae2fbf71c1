"""Whether a plan can run here, and whether it is what its sidecar says: each doubt an error in words."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from yolact_deploy.artifacts.contract import IoTensor, io_problem
from yolact_deploy.artifacts.names import END_TO_END, INPUT, PLAN_RUNTIMES, TENSORRT, tensorrt_dtype
from yolact_deploy.artifacts.plan_file import BatchRange, PlanFile, Sidecar
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.errors import EngineError, PlanMismatchError, SpecError, pip_install
from yolact_deploy.optional import require

_RELEASE_NUMBERS = 3  # of 10.13.3.9: the fourth counts builds of one release


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
        raise _contradiction(plan, difference)
    smallest, best, largest = (shape[0] for shape in engine.get_tensor_profile_shape(INPUT, 0))
    try:
        batch = BatchRange(smallest, best, largest)
    except SpecError as exc:
        raise _contradiction(plan, f"in its profile, {exc}") from exc
    if batch != plan.sidecar.batch:
        said = plan.sidecar.batch
        raise _contradiction(
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


def _contradiction(plan: PlanFile, difference: str) -> PlanMismatchError:
    return PlanMismatchError(
        f"{plan.path} contradicts its own sidecar: {difference}. Build it again with {plan.rebuild}."
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:_RELEASE_NUMBERS])
