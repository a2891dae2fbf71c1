"""Progress out of a running build, and the way to stop it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


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
        """Within, Ctrl-C stops the build at its next step, wherever in TensorRT it arrives; what stopped it is raised at
        the end.

        Only in the main thread, and only where Python's own handler is in place: a program that handles SIGINT itself
        goes on doing so.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            self.raise_if_stopped()
            return

        def on_interrupt(_signal_number: int, _frame: FrameType | None) -> None:
            self.stop(KeyboardInterrupt())

        previous = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
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
