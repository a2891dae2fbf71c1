"""Whether a plan can run here, and whether it is what its sidecar says: each doubt an error in words."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from yolact_deploy.artifacts.contract import IoTensor, form_of, io_problem
from yolact_deploy.artifacts.names import END_TO_END, INPUT, PLAN_RUNTIMES, TENSORRT
from yolact_deploy.artifacts.sidecar import BatchRange, Sidecar
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.errors import EngineError, PlanMismatchError, SpecError, pip_install
from yolact_deploy.optional import require

_DTYPES = {"FLOAT": "float32", "HALF": "float16"}  # TensorRT's names -> NumPy's
_RELEASE_NUMBERS = 3  # of 10.13.3.9: the fourth counts builds of one release


def check_form(plan: str | os.PathLike[str], sidecar: Sidecar) -> None:
    """Raise EngineError for an end-to-end plan: its outputs are detections, and heads are what is looked for here."""
    if form_of(sidecar.io_tensors) == END_TO_END:
        raise EngineError(
            f"{plan} is an end-to-end plan: images in, detections out. It is for programs that run plans themselves. Run the "
            f"ONNX it was built from ({sidecar.onnx_name}), or build a plan of an ordinary export."
        )


def check_gpu(plan: str | os.PathLike[str], sidecar: Sidecar, device: GpuDevice) -> None:
    """Raise PlanMismatchError when the plan was built for other GPUs."""
    here = device.target
    if not sidecar.targets or here in sidecar.targets:
        return
    remedy = (
        f"Build it on this machine with {rebuild(plan, sidecar)}"
        if sidecar.runtime == TENSORRT
        else f"Build it again with --target {here} where TensorRT-RTX has that target, else by TensorRT on this machine"
    )
    raise PlanMismatchError(
        f"{plan} was built for {', '.join(sidecar.targets)}; this GPU is {device.name} ({here}). {remedy}, or run the ONNX "
        f"it was built from ({sidecar.onnx_name})."
    )


def import_runtime(plan: str | os.PathLike[str], sidecar: Sidecar) -> Any:
    """The module that runs the plan. Raises MissingDependencyError, EngineError for one without its libraries."""
    title, module, extra = PLAN_RUNTIMES[sidecar.runtime]
    install = pip_install(extra, "--force-reinstall")
    try:
        trt = require(module, extra=extra, purpose=f"running the plan {plan}", package=sidecar.runtime)
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineError(
            f"{title} is installed, but can't be loaded, so {plan} can't run: {exc}. Install it again:\n  {install}"
        ) from exc
    if not hasattr(trt, "Runtime"):
        # PyPI's `tensorrt` is a stub that fetches its libraries when it is installed, and may be left without them.
        raise EngineError(
            f"{title} is installed without its libraries, so {plan} can't run. Install it again:\n  {install}"
        )
    return trt


def check_version(plan: str | os.PathLike[str], sidecar: Sidecar, installed: str) -> None:
    """Raise PlanMismatchError when another release built the plan.

    Plans open only with the release that built them: of TensorRT unless they are built to be version-compatible, which ours
    are not, and of TensorRT-RTX always (its documentation, "Engine Compatibility").
    """
    if _release(sidecar.runtime_version) == _release(installed):
        return
    title = PLAN_RUNTIMES[sidecar.runtime].title
    raise PlanMismatchError(
        f"{plan} was built by {title} {sidecar.runtime_version}, but {title} {installed} is installed here, and a plan opens "
        f"only with the release that built it. Build it again with {rebuild(plan, sidecar)}, or install that release:\n"
        f'  pip install "{sidecar.runtime}=={sidecar.runtime_version}"'
    )


def check_io(
    plan: str | os.PathLike[str], trt: Any, engine: Any, sidecar: Sidecar
) -> tuple[dict[str, np.dtype[np.generic]], BatchRange]:
    """Types of the inputs and outputs and the batches of the profile, as the engine has them.

    Raises PlanMismatchError naming the first in which the engine differs from the spec or the sidecar.
    """
    tensors = _io_tensors(trt, engine)
    if difference := io_problem(tensors, sidecar.spec) or _recorded_otherwise(tensors, sidecar):
        raise _contradiction(plan, sidecar, difference)
    smallest, best, largest = (shape[0] for shape in engine.get_tensor_profile_shape(INPUT, 0))
    try:
        batch = BatchRange(smallest, best, largest)
    except SpecError as exc:
        raise _contradiction(plan, sidecar, f"in its profile, {exc}") from exc
    if batch != sidecar.batch:
        said = sidecar.batch
        raise _contradiction(
            plan,
            sidecar,
            f"its profile is for batches of {smallest},{best},{largest}, its sidecar says {said.min},{said.opt},{said.max}",
        )
    return {tensor.name: np.dtype(tensor.dtype) for tensor in tensors}, batch


def rebuild(plan: str | os.PathLike[str], sidecar: Sidecar) -> str:
    """The command that makes the plan again, quoted."""
    return f"`yolact-deploy build-engine {sidecar.onnx_name} -o {plan} --runtime {sidecar.runtime}`"


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
            dtype=_dtype_name(engine.get_tensor_dtype(name)),
            shape=tuple(engine.get_tensor_shape(name)),
        )
        for name in names
    ]


def _dtype_name(dtype: Any) -> str:
    name: str = dtype.name
    return _DTYPES.get(name, name.lower())


def _contradiction(plan: str | os.PathLike[str], sidecar: Sidecar, difference: str) -> PlanMismatchError:
    return PlanMismatchError(
        f"{plan} contradicts its own sidecar: {difference}. Build it again with {rebuild(plan, sidecar)}."
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:_RELEASE_NUMBERS])
