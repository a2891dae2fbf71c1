"""Memory that a Detector takes on its GPU."""

from __future__ import annotations

import copy
from typing import Any

from benchmarks.device_parts import open_driver
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.errors import YolactDeployError

_CALLS = 3  # step by step, recorded, replayed: none of its buffers shrinks in between
_METHOD = (
    "free memory of the GPU before another Detector like it is opened, less after 3 calls: its weights, activations, buffers "
    "and CUDA graphs; not the CUDA context, nor libraries that are loaded already"
)


def device_memory(detector: Detector, images: list[Image], score_threshold: float) -> dict[str, Any]:
    """{"device_bytes", "device_method"}; None with the reason where there is no room for a second one."""
    driver = open_driver(detector)

    def free_bytes() -> int:
        with driver.current():
            return driver.memory_info()[0]

    before = free_bytes()
    try:
        with copy.copy(detector) as another:
            for _ in range(_CALLS):
                another(images, score_threshold=score_threshold)
            taken = before - free_bytes()
    except YolactDeployError as exc:
        return {"device_bytes": None, "device_method": f"unmeasured: {exc}"}
    return {"device_bytes": taken, "device_method": _METHOD}
