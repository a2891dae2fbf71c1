"""TensorRT's library as a plan uses it: what it says, and the kernels that TensorRT-RTX compiles when a plan runs.

A plan of TensorRT-RTX holds no kernels for a GPU: these are compiled when a context first runs, and kept for the next
process.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.errors import OutputError
from yolact_deploy.files import CACHE_VARIABLE, atomic_path

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # else Python itself prints warnings of a program that set up no logging

_KEPT_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")
_MAX_QUOTED, _MESSAGE_CHARS = 5, 400


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
        off, as the whole frame is recorded by us, and its activations are ours.
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
