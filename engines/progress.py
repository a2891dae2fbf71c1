"""Progress out of a running build, and the way to stop it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from yolact_deploy.errors import EngineError

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all

_ENDING = (signal.SIGINT, signal.SIGTERM)


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
        return self._stopped_by is None

    def report(self, phase: str, step: int, total: int) -> None:
        if self._progress is None or self._stopped_by is not None:
            return
        try:
            self._progress(phase, step, total)
        except BaseException as exc:
            self.stop(exc)

    def stop(self, reason: BaseException) -> None:
        if self._stopped_by is None:
            self._stopped_by = reason

    def raise_if_stopped(self) -> None:
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
