"""Whether a plan can run here, and whether it is what its sidecar says: each doubt an error in words."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from yolact_deploy.artifacts.end_to_end import NUM_DETECTIONS
from yolact_deploy.artifacts.names import INPUT, PLAN_RUNTIMES, TENSORRT
from yolact_deploy.artifacts.sidecar import BatchRange, IoTensor, Sidecar
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.errors import EngineError, PlanMismatchError, SpecError
from yolact_deploy.optional import require

_DTYPES = {"FLOAT": "float32", "HALF": "float16"}  # TensorRT's names -> NumPy's
_RELEASE_NUMBERS = 3  # of 10.13.3.9: the fourth counts builds of one release


def check_form(plan: str | os.PathLike[str], sidecar: Sidecar) -> None:
    """Raise EngineError for an end-to-end plan: its outputs are detections, and heads are what is looked for here."""
    if any(tensor.name == NUM_DETECTIONS for tensor in sidecar.io_tensors):
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
    install = f'pip install --force-reinstall "yolact-deploy[{extra}]"'
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
    tensors = {tensor.name: tensor for tensor in _io_tensors(trt, engine)}
    difference = _first_difference(tensors, sidecar)
    if difference is not None:
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
    return {name: np.dtype(tensor.dtype) for name, tensor in tensors.items()}, batch


def rebuild(plan: str | os.PathLike[str], sidecar: Sidecar) -> str:
    """The command that makes the plan again, quoted."""
    return f"`yolact-deploy build-engine {sidecar.onnx_name} -o {plan} --runtime {sidecar.runtime}`"


def _first_difference(tensors: dict[str, IoTensor], sidecar: Sidecar) -> str | None:
    spec = sidecar.spec
    expected: dict[str, tuple[str, tuple[int, ...]]] = {INPUT: ("input", (3, spec.input_size, spec.input_size))}
    expected |= {name: ("output", shape) for name, shape in spec.output_shapes().items()}
    recorded = {tensor.name: tensor for tensor in sidecar.io_tensors}
    for name, (mode, shape) in expected.items():
        found = tensors.get(name)
        if found is None:
            return f"it has no {mode} {name} (it has {', '.join(tensors) or 'none'}), its spec has one"
        if found.mode != mode:
            return f"{name} is an {found.mode}, its spec makes it an {mode}"
        if found.shape[1:] != shape:
            return f"{name} is {_shape(found.shape)}, its spec makes it {_shape((-1, *shape))}"
        if found.dtype not in _DTYPES.values():
            return f"{name} is {found.dtype}, it must be {' or '.join(_DTYPES.values())}"
        if name in recorded and found.dtype != recorded[name].dtype:
            return f"{name} is {found.dtype}, its sidecar says {recorded[name].dtype}"
    extra = next((name for name in tensors if name not in expected), None)
    return None if extra is None else f"it has the {tensors[extra].mode} {extra}, its spec has {', '.join(expected)}"


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


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('B' if index == 0 and size == -1 else str(size) for index, size in enumerate(shape))}]"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:_RELEASE_NUMBERS])
