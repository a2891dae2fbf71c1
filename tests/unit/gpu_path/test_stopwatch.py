"""Work timed on the emulated GPU, whose clock counts a millisecond for each call of the host and each piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.figures.gpu_timing import CudaGraphTimer
from tests.emulator.driver import EmulatedDriver
from tests.emulator.expectations import SMALL
from yolact_deploy.cuda.stopwatch import Stopwatch
from yolact_deploy.errors import DeviceError


@contextmanager
def watching(note: Callable[[str], None] | None = None) -> Iterator[tuple[EmulatedDriver, Stopwatch, int]]:
    """A stopwatch on a stream; afterwards nothing of it may be left."""
    driver = EmulatedDriver(host_takes_time=True)
    with driver.current():
        kernels, stream = driver.load_kernels(SMALL), driver.create_stream()
        watch = Stopwatch(driver, kernels, stream, note)
        yield driver, watch, stream
        driver.synchronize(stream)
        watch.close()
        kernels.close()
        driver.destroy_stream(stream)
    assert not driver.left_over


def test_a_time_holds_nothing_of_what_the_host_takes_to_enqueue() -> None:
    with watching() as (driver, watch, stream):

        def enqueue_slowly(pieces: int) -> None:
            for _ in range(pieces):
                driver.memory_info()  # a call, which takes the host a millisecond
                driver.call(stream, lambda: None)

        works = {f"{pieces} pieces": lambda n=pieces: enqueue_slowly(n) for pieces in (0, 1, 30)}
        for _ in range(2):
            assert watch.time(works) == {"0 pieces": 0, "1 pieces": 1, "30 pieces": 30}


def test_work_that_waits_for_the_gpu_is_timed_all_the_same_and_told_once() -> None:
    notes: list[str] = []
    with watching(notes.append) as (driver, watch, stream):
        works = {
            "before": lambda: driver.call(stream, lambda: None),
            "waits": lambda: driver.synchronize(stream),
            "after": lambda: driver.call(stream, lambda: None),
        }
        for _ in range(2):
            times = watch.time(works)
            assert (times["before"], times["after"]) == (1, 1)
            assert times["waits"] > 0
    (note,) = notes
    assert note.startswith("times of waits hold the host's own")


def test_a_gate_is_opened_when_enqueueing_fails() -> None:
    with watching() as (driver, watch, stream):
        done = []

        def fail() -> None:
            driver.call(stream, lambda: done.append(driver.launches["hold_stream"]))
            raise DeviceError("the second of them is refused")

        with pytest.raises(DeviceError, match="the second"):
            watch.time({"work": fail})
        driver.synchronize(stream)
        assert done == [1]
        assert watch.time({"work": lambda: None}) == {"work": 0}
        assert not watch.unheld


def test_a_figure_of_work_that_waits_for_the_gpu_says_that_it_holds_the_hosts_time() -> None:
    with watching() as (driver, _, stream):
        kernels = driver.load_kernels(SMALL)
        timer = CudaGraphTimer(driver, stream, repeats=2, capture=False, kernels=kernels)
        timer.each([lambda on: driver.call(on, lambda: None)])
        assert timer.notes == []
        for _ in range(2):
            timer.each([driver.synchronize])
        kernels.close()
    (note,) = timer.notes
    assert "hold the host's own" in note
