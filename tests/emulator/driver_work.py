"""Claims about what drivers do, on the stand-in for libcuda: kernels, memory, streams, graphs."""

from __future__ import annotations

import contextlib
import mmap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.emulator import standin
from tests.emulator.driver_harness import POISON, expect_refusal, gpu, host_bytes
from tests.emulator.expectations import SMALL, expect_masks, expect_reference, heads
from tests.emulator.pipeline import Pipeline
from tests.gpu.runner import GpuRunner
from yolact_deploy.cuda.compile import load_kernels
from yolact_deploy.cuda.device_arrays import import_image
from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers.opening import open_driver, visible_devices
from yolact_deploy.cuda.launches import Launch
from yolact_deploy.cuda.stopwatch import Stopwatch
from yolact_deploy.errors import EngineError


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


def work_is_timed_behind_a_gate_that_opens_when_all_of_it_is_enqueued() -> None:
    with gpu() as driver:
        kernels, stream, device = load_kernels(driver, SMALL), driver.create_stream(), driver.allocate(64, "a test")
        notes: list[str] = []
        watch = Stopwatch(driver, kernels, stream, notes.append)
        sent, received = driver.allocate_pinned(64, "sent"), driver.allocate_pinned(64, "received")
        host_bytes(sent, 64)[:] = 7

        def fail() -> None:
            raise KeyError

        works = {
            "in": partial(driver.copy_to_device, device, sent, 64, stream),
            "out": partial(driver.copy_to_host, received, device, 64, stream),
        }
        for _ in range(2):
            times = watch.time(works)
            assert (host_bytes(received, 64) == 7).all()
            assert all(time >= 0 for time in times.values())
            with contextlib.suppress(KeyError):
                watch.time({"in": works["in"], "fails": fail})
            driver.synchronize(stream)
        assert list(times) == ["in", "out"]
        waits = {"waits": partial(driver.synchronize, stream), "out": works["out"]}
        assert set(watch.time(waits)) == {"waits", "out"}
        assert sum(note.startswith("times of waits") for note in notes) == 1
        watch.close()
        kernels.close()
        driver.destroy_stream(stream)
        driver.free(device)
        driver.free_pinned(sent)
        driver.free_pinned(received)


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


CLAIMS = (
    kernels_give_the_references_detections_and_masks,
    devices_are_what_the_driver_shows,
    copies_on_pinned_memory_are_seen_after_synchronizing_only,
    locked_pages_are_copied_to_without_waiting_and_outlive_a_reset,
    copies_are_ordered_by_events_between_streams,
    work_is_timed_behind_a_gate_that_opens_when_all_of_it_is_enqueued,
    a_forgotten_wait_between_streams_shows,
    a_copy_beyond_an_allocation_is_refused,
    a_driver_serves_several_threads,
    another_librarys_stream_is_waited_for,
    images_of_a_default_stream_are_waited_for,
    a_graph_replays_what_was_captured_on_two_streams,
    a_capture_that_leaves_a_stream_unjoined_is_refused,
    a_capture_that_synchronizes_is_refused_and_the_stream_lives_on,
)
