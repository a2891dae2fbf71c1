"""What goes wrong in an emulated kernel is the failure of one check, never the end of the process that runs them all."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.emulator.device_memory import EmulatedMemory, EmulatorMisuseError
from tests.emulator.emulator import Array, Emulator, EmulatorError, compiled, emulator
from tests.emulator.expectations import SMALL
from yolact_deploy.cuda.launches import Launch
from yolact_deploy.cuda.specialization import Geometry

# Under the name and arguments of a kernel of ours; the first number says what it does wrong.
FAULTY = """
#include <cstdlib>
extern "C" __global__ void rle_starts(const unsigned* run_count, unsigned* run_start) {
  volatile unsigned* out = run_start;
  switch (run_count[0]) {
    case 1: out[16] = 7; break;
    case 2: out[-1] = 7; break;
    case 3: out[1 << 20] = 7; break;
    case 4: *(volatile unsigned*)8 = 7; break;
    case 5: out[0] = ((volatile const unsigned*)run_count)[1 << 20]; break;
    case 6: std::abort();
    case 7: __builtin_trap();
    case 8: while (true) out[0] = out[0] + 1;
    case 9: while (true) __syncthreads();
    default: out[0] = 42 + threadIdx.x * 0;
  }
}
"""
LAUNCH = Launch("rle_starts", (1, 1, 1), (32, 1, 1))


@pytest.fixture(scope="module")
def faulty() -> Emulator:
    emulator = Emulator(compiled(FAULTY, SMALL, "quick"))
    emulator.limit_seconds = 0.1
    return emulator


def run(emulator: Emulator, fault: int) -> Array:
    room = np.zeros(256 + 64, np.uint8)
    start = (
        -room.ctypes.data % 256
    )  # what is guarded ends with a page where an array does, and a write behind it faults
    out = room[start : start + 64].view(np.uint32)
    emulator.launch(LAUNCH, {"run_count": np.full(1, fault, np.uint32), "run_start": out})
    return out


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (1, "byte 64 was written, counted from the beginning of run_start of 64 bytes"),
        (2, "byte -4 was written, counted from the beginning of run_start"),
        (3, "access outside of its buffers, at 0x"),
        (4, "access outside of its buffers, at 0x8"),
        (5, "access outside of its buffers, at 0x"),
        (6, "Aborted"),
        (7, "Illegal instruction"),
        (8, r"does not end: stopped after 0\.1 s"),
        (9, r"does not end: stopped after 0\.1 s"),
    ],
    ids=["beyond", "before", "far", "null", "read", "abort", "trap", "endless", "endless barriers"],
)
def test_a_fault_of_a_kernel_is_an_error_and_the_process_goes_on(faulty: Emulator, fault: int, said: str) -> None:
    for _ in range(2):
        with pytest.raises(EmulatorError, match=f"rle_starts: .*{said}"):
            run(faulty, fault)
        assert run(faulty, 0)[0] == 42


def test_memory_of_the_emulated_gpu_is_guarded_too(faulty: Emulator) -> None:
    memory = EmulatedMemory()
    count, out = memory.allocate(4, 0), memory.allocate(64, 0)

    def launch(fault: int) -> None:
        memory.within(count, 4).view(np.uint32)[:] = fault
        faulty.launch(LAUNCH, {"run_count": memory.rest(count), "run_start": memory.rest(out)}, guard=False)

    with pytest.raises(EmulatorError, match="access outside of its buffers"):
        launch(3)
    launch(1)
    with pytest.raises(EmulatorMisuseError, match="written around the 64 bytes"):
        memory.release(out, pinned=False)


def test_views_of_one_array_stay_views_of_one_array(faulty: Emulator) -> None:
    both = np.zeros(17, np.uint32)
    faulty.launch(LAUNCH, {"run_count": both, "run_start": both[1:]})
    assert both.tolist() == [0, 42, *[0] * 15]


def test_blocks_whose_warps_would_leave_priors_out_are_not_compiled() -> None:
    with pytest.raises(EmulatorError, match="share 32 priors evenly"):
        emulator(dataclasses.replace(SMALL, geometry=Geometry(decode_threads=96)))
