"""The GPU benchmarks over the emulated driver: they run, they measure what they say, and give everything back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.device import Memory
from benchmarks.figures.gpu_frames import measure_frames
from benchmarks.figures.gpu_kernels import Settings, measure_kernels, measure_preprocess
from benchmarks.figures.gpu_page import gpu_section
from benchmarks.figures.gpu_timing import CudaGraphTimer, copy_bandwidth
from benchmarks.figures.results_page import render_page
from tests.emulator.cpu_network import CpuNetwork
from tests.emulator.driver import EmulatedDriver
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.cuda import launches
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.specialization import Specialization, specialize

ONCE = Settings(copies=2, repeats=1, replays=2, spin_s=0.0)
FLOOR_MS = {True: 4.0, False: 8.0}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to compile the kernels for the CPU"),
]


@pytest.fixture(scope="module")
def detector(shapes_onnx: Path) -> Detector:
    return Detector(shapes_onnx, device="cpu", threads=1)


def _load(driver: Any, specialization: Specialization, note: Callable[[str], None] = print) -> Kernels:
    del note
    loaded: Kernels = driver.load_kernels(specialization)
    return loaded


def _photo(image_hw: tuple[int, int]) -> Image:
    return np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)


def test_kernels_are_timed_on_the_detections_of_the_reference(detector: Detector) -> None:
    image = _photo((90, 120))
    heads = detector.run_network(detector.preprocess([image]))
    driver = EmulatedDriver()
    found = measure_kernels(driver, detector.spec, heads, (90, 120), ONCE, load=_load)
    expected = detector.suppress(heads)[0]
    assert found["detections"] == len(expected) > 0
    specialization = specialize(detector.spec)
    launched = [launch.kernel for launch in launches.detect_launches(specialization, detector.spec.num_priors, 1)]
    assert [row["kernel"] for row in found["kernels"]] == [*launched, "assemble_masks"]
    # the emulated clock counts pieces of work as milliseconds: a launch each, and of the whole the copy of the results as well
    assert {(row["cold_us"], row["warm_us"]) for row in found["kernels"]} == {(1000.0, 1000.0)}
    assert found["cold_us"] == found["warm_us"] == 1000.0 * (1 + len(found["kernels"]))
    assert found["copies"] == 2
    pixels = detector.assemble(expected, (90, 120)).masks
    whole_rows = sum(int(mask.any(axis=1).sum()) for mask in pixels)
    assert whole_rows * 4 <= found["mask_copy_bytes"] < len(expected) * 90 * 16  # windows, not images
    assert not driver.left_over


def test_preprocessing_and_copies_are_timed_and_everything_is_given_back(detector: Detector) -> None:
    driver = EmulatedDriver()
    found = measure_preprocess(driver, detector.spec, (31, 17), ONCE, load=_load)
    assert (found["cold_us"], found["warm_us"], found["copies"]) == (1000.0, 1000.0, 2)
    assert copy_bandwidth(driver, nbytes=1 << 16, repeats=2) > 0
    assert not driver.left_over


@pytest.mark.parametrize("capturable", [True, False])
def test_a_frame_has_the_detectors_detections_and_every_stage(
    detector: Detector, shapes_onnx: Path, capturable: bool
) -> None:
    image = _photo((60, 80))
    driver = EmulatedDriver()
    found = measure_frames(
        driver, lambda: CpuNetwork(shapes_onnx, driver, in_stream=capturable), image, repeats=2, load=_load
    )
    assert found["detections"] == len(detector(image))
    assert set(found["stages_ms"]) == {
        "host_to_device",
        "preprocess",
        "network",
        "detect",
        "masks",
        "device_to_host",
    }
    assert found["floor_ms"] == FLOOR_MS[capturable]  # no less is possible: the bare network, and the copies
    assert found["overhead"] > -1
    assert found["in_flight"] == 2
    assert not driver.left_over


@pytest.mark.parametrize("capture", [True, False])
def test_work_is_timed_by_the_device_for_each_of_its_runs(capture: bool) -> None:
    driver = EmulatedDriver()
    with driver.current(), Memory(driver) as memory:
        stream, source, target = memory.stream(), memory.device(64, "source"), memory.device(64, "target")

        def copy(on: int) -> None:
            driver.copy_on_device(target, source, 64, on)

        timer = CudaGraphTimer(driver, stream, repeats=5, capture=capture)
        # the emulated clock counts pieces of work as milliseconds
        assert timer.each([copy]) == timer.each([copy, copy]) == 1000
        assert bool(driver.graph_launches) is capture
    assert not driver.left_over


def test_the_page_tells_of_a_gpu_only_what_its_file_holds(tmp_path: Path) -> None:
    assert "Unmeasured" in render_page(tmp_path)
    (tmp_path / "rehearsed.json").write_text(json.dumps({**_REPORT, "kind": "gpu-rehearsal"}), encoding="utf-8")
    assert "Unmeasured" in render_page(tmp_path)
    (tmp_path / "some-gpu.json").write_text(json.dumps(_REPORT), encoding="utf-8")
    page = render_page(tmp_path)
    assert "Unmeasured" not in page
    assert "| 550x550 | recorded | 97 | 100 | 50.0 | 40.0 | 61.0 | 80.0 (4.4 MB) | 1980 | 100x |" in page
    assert "| 550x550 | recorded | `decode` | 602 | 5.00 | 4.00 |" in page
    assert "checks: 1 of 2 claims hold" in page
    assert "  - boxes are equal: AssertionError" in page
    assert "ncu (failed with exit code 1)" in page
    assert "- kernels, recorded, 550x550: times of work hold the host's own" in page
    assert gpu_section("some-gpu.json", _REPORT) in page


def test_of_a_report_that_breaks_off_the_page_tells_what_is_there() -> None:
    for parts in range(len(_REPORT)):
        assert gpu_section("some-gpu.json", dict(list(_REPORT.items())[:parts])).startswith("## ")


_REPORT: dict[str, Any] = {
    "kind": "gpu",
    "parts": {
        "kernels": {"state": "done", "seconds": 1.0},
        "ncu": {"state": "failed with exit code 1", "seconds": 1.0},
    },
    "environment": {"date": "2026-11-21T00:00:00+00:00", "packages": {"torch": "2"}},
    "gpu": {
        "name": "GPU T",
        "architecture": "sm_90",
        "driver": None,
        "cuda_driver": "13.0",
        "through": "a driver",
        "multiprocessors": 132,
    },
    "copy_gb_per_s": 3000.0,
    "checks": {"claims": {"boxes are equal": "AssertionError: by 1", "scores are equal": "holds"}, "said": ""},
    "kernels": [
        {
            "scene": "recorded",
            "size": "550",
            "image_hw": [550, 550],
            "detections": 100,
            "candidates": 97,
            "cold_us": 50.0,
            "warm_us": 40.0,
            "call_us": 61.0,
            "mask_copy_us": 80.0,
            "mask_copy_bytes": 4_400_000,
            "sm_mhz": [1980, 1980],
            "kernels": [{"kernel": "decode", "blocks": 602, "cold_us": 5.0, "warm_us": 4.0}],
            "notes": ["times of work hold the host's own"],
        }
    ],
    "preprocess": [
        {
            "image_hw": [550, 550],
            "input_size": 550,
            "cold_us": 4.0,
            "warm_us": 3.0,
            "least_bytes": 4_500_000,
            "sm_mhz": [],
        }
    ],
    "peers": [
        {
            "peer": "the original's Detect and postprocess, eager",
            "scene": "recorded",
            "size": "550",
            "image_hw": [550, 550],
            "us": 5000.0,
            "method": "events around calls",
        },
        {"peer": "the network alone, float32", "batch": 1, "why_not": "RuntimeError: no"},
    ],
}
