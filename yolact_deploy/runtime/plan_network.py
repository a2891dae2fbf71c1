"""A TensorRT or TensorRT-RTX plan on a GPU.

Only what TensorRT 10.3 to 11 and TensorRT-RTX since 1.4 all have is used; the little that TensorRT-RTX has more is in
`rtx_kernels`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yolact_deploy.cuda.cubin_cache import cache_folder
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.errors import DeviceError, EngineError, PlanMismatchError
from yolact_deploy.mask_iou import MaskIouModel
from yolact_deploy.optional import require
from yolact_deploy.runtime.plan_checks import (
    TITLES,
    check_form,
    check_gpu,
    check_io,
    check_version,
    import_runtime,
    rebuild,
)
from yolact_deploy.runtime.plan_context import OpenPlan, PlanContext
from yolact_deploy.runtime.rtx_kernels import RtxKernels
from yolact_deploy.runtime.tensorrt_log import LogMessage, quote_errors, runtime_log
from yolact_deploy.sidecar import BatchRange, Sidecar, load_mask_iou, load_plan
from yolact_deploy.spec import ModelSpec


class PlanNetwork:
    """A plan, deserialized once: all contexts share its weights.

    A YOLACT++ plan's mask-IoU network runs in onnxruntime: on its CUDA provider where that starts, else on the CPU, with
    `threads` threads. `rtx_cache` is the folder where TensorRT-RTX's compiled kernels are kept (default: the user's).

    Raises PlanMismatchError for a plan that is not its sidecar's, or was built for other GPUs or by another release;
    MissingDependencyError without the package that runs it; EngineError when that refuses the plan.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        driver: Driver,
        *,
        threads: int | None = None,
        rtx_cache: Path | None = None,
    ) -> None:
        self._path, self._driver = Path(path), driver
        data, self._sidecar = load_plan(path)
        mask_iou = load_mask_iou(path, self._sidecar)
        check_form(path, self._sidecar)
        check_gpu(path, self._sidecar, driver.device)
        self._trt = import_runtime(path, self._sidecar)
        check_version(path, self._sidecar, self._trt.__version__)
        self._title = f"{TITLES[self._sidecar.runtime]} {self._trt.__version__}"
        self._mask_iou = self._open_mask_iou(mask_iou, threads)
        with driver.current():
            self._plan: OpenPlan | None
            self._plan, self._dtypes = self._open(data, rtx_cache)
        self._batch = self._plan.batch

    @property
    def spec(self) -> ModelSpec:
        return self._sidecar.spec

    @property
    def sidecar(self) -> Sidecar:
        return self._sidecar

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        return f"{self._title} on {self._driver.device.name}"

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

    def new_context(self, stream: int) -> PlanContext:
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
            raise EngineError(f"{self._title} can't open {self._path}:\n{reasons}") from exc
        if engine is None:
            raise EngineError(
                f"{self._title} can't open {self._path}:\n{quote_errors(messages)}\n"
                f"Build it again here with {rebuild(self._path, self._sidecar)}."
            )
        dtypes, batch = check_io(self._path, self._trt, engine, self._sidecar)
        kernels = self._open_kernels(rtx_cache)
        size = self.spec.input_size
        return OpenPlan(self._path, self._title, self._trt, log, engine, runtime, size, batch, kernels), dtypes

    def _open_kernels(self, folder: Path | None) -> RtxKernels | None:
        if self._sidecar.runtime != "tensorrt-rtx":
            return None
        name = f"{self._sidecar.plan_sha256[:16]}-{self._driver.device.architecture}-{self._trt.__version__}.cache"
        return RtxKernels((folder or cache_folder().parent) / "tensorrt-rtx" / name)

    def _open_mask_iou(self, content: bytes | None, threads: int | None) -> MaskIouModel | None:
        if content is None and self.spec.mask_iou_layers:
            raise PlanMismatchError(
                f"{self._path} is a YOLACT++ by its spec, but its sidecar names no mask-IoU network, so its masks can't be "
                f"scored. It was built by an older version: build it again with {rebuild(self._path, self._sidecar)}."
            )
        if content is None:
            return None
        from yolact_deploy.runtime.onnx_network import CUDA_PROVIDER, choose_providers, mask_iou_model

        ort = require(
            "onnxruntime",
            extra="gpu" if self._sidecar.runtime == "tensorrt" else "cpu",
            purpose=f"scoring the masks of {self._path}, a YOLACT++,",
        )
        has_cuda = CUDA_PROVIDER in ort.get_available_providers()
        providers = choose_providers(ort, f"cuda:{self._driver.device.index}" if has_cuda else "cpu")
        return mask_iou_model(ort, content, self.spec, str(self._path), providers, threads)
