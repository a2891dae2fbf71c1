"""Under what conditions a Detector ran: clocks, transfers, CUDA graphs, waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yolact_deploy import Detector

_ON_HOST: dict[str, Any] = {
    "clock": "host",
    "transfers": "none: host memory only",
    "cuda_graph": None,
    "graph_stages": [],
    "wait": "the network's threads spin while it runs, and rest after it",
}
_ON_GPU: dict[str, Any] = {
    "clock": "host; stages: device (CUDA events)",
    "transfers": "counted: images to the device, detections and bit-packed masks to the host",
    "wait": "as CUDA chooses (it spins, unless it has more contexts than the host has cores)",
}


_NETWORK_ON_GPU: dict[str, Any] = {
    **_ON_HOST,
    "transfers": "counted, within the network: its input to the device, its heads to the host",
    "wait": _ON_GPU["wait"],
}
_REST_ON_CPU = ", the rest on the CPU"  # of the description, where the kernels do not do what was asked for


def network_on_gpu(detector: Detector) -> bool:
    """Whether the network runs on a GPU, whatever the rest does."""
    return detector.on_gpu or detector.description.endswith(_REST_ON_CPU)


def conditions(detector: Detector) -> dict[str, Any]:
    """ "clock", "transfers", "cuda_graph" (None on the CPU), "graph_stages" and "wait", after a Detector has run."""
    if not detector.on_gpu:
        return dict(_NETWORK_ON_GPU if network_on_gpu(detector) else _ON_HOST)
    stages = list(detector.graph_stages)
    return {**_ON_GPU, "cuda_graph": bool(stages), "graph_stages": stages}


def common(runs: Sequence[dict[str, Any]], key: str) -> Any:
    """What all runs have under a key; a list, in their order, where they differ."""
    values = [run[key] for run in runs]
    return values[0] if values and all(value == values[0] for value in values) else values
