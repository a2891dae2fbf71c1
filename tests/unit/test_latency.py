from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.inputs import bench_images
from benchmarks.latency import STAGES, bench, percentiles
from tests.goldens import SHAPES
from yolact_deploy import Detector


def test_percentiles_are_times_that_were_seen() -> None:
    found = percentiles([ms * 1_000_000 for ms in range(1, 101)])
    assert found == {"p50": 51.0, "p90": 91.0, "p95": 96.0, "p99": 100.0, "mean": 50.5, "max": 100.0, "n": 100}
    assert percentiles([2_500_000])["p99"] == 2.5


class Recorder:
    """A Detector that writes down what is asked of it."""

    def __init__(self, name: str, log: list[tuple[str, str, int]]) -> None:
        self.artifact, self.description, self._log = Path(name), "recorder", log

    def _note(self, stage: str, count: int) -> None:
        self._log.append((self.artifact.name, stage, count))

    def preprocess(self, images: list[Any]) -> list[Any]:
        self._note("preprocess", int(images[0].mean()))
        return images

    def run_network(self, batch: list[Any]) -> list[Any]:
        self._note("network", len(batch))
        return batch

    def suppress(self, heads: list[Any]) -> list[Any]:
        return heads

    def assemble(self, raw: Any, image_hw: tuple[int, int], score_threshold: float) -> Any:
        self._note("masks", image_hw[0])
        return type("Found", (), {"masks": None})


def test_artifacts_take_turns_and_images_rotate() -> None:
    log: list[tuple[str, str, int]] = []
    images = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)]
    recorders: list[Any] = [Recorder("a", log), Recorder("b", log)]
    report = bench(recorders, images, iterations=2, warmup=1)
    seen = [(name, value) for name, stage, value in log if stage == "preprocess"]
    assert seen == [("a", 10), ("b", 10), ("a", 20), ("b", 20), ("a", 30), ("b", 30)]
    assert [run["latency_ms"]["n"] for run in report["runs"]] == [2, 2]


def test_every_image_of_a_batch_gets_its_masks_at_its_own_size() -> None:
    log: list[tuple[str, str, int]] = []
    images = [np.zeros((size, 4, 3), np.uint8) for size in (5, 6)]
    detector: Any = Recorder("a", log)
    bench([detector], images, batch=2, iterations=1, warmup=0)
    assert [value for _, stage, value in log if stage == "masks"] == [5, 6]
    assert [value for _, stage, value in log if stage == "network"] == [2]


def test_the_stages_make_up_the_whole(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=1)
    report = bench([detector], bench_images(SHAPES / "val" / "val_public_0000.jpg"), iterations=4, warmup=1)
    run = report["runs"][0]
    stages = sum(run["stages_ms"][stage]["mean"] for stage in STAGES)
    assert stages == pytest.approx(run["latency_ms"]["mean"], rel=1e-9)  # they share their clock readings
    assert run["throughput_fps"] == pytest.approx(1000 / run["latency_ms"]["mean"])


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch": 0}, {"warmup": -1}, {"images": []}])
def test_counts_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    images = wrong.pop("images", [np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(ValueError, match="at least 1"):
        bench([], images, **wrong)


def test_the_made_up_image_is_the_same_every_time() -> None:
    first, second = bench_images(None)[0], bench_images(None)[0]
    assert first.shape == (480, 640, 3)
    np.testing.assert_array_equal(first, second)
