"""Claims about the drivers, on the stand-in for libcuda, in a process that has it:

python -m tests.emulator.driver_scenarios CLAIM...    (with `standin.environment`)

The process is one, so that each also says that the others left it usable; each leaves nothing on the GPU.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Callable

from tests.emulator import driver_faults, driver_work, standin

FATAL = driver_faults.an_illegal_address_ends_cuda_in_the_process_and_says_so.__name__  # after it nothing can be freed
UNPLACED = (
    driver_faults.a_kernel_without_a_binary_for_the_gpu_is_said.__name__
)  # wants a cache without the emulator's kernels
SCENARIOS: dict[str, Callable[[], None]] = {
    claim.__name__: claim for claim in (*driver_work.CLAIMS, *driver_faults.CLAIMS)
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
