"""An exported ONNX on onnxruntime's CUDA provider, from device memory to device memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import EngineError
from yolact_deploy.optional import require
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.onnxruntime.network import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    check_device,
    choose_providers,
    first_line,
    float32_options,
    mask_iou_model,
    open_session,
)
from yolact_deploy.spec import ModelSpec


class OnnxCudaNetwork:
    """A session per context: onnxruntime binds a session to its stream when it is made (option `user_compute_stream`), and
    each holds weights of its own, so a second lane takes the model's memory twice. A plan shares them.

    `threads` bounds the CPU threads of what has no CUDA kernel; with `tf32` float32 layers may compute in TF32. Raises
    ArtifactError, SpecError, DeviceError as OnnxNetwork.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | OnnxFile,
        driver: Driver,
        *,
        threads: int | None = None,
        tf32: bool = False,
    ) -> None:
        ort = require("onnxruntime", extra="gpu", purpose="running an ONNX model on a GPU")
        file = open_onnx(source)
        file.check_io()
        self._ort, self._file, self._driver, self._threads, self._tf32 = ort, file, driver, threads, tf32
        self._device = f"cuda:{driver.device.index}"
        providers = choose_providers(ort, self._device)
        self._dtypes = {name: np.dtype(dtype) for name, dtype in file.dtypes.items()}
        self._mask_iou = mask_iou_model(ort, file.mask_iou, file.spec, str(file.path), providers, threads)

    @property
    def spec(self) -> ModelSpec:
        return self._file.spec

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        return f"{self.engine} on {self._driver.device.name}"

    @property
    def engine(self) -> str:
        return f"onnxruntime {self._ort.__version__} (CUDA{', TF32' if self._tf32 else ''})"

    @property
    def dtypes(self) -> Mapping[str, np.dtype[np.generic]]:
        return self._dtypes

    @property
    def max_batch(self) -> int | None:
        return self._file.fixed_batch

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._mask_iou

    def new_execution_context(self, stream: int) -> OnnxCudaContext:
        """A session on `stream`. Raises DeviceError when the provider does not start, EngineError for the default stream."""
        if not stream:
            raise EngineError(f"{self._file.path} can't run on the default stream. Give a stream of its own.")
        options = cuda_options(self._driver.device.index, stream, tf32=self._tf32)
        with self._driver.current():
            session = open_session(self._ort, self._file.path, [(CUDA_PROVIDER, options), CPU_PROVIDER], self._threads)
        check_device(session, self._device)
        return OnnxCudaContext(self._ort, session, self._file, ("cuda", self._driver.device.index))

    def close(self) -> None:
        """The mask-IoU network's memory; that of the contexts goes with them."""
        self._mask_iou = None


def cuda_options(device_index: int, stream: int, *, tf32: bool = False) -> dict[str, str]:
    """Options of the CUDA provider (onnxruntime.ai, "CUDA Execution Provider", Configuration Options), for a session that
    computes on a stream of ours.

    kSameAsRequested: its memory grows by what is asked for instead of doubling, as our own buffers need the rest.
    HEURISTIC: cuDNN's convolutions are chosen by rule; the default, EXHAUSTIVE, measures them at each new batch, and may
    choose otherwise, with other last bits, in the next lane or process. Copies stay on the stream (the default,
    `do_copy_in_default_stream`: without it there are races).
    """
    return {
        "device_id": str(device_index),
        "user_compute_stream": str(stream),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
        **float32_options(allow_tf32=tf32),
    }


class OnnxCudaContext:
    """A session whose inputs and outputs are addresses in the memory of `placement`: ("cuda", N), or ("cpu", 0)."""

    def __init__(self, ort: Any, session: Any, file: OnnxFile, placement: tuple[str, int]) -> None:
        self._session, self._path, self._placement = session, file.path, placement
        self._dtypes = {name: np.dtype(dtype) for name, dtype in file.dtypes.items()}
        self._shapes = file.spec.io_shapes()
        self._binding = session.io_binding()
        self._bound: tuple[int, dict[str, int]] | None = None
        self._run_options = ort.RunOptions()
        # Else every run ends in a cudaStreamSynchronize (onnxruntime_run_options_config_keys.h).
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    @property
    def capturable(self) -> bool:
        """Never: its memory arena may allocate in any run, and nodes without a CUDA kernel run on the host."""
        return False

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        """Enqueue a run. Raises EngineError when onnxruntime refuses it."""
        if self._binding is None:
            raise EngineError(f"a context of {self._path} was run after it was closed.")
        wanted = (batch, {name: addresses[name] for name in (INPUT, *OUTPUTS)})
        try:
            if wanted != self._bound:
                self._bound = None
                self._bind(*wanted)
                self._bound = wanted
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as exc:  # onnxruntime's exception classes share no public base
            raise EngineError(
                f"onnxruntime failed to run {self._path} on a batch of {batch}: {first_line(exc)}."
            ) from exc

    def close(self) -> None:
        """Free the session and its weights; nothing of it may be running."""
        self._binding = self._session = None

    def _bind(self, batch: int, addresses: dict[str, int]) -> None:
        kind, index = self._placement
        for name, address in addresses.items():
            bind = self._binding.bind_input if name == INPUT else self._binding.bind_output
            bind(name, kind, index, self._dtypes[name].type, (batch, *self._shapes[name]), address)
