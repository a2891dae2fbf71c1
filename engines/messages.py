"""What a running build says: TensorRT's log and the ONNX parser's errors in words that say what to do, and its progress."""

from __future__ import annotations

import functools
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from yolact_deploy.artifacts.names import Progress
from yolact_deploy.errors import EngineError

_KEPT_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")
# A second builder in the process; and probes of a driver that is not there (cudaError 35), which an ahead-of-time build
# survives.
_NOISE = re.compile(r"logger passed into|(catchCudaError|ScopedCudaStream).*cudaError 35")
_MESSAGE_CHARS = 400
# (pattern in the operator, pattern in the message, what to do); the first that fits is shown
_HINTS = (
    (
        "NonMaxSuppression",
        "",
        "TensorRT has no implementation for NonMaxSuppression. Leave detection outside the network, as "
        "`yolact-deploy export` does.",
    ),
    (
        "DeformConv",
        "",
        "TensorRT has no DeformConv. Express it with GridSample, as `yolact-deploy export` does.",
    ),
    (
        "DequantizeLinear",
        "Int32",
        "An INT32 bias behind DequantizeLinear is refused. Keep biases in floating point (onnxruntime's quantizer: "
        "QuantizeBias=False), or use `yolact-deploy export --precision int8`.",
    ),
    (
        "QuantizeLinear|DequantizeLinear",
        "(?i)zero.?point|uint8",
        "Only symmetric INT8 with zero point 0 is accepted: quantize activations and weights as symmetric QInt8, or "
        "use `yolact-deploy export --precision int8`.",
    ),
    (
        "",
        "must (be of|have) (the )?same type",
        "FP32 and FP16 tensors meet at this node; in a strongly typed network both must have one type. Insert a Cast, "
        "or use `yolact-deploy export --precision fp16`.",
    ),
    ("", "Plugin not found", "TensorRT does not know this operator: express it with standard ONNX operators."),
    ("", "within workspace limit", "The workspace is too small: allow more bytes, or leave the limit out."),
    (
        "",
        "driver version is insufficient|no CUDA-capable device",
        "This step needs an NVIDIA GPU with a working driver.",
    ),
)
_ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class LogRecord:
    """What TensorRT said during a build."""

    is_error: bool
    text: str


@functools.cache
def build_log(trt: Any) -> Any:
    """The process's one logger of a TensorRT module.

    TensorRT keeps the first logger it is given for as long as any of its objects lives: each build can't have its own.
    """

    class _BuildLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.records: list[LogRecord] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in _KEPT_SEVERITIES and not _NOISE.search(msg):
                self.records.append(LogRecord(severity.name != "WARNING", msg.strip()))

        @contextmanager
        def collect(self) -> Iterator[list[LogRecord]]:
            """What is logged from here on."""
            self.records = []
            yield self.records

    return _BuildLog()


def parser_errors(parser: Any) -> list[str]:
    """Every error of the ONNX parser: which node, which operator, what it said, what to do."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        name, operator = error.node_name() or "(unnamed)", error.node_operator() or "?"
        lines.append(_describe(name, operator, error.desc()))
    return lines


def build_errors(
    records: list[LogRecord],
    operators: Mapping[str, str],  # ONNX node name -> operator
) -> list[str]:
    """Every error of a failed build; a node is named where the message mentions it."""
    lines = []
    for text in dict.fromkeys(record.text for record in records if record.is_error):
        mentioned = [name for name in operators if name and name in text]
        if mentioned:
            name = max(mentioned, key=len)
            lines.append(_describe(name, operators[name], text))
        else:
            lines.append("\n".join([f"  {_shorten(text)}", *_hint_lines("", text)]))
    return lines


def _describe(name: str, operator: str, text: str) -> str:
    return "\n".join([f"  node {name} ({operator}): {_shorten(text)}", *_hint_lines(operator, text)])


def _shorten(text: str) -> str:
    """The message without the noise, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _NOISE.search(line)]
    joined = " ".join(lines)
    return joined if len(joined) <= _MESSAGE_CHARS else joined[:_MESSAGE_CHARS] + "..."


def _hint_lines(operator: str, text: str) -> list[str]:
    for operator_pattern, text_pattern, hint in _HINTS:
        if re.search(operator_pattern, operator) and re.search(text_pattern, text):
            return [f"    {hint}"]
    return []


class BuildControl:
    """What the build's callbacks share: where progress goes, and why the build must stop, if it must.

    Nothing may be raised through TensorRT, which would print it and lose it. It is kept here, the build is cancelled at
    its next step, and `raise_if_stopped` raises it afterwards.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._stopped_by: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether nothing has stopped the build yet."""
        return self._stopped_by is None

    def report(self, phase: str, step: int, total: int) -> None:
        """Tell the caller's progress of a phase; what that raises stops the build."""
        if self._progress is None or self._stopped_by is not None:
            return
        try:
            self._progress(phase, step, total)
        except BaseException as exc:
            self.stop(exc)

    def stop(self, reason: BaseException) -> None:
        """Have TensorRT cancel the build at its next step; the first reason counts."""
        if self._stopped_by is None:
            self._stopped_by = reason

    def raise_if_stopped(self) -> None:
        """Raise the reason that stopped the build, if one did."""
        if self._stopped_by is not None:
            raise self._stopped_by

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM stop the build at its next step, wherever in TensorRT they arrive. At the end the
        program's own handlers get them, and what stopped the build is raised.

        Only in the main thread, where Python's handlers run, and only signals that have such a handler: what it raised
        within TensorRT would be lost. One that is ignored, or ends the process, goes on doing so.
        """
        received: list[int] = []

        def on_signal(number: int, _frame: FrameType | None) -> None:
            received.append(number)
            self.stop(EngineError(f"the build was stopped by {signal.Signals(number).name}."))

        in_main_thread = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in _ENDING} if in_main_thread else {}
        previous = {number: handler for number, handler in handlers.items() if callable(handler)}
        try:
            for number in previous:
                signal.signal(number, on_signal)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if received:
                signal.raise_signal(received[0])
        self.raise_if_stopped()


def progress_monitor(trt: Any, control: BuildControl) -> Any:
    """TensorRT's IProgressMonitor over `control`. Phases nest, and a phase may end before its last step."""

    class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            control.report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.totals.get(phase_name, step + 1)
            control.report(phase_name, min(step + 1, total), total)
            return control.running

        def phase_finish(self, phase_name: str) -> None:
            total = self.totals.pop(phase_name, 1)
            control.report(phase_name, total, total)

    return _Monitor()
