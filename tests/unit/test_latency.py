from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.latency import time_detectors, without_samples
from benchmarks.rounds import Limit
from benchmarks.subjects import bench_images, synthetic_image
from tests.goldens import SHAPES
from tests.unit.benchmarks.recorder import Recorder
from yolact_deploy import Detector
from yolact_deploy.runtime.protocols import STAGES

IMAGE = np.zeros((4, 4, 3), np.uint8)


def test_artifacts_take_turns_in_reversed_order_and_images_rotate() -> None:
    log: list[tuple[str, str, int]] = []
    images = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    recorders: list[Any] = [Recorder("a", log), Recorder("b", log)]
    report = time_detectors(recorders, images, iterations=2, warmup=1)
    seen = [(name, value) for name, stage, value in log if stage == "preprocess"]
    assert seen[:6] == [("a", 10), ("b", 10), ("a", 20), ("b", 20), ("b", 30), ("a", 30)]
    assert [run["latency_ms"]["n"] for run in report["runs"]] == [2, 2]


def test_every_image_of_a_batch_gets_its_masks_at_its_own_size() -> None:
    log: list[tuple[str, str, int]] = []
    images = [np.zeros((size, 4, 3), np.uint8) for size in (5, 6)]
    detector: Any = Recorder("a", log)
    time_detectors([detector], images, batch=2, iterations=1, warmup=0)
    assert [value for _, stage, value in log if stage == "masks"][:2] == [5, 6]
    assert {value for _, stage, value in log if stage in ("network", "whole")} == {2}


def test_the_stages_make_up_the_whole(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=1)
    report = time_detectors([detector], bench_images(SHAPES / "val" / "val_public_0000.jpg"), iterations=4, warmup=1)
    run = report["runs"][0]
    stages = sum(run["stages_ms"][stage]["mean"] for stage in STAGES)
    assert stages == pytest.approx(run["latency_ms"]["mean"], rel=1e-9)  # they share their clock readings
    assert run["throughput_fps"] == pytest.approx(1000 / run["latency_ms"]["mean"])
    assert run["precision"] == "fp32"
    assert run["whole_call_ms"]["n"] == 1
    assert run["peak_memory"]["host_bytes"] > shapes_onnx.stat().st_size  # the weights alone are that large


def test_an_interrupted_run_reports_its_complete_rounds() -> None:
    first, second = Recorder("a", []), Recorder("b", [], interrupt_at=4)
    detectors: list[Any] = [first, second]
    report = time_detectors(detectors, [IMAGE], iterations=10, warmup=0)
    assert report["interrupted"] is True
    assert [run["latency_ms"]["n"] for run in report["runs"]] == [3, 3]
    assert any(note.startswith("interrupted") for note in report["notes"])


def test_nothing_complete_is_nothing_to_report() -> None:
    detector: Any = Recorder("a", [], interrupt_at=1)
    with pytest.raises(KeyboardInterrupt):
        time_detectors([detector], [IMAGE], iterations=10, warmup=0)


def test_rounds_end_by_count_or_by_time_whichever_comes_first() -> None:
    both = Limit(iterations=10, seconds=2.0)
    assert both.reached(10, 0.1)
    assert both.reached(1, 2.0)
    assert not both.reached(9, 1.9)
    assert not Limit(None, 2.0).reached(0, 9.0)  # one round at least
    assert both.expected(4, 1.0) == 8
    assert Limit(10, None).expected(4, 1.0) == 10


def test_warming_up_ends_when_times_are_stable_or_at_the_bound() -> None:
    detector: Any = Recorder("a", [])
    options = time_detectors([detector], [IMAGE], iterations=1)["options"]
    assert 10 <= options["warmup"] <= 40
    assert options["warmup_stable"] or options["warmup"] == 40


def test_samples_can_be_left_out() -> None:
    detector: Any = Recorder("a", [])
    report = time_detectors([detector], [IMAGE], iterations=2, warmup=0)
    assert len(report["runs"][0]["samples_ms"]["latency"]) == len(report["yardstick_samples_ms"]) == 2
    stripped = without_samples(report)
    assert "samples_ms" not in stripped["runs"][0]
    assert "yardstick_samples_ms" not in stripped


def test_made_up_images_are_the_same_every_time_at_any_size() -> None:
    first, second = bench_images(None)[0], bench_images(None)[0]
    assert first.shape == (480, 640, 3)
    np.testing.assert_array_equal(first, second)
    assert synthetic_image((1080, 1920)).shape == (1080, 1920, 3)
    assert synthetic_image((1, 1)).shape == (1, 1, 3)
