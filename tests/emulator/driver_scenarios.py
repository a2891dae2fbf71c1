"""Claims about the drivers, on the stand-in for libcuda, in a process that has it:

python -m tests.emulator.driver_scenarios CLAIM...    (with `standin.environment`)

The process is one, so that each also says that the others left it usable; each leaves nothing on the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.emulator import standin
from tests.emulator.emulator import Array
from tests.emulator.expectations import SMALL, expect_masks, expect_reference, heads
from tests.emulator.pipeline import Pipeline
from tests.gpu.runner import GpuRunner
from yolact_deploy.cuda.compile import load_kernels
from yolact_deploy.cuda.device_arrays import import_image
from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.drivers.opening import open_driver, visible_devices
from yolact_deploy.cuda.launches import Launch
from yolact_deploy.errors import DeviceError, DeviceMemoryError, EngineError, YolactDeployError

ILLEGAL_ADDRESS, CONTEXT_IS_DESTROYED = 700, 709
POISON = 0xA5


def kernels_give_the_references_detections_and_masks() -> None:
    driver = open_driver()
    kernels = load_kernels(driver, SMALL)
    pipeline = Pipeline(GpuRunner(driver, kernels), SMALL)
    raws = expect_reference(pipeline, heads(1, SMALL, priors=70, batch=2))
    expect_masks(pipeline, raws, (45, 61))
    with driver.current():
        kernels.close()
        kernels.close()
    expect_refusal(
        lambda: kernels.launch(Launch("rle_starts", (1, 1, 1), (32, 1, 1)), {}, 0), "run_count, run_start", EngineError
    )
    values = {"run_count": 0, "run_start": 0}
    expect_refusal(
        lambda: kernels.launch(Launch("rle_starts", (1, 1, 1), (32, 1, 1)), values, 0), "closed", EngineError
    )


def devices_are_what_the_driver_shows() -> None:
    device, _ = visible_devices()
    assert (device.index, device.name, device.architecture, device.target) == (0, "Emulated GPU 0", "sm_90", "sm90")
    assert device.driver_version == (13, 0)
    driver = open_driver()
    assert driver.device == device
    with driver.current():
        address = driver.allocate(1 << 20, "a test")
        assert driver.memory_info() == (device.memory_bytes - (1 << 20), device.memory_bytes)
        assert driver.device_of(address + 100) == 0
        assert driver.device_of(np.zeros(1).ctypes.data) is None
        pinned = driver.allocate_pinned(64, "a test")
        assert driver.device_of(pinned) is None
        driver.free_pinned(pinned)
        driver.free(address)


def copies_on_pinned_memory_are_seen_after_synchronizing_only() -> None:
    with gpu() as driver:
        host, device = driver.allocate_pinned(64, "host"), driver.allocate(64, "device")
        stream = driver.create_stream()
        view = host_bytes(host, 64)
        view[:] = 7
        driver.copy_to_device(device, host, 64, stream)
        driver.synchronize(stream)
        view[:] = 0
        driver.copy_to_host(host, device, 64, stream)
        assert (view == POISON).all()
        driver.synchronize(stream)
        assert (view == 7).all()
        driver.destroy_stream(stream)
        driver.free(device)
        driver.free_pinned(host)


def locked_pages_are_copied_to_without_waiting_and_outlive_a_reset() -> None:
    memory = mmap.mmap(-1, 1 << 16)
    view = np.frombuffer(memory, np.uint8)
    address, sent = view.ctypes.data, np.full(64, 7, np.uint8)
    with gpu() as driver:
        device, stream = driver.allocate(64, "device"), driver.create_stream()
        driver.lock_pages(address, 1 << 16)
        expect_refusal(lambda: driver.lock_pages(address, 1 << 16), "locking pages.*ALREADY_REGISTERED")
        driver.copy_to_device(device, sent.ctypes.data, 64, stream)
        driver.synchronize(stream)
        driver.copy_to_host(address, device, 64, stream)
        assert (view[:64] == POISON).all()
        driver.synchronize(stream)
        assert (view[:64] == 7).all()
        driver.unlock_pages(address)
        expect_refusal(lambda: driver.unlock_pages(address), "unlocking pages.*NOT_REGISTERED")
        driver.lock_pages(address, 1 << 16)
        standin.reset_device()
        expect_refusal(lambda: driver.synchronize(stream), "CONTEXT_IS_DESTROYED|INVALID_CONTEXT")
        driver.unlock_pages(address)
        driver.destroy_stream(stream)
        driver.free(device)
    assert (view[:64] == 7).all()


def copies_are_ordered_by_events_between_streams() -> None:
    with gpu() as driver:
        first, second = driver.create_stream(), driver.create_stream()
        source, middle, target = (driver.allocate(32, "a test") for _ in range(3))
        sent, received = np.arange(32, dtype=np.uint8), np.zeros(32, np.uint8)
        event = driver.create_event()
        driver.copy_to_device(source, sent.ctypes.data, 32, first)
        driver.copy_on_device(middle, source, 32, first)
        driver.record(event, first)
        driver.wait(second, event)
        driver.copy_on_device(target, middle, 32, second)
        driver.copy_to_host(received.ctypes.data, target, 32, second)
        driver.synchronize(second)
        assert received.tolist() == sent.tolist()
        driver.synchronize_event(event)
        start, end = driver.create_event(timing=True), driver.create_event(timing=True)
        driver.record(start, first)
        driver.record(end, first)
        driver.synchronize(first)
        assert driver.elapsed_ms(start, end) >= 0
        for handle in (event, start, end):
            driver.destroy_event(handle)
        for address in (source, middle, target):
            driver.free(address)
        driver.destroy_stream(first)
        driver.destroy_stream(second)


def a_forgotten_wait_between_streams_shows() -> None:
    """Of the stand-in: it would tell of a Detector that orders its streams by luck."""
    with gpu() as driver:
        first, second = driver.create_stream(), driver.create_stream()
        device, sent, received = driver.allocate(4, "a test"), np.full(4, 7, np.uint8), np.zeros(4, np.uint8)
        driver.copy_to_device(device, sent.ctypes.data, 4, first)
        driver.copy_to_host(received.ctypes.data, device, 4, second)
        driver.synchronize(second)
        assert (received == POISON).all()
        driver.free(device)
        driver.destroy_stream(first)
        driver.destroy_stream(second)


def a_copy_beyond_an_allocation_is_refused() -> None:
    with gpu() as driver:
        device, host = driver.allocate(64, "device"), driver.allocate_pinned(64, "host")
        for target, source, nbytes in (
            (device, host, 65),
            (device + 60, host, 8),
            (device - 1, host, 4),
            (device, host + 60, 8),
        ):
            expect_refusal(partial(driver.copy_to_device, target, source, nbytes, 0), "CUDA_ERROR_INVALID_VALUE")
        driver.copy_to_device(device + 60, host, 4, 0)
        driver.free(device)
        driver.free_pinned(host)


def a_driver_serves_several_threads() -> None:
    driver = open_driver()
    received = [np.zeros(4, np.uint8) for _ in range(3)]

    def work(index: int) -> None:
        with driver.current():
            stream, device = driver.create_stream(), driver.allocate(4, "a test")
            sent = np.full(4, index + 1, np.uint8)
            driver.copy_to_device(device, sent.ctypes.data, 4, stream)
            driver.copy_to_host(received[index].ctypes.data, device, 4, stream)
            driver.synchronize(stream)
            driver.free(device)
            driver.destroy_stream(stream)
            driver.create_stream()  # left for the main thread

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))
    assert [values.tolist() for values in received] == [[1] * 4, [2] * 4, [3] * 4]
    assert libcuda.current_context() == 0


def another_librarys_stream_is_waited_for() -> None:
    with gpu() as driver, gpu() as other:
        foreign, own = other.create_stream(), driver.create_stream()
        device, received = driver.allocate(16, "a test"), np.zeros(16, np.uint8)
        sent = np.full(16, 3, np.uint8)
        other.copy_to_device(device, sent.ctypes.data, 16, foreign)
        event = driver.create_event()
        driver.record(event, foreign)
        driver.wait(own, event)
        driver.copy_to_host(received.ctypes.data, device, 16, own)
        driver.synchronize(own)
        assert (received == 3).all()
        driver.record(event, own)
        driver.wait(foreign, event)
        driver.synchronize(foreign)
        driver.free(device)
        driver.destroy_event(event)
        driver.destroy_stream(own)
        other.destroy_stream(foreign)


def images_of_a_default_stream_are_waited_for() -> None:
    """1 and 2 are CUDA's names for its default streams, whatever else a driver may have given such a number."""
    with gpu() as driver:
        kernels = load_kernels(driver, SMALL)
        counts = driver.allocate(1 << 10, "a test")
        values = {"run_count": counts, "run_start": counts}
        kernels.launch(Launch("rle_starts", (1, 1, 1), (32, 1, 1)), values, 0)
        own, sent = driver.create_stream(), np.arange(12, dtype=np.uint8)
        producers: tuple[dict[str, Any], ...] = (
            {"version": 2},
            {"version": 3, "stream": 1},
            {"version": 3, "stream": 2},
        )
        for producer in producers:
            source, image, received = driver.allocate(12, "a"), driver.allocate(12, "b"), np.zeros(12, np.uint8)
            driver.copy_to_device(source, sent.ctypes.data, 12, 0)
            driver.copy_on_device(image, source, 12, 0)
            described = {"shape": (2, 2, 3), "typestr": "|u1", "data": (image, False), **producer}
            borrowed = import_image(SimpleNamespace(__cuda_array_interface__=described), driver, own)
            driver.copy_to_host(received.ctypes.data, borrowed.address, 12, own)
            driver.synchronize(own)
            assert received.tolist() == sent.tolist()
            driver.free(source)
            driver.free(image)
        driver.destroy_stream(own)
        driver.free(counts)
        kernels.close()


def a_graph_replays_what_was_captured_on_two_streams() -> None:
    with gpu() as driver:
        assert driver.captures_cuda_graphs
        main, side = driver.create_stream(), driver.create_stream()
        sent, received = driver.allocate_pinned(8, "sent"), driver.allocate_pinned(8, "received")
        device, copy = driver.allocate(8, "device"), driver.allocate(8, "copy")
        fork, join = driver.create_event(), driver.create_event()
        driver.begin_capture(main)
        driver.copy_to_device(device, sent, 8, main)
        driver.record(fork, main)
        driver.wait(side, fork)
        driver.copy_on_device(copy, device, 8, side)
        driver.record(join, side)
        driver.wait(main, join)
        driver.copy_to_host(received, copy, 8, main)
        graph = driver.end_capture(main)
        for value in (1, 2):
            host_bytes(sent, 8)[:] = value
            driver.launch_cuda_graph(graph, main)
            assert (host_bytes(received, 8) == POISON).all()
            driver.synchronize(main)
            assert (host_bytes(received, 8) == value).all()
        driver.destroy_cuda_graph(graph)
        for event in (fork, join):
            driver.destroy_event(event)
        for address in (device, copy):
            driver.free(address)
        for address in (sent, received):
            driver.free_pinned(address)
        driver.destroy_stream(main)
        driver.destroy_stream(side)


def a_capture_that_leaves_a_stream_unjoined_is_refused() -> None:
    with gpu() as driver:
        main, side = driver.create_stream(), driver.create_stream()
        first, second = driver.allocate(8, "first"), driver.allocate(8, "second")
        fork = driver.create_event()
        driver.begin_capture(main)
        driver.record(fork, main)
        driver.wait(side, fork)
        driver.copy_on_device(first, second, 8, side)
        expect_refusal(lambda: driver.end_capture(main), "CAPTURE_UNJOINED")
        driver.destroy_event(fork)
        driver.free(first)
        driver.free(second)
        driver.destroy_stream(main)
        driver.destroy_stream(side)


def a_capture_that_synchronizes_is_refused_and_the_stream_lives_on() -> None:
    with gpu() as driver:
        stream = driver.create_stream()
        driver.begin_capture(stream)
        expect_refusal(lambda: driver.synchronize(stream), "CAPTURE_UNSUPPORTED.*cuda_graph=False")
        expect_refusal(lambda: driver.end_capture(stream), "CAPTURE_INVALIDATED")
        driver.synchronize(stream)
        driver.destroy_stream(stream)


def no_memory_names_the_buffer_what_it_needs_and_what_is_free() -> None:
    with gpu() as driver:
        held = driver.allocate(16 << 20, "priors")
        expect_refusal(
            lambda: driver.allocate(64 << 20, "candidate_scores"),
            r"candidate_scores needs 64\.0 MiB.* 48\.0 MiB of 64\.0 MiB are free",
            DeviceMemoryError,
        )
        expect_refusal(lambda: driver.allocate_pinned(80 << 20, "masks"), "page-locked.*masks needs", DeviceMemoryError)
        driver.free(held)
        driver.free(driver.allocate(64 << 20, "candidate_scores"))


def what_was_current_is_so_again() -> None:
    driver = open_driver()
    assert libcuda.current_context() == 0
    with driver.current():
        ours = libcuda.current_context()
        with driver.current(), open_driver().current():
            assert libcuda.current_context() == ours
        assert libcuda.current_context() == ours
        with contextlib.suppress(KeyError), driver.current():
            raise KeyError
        assert libcuda.current_context() == ours
    assert libcuda.current_context() == 0
    foreign = open_driver(1)
    with foreign.current():
        theirs = libcuda.current_context()
        with driver.current():
            assert libcuda.current_context() == ours
        assert libcuda.current_context() == theirs
    libcuda.set_current_context(theirs)  # as a library does that sets its context and leaves it
    with driver.current():
        libcuda.set_current_context(theirs)
        with driver.current():
            assert libcuda.current_context() == ours
        assert libcuda.current_context() == theirs
        libcuda.set_current_context(ours)
    assert libcuda.current_context() == theirs
    libcuda.pop_context()


def a_context_torn_down_by_another_library_is_said_and_a_new_driver_works() -> None:
    _see_a_context_torn_down()
    assert libcuda.current_context() == 0
    gc.collect()
    kernels_give_the_references_detections_and_masks()


def _see_a_context_torn_down() -> None:
    driver = open_driver()
    with driver.current():
        address, pinned, stream, event = (
            driver.allocate(64, "a"), driver.allocate_pinned(64, "b"), driver.create_stream(), driver.create_event(),
        )  # fmt: skip
        kernels = load_kernels(driver, SMALL)
        kernels.launch(
            Launch("rle_starts", (1, 1, 1), (32, 1, 1)), {"run_count": address, "run_start": address}, stream
        )
        standin.reset_device()
        expect_refusal(lambda: driver.allocate(64, "c"), "another library.*open a new Detector")
        expect_refusal(lambda: driver.synchronize(stream), "CONTEXT_IS_DESTROYED|INVALID_HANDLE")
        releases: tuple[Callable[[], None], ...] = (
            lambda: driver.free(address),
            lambda: driver.free_pinned(pinned),
            lambda: driver.destroy_stream(stream),
            lambda: driver.destroy_event(event),
            kernels.close,
        )
        for release in releases:
            with contextlib.suppress(DeviceError):
                release()


def a_context_torn_down_between_two_uses_is_said() -> None:
    _see_a_context_torn_down_between_two_uses()
    assert libcuda.current_context() == 0
    gc.collect()
    with gpu() as again:
        again.free(again.allocate(64, "a test"))


def _see_a_context_torn_down_between_two_uses() -> None:
    driver = open_driver()
    with driver.current():
        driver.create_stream()
    standin.reset_device()

    def enter() -> None:
        with driver.current():
            driver.memory_info()

    expect_refusal(enter, "another library")


def a_driver_whose_context_was_reset_does_not_touch_the_next_ones() -> None:
    old = open_driver()
    with old.current():
        address, pinned, stream = old.allocate(64, "a"), old.allocate_pinned(64, "b"), old.create_stream()
    standin.reset_device()  # which the old driver does not hear of
    new = open_driver()
    with new.current():
        taken = [new.allocate(64, "c") for _ in range(8)]  # the old address among them
        streams = [new.create_stream() for _ in range(8)]
        before = standin.live_by_kind()
        old.free(address)
        old.free_pinned(pinned)
        old.destroy_stream(stream)
        del old
        gc.collect()
        assert standin.live_by_kind() == before | {"context": before["context"] - 1}
        for handle in streams:
            new.destroy_stream(handle)
        for again in taken:
            new.free(again)


def a_driver_whose_context_was_reset_says_so_beside_a_new_one() -> None:
    old = open_driver()
    standin.reset_device()
    with gpu() as new:
        new.free(new.allocate(64, "a test"))
        expect_refusal(old.current().__enter__, "another library.*open a new Detector")


def a_context_that_can_not_be_left_is_left_behind() -> None:
    driver = open_driver()
    with driver.current():
        driver.create_stream()
        standin.reset_device()
        standin.fail("cuCtxPopCurrent_v2", CONTEXT_IS_DESTROYED)
    libcuda.set_current_context(0)
    del driver
    gc.collect()
    with gpu() as again:
        again.free(again.allocate(64, "a test"))


def a_driver_dropped_with_all_it_holds_leaves_nothing() -> None:
    driver = open_driver()
    with driver.current():
        stream = driver.create_stream()
        driver.allocate_pinned(64, "a")
        driver.copy_on_device(driver.allocate(64, "b"), driver.allocate(64, "c"), 64, stream)


def a_refusal_names_the_action_the_error_and_the_gpu() -> None:
    with gpu() as driver:
        standin.fail("cuStreamCreate", 999)
        expect_refusal(driver.create_stream, r"cuda:0 \(Emulated GPU 0\) failed in making a stream: CUDA_ERROR_UNKNOWN")
        expect_refusal(lambda: driver.load_module(b"\x7fELF" + bytes(60)), "update the NVIDIA driver")
        missing = np.zeros(4, np.uint8).ctypes.data
        expect_refusal(lambda: driver.copy_on_device(missing, missing, 4, 0), "CUDA_ERROR_INVALID_VALUE")


def an_illegal_address_ends_cuda_in_the_process_and_says_so() -> None:
    driver = open_driver()
    with driver.current():
        stream = driver.create_stream()
        standin.fail("cuStreamSynchronize", ILLEGAL_ADDRESS)
        for _ in range(2):
            expect_refusal(lambda: driver.synchronize(stream), "CUDA_ERROR_ILLEGAL_ADDRESS.*restart")


def a_kernel_without_a_binary_for_the_gpu_is_said() -> None:
    """NVRTC makes a cubin, which the stand-in is no GPU for."""
    expect_refusal(lambda: load_kernels(open_driver(), SMALL), "CUDA_ERROR_NO_BINARY_FOR_GPU.*update the NVIDIA driver")


@contextlib.contextmanager
def gpu() -> Iterator[Driver]:
    driver = open_driver()
    with driver.current():
        yield driver


def host_bytes(address: int, nbytes: int) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def expect_refusal(act: Callable[[], object], pattern: str, kind: type[YolactDeployError] = DeviceError) -> None:
    with pytest.raises(kind, match=f"(?s){pattern}"):
        act()


FATAL = "an_illegal_address_ends_cuda_in_the_process_and_says_so"  # after it nothing can be freed
UNPLACED = "a_kernel_without_a_binary_for_the_gpu_is_said"  # wants a cache without the emulator's kernels
SCENARIOS: dict[str, Callable[[], None]] = {
    scenario.__name__: scenario
    for scenario in (
        kernels_give_the_references_detections_and_masks,
        devices_are_what_the_driver_shows,
        copies_on_pinned_memory_are_seen_after_synchronizing_only,
        locked_pages_are_copied_to_without_waiting_and_outlive_a_reset,
        copies_are_ordered_by_events_between_streams,
        a_forgotten_wait_between_streams_shows,
        a_copy_beyond_an_allocation_is_refused,
        a_driver_serves_several_threads,
        another_librarys_stream_is_waited_for,
        images_of_a_default_stream_are_waited_for,
        a_graph_replays_what_was_captured_on_two_streams,
        a_capture_that_leaves_a_stream_unjoined_is_refused,
        a_capture_that_synchronizes_is_refused_and_the_stream_lives_on,
        no_memory_names_the_buffer_what_it_needs_and_what_is_free,
        what_was_current_is_so_again,
        a_context_torn_down_by_another_library_is_said_and_a_new_driver_works,
        a_context_torn_down_between_two_uses_is_said,
        a_driver_whose_context_was_reset_does_not_touch_the_next_ones,
        a_driver_whose_context_was_reset_says_so_beside_a_new_one,
        a_context_that_can_not_be_left_is_left_behind,
        a_driver_dropped_with_all_it_holds_leaves_nothing,
        a_refusal_names_the_action_the_error_and_the_gpu,
        an_illegal_address_ends_cuda_in_the_process_and_says_so,
        a_kernel_without_a_binary_for_the_gpu_is_said,
    )
}


def outcome(scenario: Callable[[], None]) -> str:
    """ "holds", or what is wrong. Twice, as what the first time leaves behind may be what the second stumbles over."""
    try:
        for _ in range(1 if scenario.__name__ == FATAL else 2):
            scenario()
            gc.collect()
            if (left := standin.live_by_kind()) and scenario.__name__ != FATAL:
                return f"left on the GPU: {left}"
    except BaseException:
        return traceback.format_exc()
    return "holds"


if __name__ == "__main__":
    print(json.dumps({name: outcome(SCENARIOS[name]) for name in sys.argv[1:]}))
