"""Claims about what befalls drivers, on the stand-in for libcuda: memory that is full, contexts torn down, refusals."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable

import numpy as np

from tests.emulator import standin
from tests.emulator.driver_harness import expect_refusal, gpu
from tests.emulator.driver_work import kernels_give_the_references_detections_and_masks
from tests.emulator.expectations import SMALL
from yolact_deploy.cuda.compile import load_kernels
from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.cuda.launches import Launch
from yolact_deploy.errors import DeviceError, DeviceMemoryError

ILLEGAL_ADDRESS, CONTEXT_IS_DESTROYED = 700, 709


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


CLAIMS = (
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
