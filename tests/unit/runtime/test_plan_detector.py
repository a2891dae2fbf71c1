"""A plan in the Detector: kernels in the emulator around an engine that computes on the host."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from typing import Any

import numpy as np
import pytest

from tests.emulator.backend import EmulatedGpu
from tests.unit.engines.tiny_network import TINY_SPEC
from tests.unit.runtime.conftest import Bench, MakeBench
from yolact_deploy import Detector
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.runtime.tensorrt.network import PlanNetwork

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs Linux and g++"
)


def _detector(bench: Bench, **options: object) -> Detector:
    def open_network(plan: Any, driver: Driver, threads: int | None, tf32: bool) -> PlanNetwork:
        return PlanNetwork(plan, driver, threads=threads, rtx_cache=bench.folder / "cache")

    gpu = dataclasses.replace(EmulatedGpu(bench.driver).backend, open_network=open_network)
    return Detector(bench.write(), device="cuda:0", gpu=gpu, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_batches_in_turns_are_graphs_and_find_what_numpy_finds(rtx: bool, make_bench: MakeBench) -> None:
    bench = make_bench(rtx=rtx)
    images = [np.random.default_rng(seed).integers(0, 256, (48, 40, 3), np.uint8) for seed in range(3)]
    detector = _detector(bench, batch_size=2)
    expected = [
        detector.assemble(detector.suppress(detector.run_network(detector.preprocess([image])))[0], (48, 40))
        for image in images
    ]
    for _ in range(3):
        for found, wanted in zip(detector(images), expected, strict=True):  # a batch of 2, then one of 1
            np.testing.assert_array_equal(found.scores, wanted.scores)
            np.testing.assert_array_equal(found.class_ids, wanted.class_ids)
            np.testing.assert_array_equal(found.masks, wanted.masks)
            assert len(found)
    assert bench.driver.graph_launches == 4  # of each batch the second and third time
    detector.close()
    assert not bench.driver.left_over
    assert bench.behaviour.engines_alive() == 0


def test_a_device_that_another_library_has_reset_leaves_nothing_that_raises(bench: Bench) -> None:
    detector = _detector(bench)
    detector(np.zeros((40, 40, 3), np.uint8))
    bench.driver.torn_down = True
    detector.close()
    assert bench.behaviour.engines_alive() == 0
    assert detector.spec == TINY_SPEC
