"""A YOLACT in onnxruntime, and the mask-IoU network that a YOLACT++ carries."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import FloatArray
from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.errors import ArtifactError, DeviceError, DeviceMemoryError, EngineError, SpecError, pip_install
from yolact_deploy.files import is_file, what_is_there
from yolact_deploy.optional import require
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"

_ERRORS_ONLY = 3
_OUT_OF_MEMORY = re.compile(r"out of memory|failed to allocate memory", re.IGNORECASE)  # as CUDA and its arena say it
_EXPORT_AGAIN = "Export it again with `yolact-deploy export`."


class OnnxNetwork:
    """An exported ONNX on the CPU or, with device "cuda" or "cuda:N", on onnxruntime's CUDA provider.

    Raises ArtifactError for a file that is no ONNX model, SpecError for one without our metadata or whose input
    and outputs contradict it, DeviceError when there is no such device.
    """

    def __init__(
        self, source: str | os.PathLike[str] | OnnxFile, *, device: str = "auto", threads: int | None = None
    ) -> None:
        ort = require("onnxruntime", extra="cpu", purpose="running an ONNX model")
        file = open_onnx(source)
        file.check_io()
        content = file.mask_iou
        self._path, self._spec, self._max_batch = file.path, file.spec, file.fixed_batch
        self._input_dtype = np.dtype(file.dtypes[INPUT])
        self._session = open_session(ort, self._path, choose_providers(ort, device), threads)
        check_device(self._session, device)
        providers = self._session.get_providers()
        self._mask_iou = mask_iou_model(ort, content, self._spec, str(self._path), providers, threads)
        self.description = describe(ort, self._session)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return self._mask_iou

    @property
    def max_batch(self) -> int | None:
        """What the batch was fixed to at export; None for any."""
        return self._max_batch

    def run(self, image: FloatArray) -> HeadTensors:
        """Heads of a preprocessed batch [B, 3, S, S], float32. Raises EngineError for what fails in onnxruntime."""
        try:
            outputs = self._session.run(OUTPUTS, {INPUT: image.astype(self._input_dtype, copy=False)})
        except Exception as exc:  # onnxruntime's exception classes share no public base
            raise EngineError(
                f"onnxruntime failed to run {self._path} on a batch of {len(image)}: {first_line(exc)}."
            ) from exc
        return HeadTensors(*(output.astype(np.float32, copy=False) for output in outputs))

    def close(self) -> None:
        """Give the session's memory back, while there is still a GPU to give it back to."""
        self._session = self._mask_iou = None


def open_session(
    ort: Any,
    path: Path,
    providers: list[Any],  # of choose_providers
    threads: int | None,
) -> Any:
    """A session of an exported file. Raises ArtifactError for a file that is no ONNX model; with the CUDA provider,
    DeviceMemoryError where the model has no room on the GPU, and DeviceError where CUDA fails."""
    if not is_file(path):
        raise ArtifactError(f"{path} {what_is_there(path)}. Give an exported .onnx file.")
    options = session_options(ort, threads)
    # Its own fallback would print to stdout, and go on with the CPU.
    own_fallback = {} if providers[0] == CPU_PROVIDER else {"enable_fallback": 0}
    try:
        return ort.InferenceSession(str(path), options, providers=providers, **own_fallback)
    except Exception as exc:  # onnxruntime's exception classes share no public base
        if own_fallback and _OUT_OF_MEMORY.search(str(exc)):
            raise DeviceMemoryError(f"no memory on the GPU to open {path}: {first_line(exc)}.") from exc
        if own_fallback and isinstance(exc, RuntimeError):  # of the provider; a file's faults are of classes of its own
            raise DeviceError(f"onnxruntime's CUDA provider can't open {path}: {first_line(exc)}.") from exc
        size = path.stat().st_size
        raise ArtifactError(
            f"onnxruntime can't open {path} ({size} bytes): {first_line(exc)}. "
            "If the file was copied or downloaded, get it again; else export it again with `yolact-deploy export`."
        ) from exc


def session_options(ort: Any, threads: int | None = None) -> Any:
    """onnxruntime options under which a graph with Q/DQ is computed as it says.

    onnxruntime's own Q/DQ rewriting is off: its WeightBiasQuantization rounds biases that were left in float, which costs
    points of AP that a GPU does not lose; and weights behind DQ are then folded once instead of at every run. Threads rest
    when a run ends: spinning on, they would take the cores from what runs next, another model above all.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def choose_providers(ort: Any, device: str, *, tf32: bool = False) -> list[Any]:
    """Execution providers for "auto", "cpu", "cuda" or "cuda:N". Raises DeviceError when there is none for it."""
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()) or (index and kind != "cuda"):
        raise DeviceError(f'device must be "auto", "cpu" or "cuda:N", found {device!r}.')
    has_cuda = CUDA_PROVIDER in ort.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise DeviceError(
            f"running an ONNX model on a GPU takes onnxruntime's CUDA provider, which this onnxruntime has not "
            f"(it has {', '.join(ort.get_available_providers())}).\n"
            f"  pip uninstall onnxruntime; {pip_install('gpu')}"
        )
    if kind == "cpu" or not has_cuda:
        return [CPU_PROVIDER]
    _load_cuda_libraries(ort)
    return [(CUDA_PROVIDER, {"device_id": int(index or 0), **float32_options(allow_tf32=tf32)}), CPU_PROVIDER]


def float32_options(*, allow_tf32: bool) -> dict[str, str]:
    """Of the CUDA provider, which by default rounds what float32 layers multiply to the 10 bits of TF32."""
    return {"use_tf32": str(int(allow_tf32))}


@functools.cache
def _load_cuda_libraries(ort: Any) -> None:
    """CUDA and cuDNN out of their wheels, where the system does not look for libraries; onnxruntime since 1.21 does.

    What is missing it prints, and `check_device` tells once it matters.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def check_device(session: Any, device: str) -> None:
    """Raise DeviceError unless a session asked for on "cuda" is there: onnxruntime goes on with the CPU, and only logs it,
    where its CUDA provider can't start."""
    if device.startswith("cuda") and session.get_providers()[0] != CUDA_PROVIDER:
        raise DeviceError(
            f"device {device!r} was asked for, but onnxruntime's CUDA provider did not start: no such GPU, no driver, or "
            "CUDA and cuDNN libraries of another version. `nvidia-smi` lists the GPUs; `--device cpu` runs without one."
        )


def session_gpu(session: Any) -> int | None:
    """The index of the GPU that a session runs on; None: the CPU."""
    if session.get_providers()[0] != CUDA_PROVIDER:
        return None
    return int(session.get_provider_options()[CUDA_PROVIDER]["device_id"])


def mask_iou_model(
    ort: Any, content: bytes | None, spec: ModelSpec, source: str, providers: list[Any], threads: int | None = None
) -> MaskIouModel | None:
    """A mask-IoU network's ONNX file as a function; None where there is none. Raises SpecError naming `source`."""
    if content is None:
        return None

    def open_content(data: bytes) -> Any:
        return ort.InferenceSession(data, session_options(ort, threads), providers=providers)

    return open_mask_iou(content, spec, source, open_content)


def describe(ort: Any, session: Any, *, tf32: bool = False) -> str:
    """onnxruntime's version and the provider that runs a session, for people."""
    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return f"onnxruntime {ort.__version__} ({provider}{', TF32' if tf32 else ''})"


def first_line(exc: Exception) -> str:
    """What an exception of a backend says, short enough to quote."""
    return str(exc).strip().partition("\n")[0].rstrip(".")[:300]


def open_mask_iou(
    content: bytes,  # an ONNX file
    spec: ModelSpec,
    source: str,  # names the file in errors
    open_session: Callable[[bytes], Any],  # makes an onnxruntime session of an ONNX file's content
) -> MaskIouModel:
    """The network as a function of soft masks [n, Hp, Wp].

    Raises SpecError when it can't be opened, or is of other sizes than the spec says.
    """
    try:
        session = open_session(content)
    except Exception as exc:  # onnxruntime's exception classes share no public base
        raise SpecError(f"onnxruntime can't open the mask-IoU network in {source}: {exc}. {_EXPORT_AGAIN}") from exc
    found = [tuple(tensor.shape[1:]) for tensor in (*session.get_inputs(), *session.get_outputs())]
    expected = [(spec.proto_size, spec.proto_size), (spec.num_classes,)]
    if found != expected:
        raise SpecError(
            f"the mask-IoU network in {source} maps {found[0]} to {found[-1]}, its spec makes it {expected[0]} to "
            f"{expected[1]}. {_EXPORT_AGAIN}"
        )

    def judge(masks: FloatArray) -> FloatArray:
        try:
            (result,) = session.run(None, {session.get_inputs()[0].name: masks})
        except Exception as exc:  # as above
            raise EngineError(f"onnxruntime failed to score {len(masks)} masks with {source}: {exc}") from exc
        judged: FloatArray = result
        return judged

    return judge
