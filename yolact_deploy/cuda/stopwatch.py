"""Times of work by the device's own clock, without those of the host that enqueues it.

Between two CUDA events lies all that the device waited for, and a GPU that is faster than the host waits for the host. So work
is held back by a gate, a kernel that spins until the host opens it, while all of it is enqueued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import numpy as np

from yolact_deploy.arrays import AnyArray
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.launches import Launch

_GATE = Launch("hold_stream", (1, 1, 1), (1, 1, 1))
_POLLS = 1 << 18  # a second at most, a quarter of one at least: far beyond what enqueueing takes
_TRIES = 2  # for what kept a gate closed too long: once it may have been another process that had the host


class Stopwatch:
    """Work on one stream, timed. Methods are called with the driver's context current.

    Never a deadlock: a gate opens by itself after less than a second, and at once when enqueueing fails. Work during which
    that happened twice waits for the device itself while it is enqueued (as a network that copies through the host); it is
    timed without a gate from then on.
    """

    def __init__(
        self,
        driver: Driver,
        kernels: Kernels,  # of any model: they all have the gate
        stream: int,
        note: Callable[[str], None] | None = None,  # told in words of what can't be held back
    ) -> None:
        self._driver, self._kernels, self._stream, self._note = driver, kernels, stream, note
        self._gates = Buffers(driver)
        self._too_late: Counter[str] = Counter()

    @property
    def unheld(self) -> frozenset[str]:
        """Names of what can't be held back: their times hold the host's too."""
        return frozenset(name for name, times in self._too_late.items() if times >= _TRIES)

    def time(
        self,
        works: Mapping[str, Callable[[], object]],  # each enqueues on the stream; may be called more than once
    ) -> dict[str, float]:
        """Milliseconds of the device for each of `works`, which run one after the other; they are done when it returns.

        Raises DeviceError, and what `works` raise.
        """
        while True:
            times_ms, late = self._try(works)
            if late is None:
                return times_ms
            self._too_late[late] += 1
            if self._note is not None and late in self.unheld:
                self._note(f"times of {late} hold the host's own: it waits for the GPU while it is enqueued")

    def close(self) -> None:
        """Give its memory back."""
        self._gates.close()

    def _try(self, works: Mapping[str, Callable[[], object]]) -> tuple[dict[str, float], str | None]:
        """Times, and what was enqueued when a gate gave up waiting."""
        driver, stream, unheld = self._driver, self._stream, self.unheld
        gates = self._closed_gates(len(works))
        late: str | None = None
        with ExitStack() as stack:
            events: dict[str, list[int]] = {name: [] for name in works}
            for pair in events.values():
                for _ in range(2):
                    pair.append(driver.create_event(timing=True))
                    stack.callback(driver.destroy_event, pair[-1])
            try:
                is_held = False
                for number, (name, work) in enumerate(works.items()):
                    if name in unheld:
                        gates[:number, 0] = 1
                    elif not is_held:
                        self._hold(number)
                    is_held = name not in unheld
                    driver.record(events[name][0], stream)
                    work()
                    driver.record(events[name][1], stream)
                    if late is None and gates[:, 1].any():
                        late = name
            finally:
                gates[:, 0] = 1
            driver.synchronize(stream)
            times = {name: driver.elapsed_ms(*pair) for name, pair in events.items()}
            if late is None and gates[:, 1].any():
                late = list(works)[-1]
        return times, late

    def _closed_gates(self, count: int) -> AnyArray:
        """uint32 [count, 2], where the kernel looks and writes."""
        self._gates.reserve({}, {"gates": 8 * count})
        gates = self._gates.pinned_view("gates", 8 * count).view(np.uint32).reshape(count, 2)
        gates[...] = 0
        return gates

    def _hold(self, number: int) -> None:
        values = {"gate": self._gates.pinned_address("gates") + 8 * number, "polls": _POLLS}
        self._kernels.launch(_GATE, values, self._stream)
