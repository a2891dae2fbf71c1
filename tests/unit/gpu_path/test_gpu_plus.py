"""YOLACT++ on the emulated GPU: the soft masks of the kernels, scored by the mask-IoU network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.backend import EmulatedGpu
from tests.unit.gpu_path.gpu_expectations import PIXELS
from yolact_deploy import Detector
from yolact_deploy.arrays import FloatArray
from yolact_deploy.errors import EngineError
from yolact_deploy.reference.postprocess import MaskIouModel

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]


def test_masks_are_scored_as_on_the_cpu(emulated: Emulate, plus_native: Path) -> None:
    gpu = emulated(in_stream=True)
    on_cpu = Detector(plus_native, device="cpu", threads=1)
    detector = gpu.open(plus_native, batch_size=2)
    images = [PIXELS[0], PIXELS[1]]
    for _ in range(2):
        for found, expected in zip(detector(images), on_cpu(images), strict=True):
            assert len(found) > 5
            np.testing.assert_array_equal(found.raw.prior_idx, expected.raw.prior_idx)
            np.testing.assert_array_equal(found.scores, expected.scores)
            # the kernels add up the products of a soft mask in another order than BLAS does
            np.testing.assert_allclose(found.mask_scores, expected.mask_scores, rtol=1e-5)
            assert len(found.by_mask_score()) == len(found)
            np.testing.assert_array_equal(
                found.by_mask_score().masks, found.masks[np.argsort(-found.mask_scores, kind="stable")]
            )
    nothing = detector(PIXELS[0], score_threshold=1.0)
    assert nothing.mask_scores.shape == (0,)


def test_a_mask_iou_network_that_fails_leaves_the_detector_usable(emulated: Emulate, plus_native: Path) -> None:
    fails = False

    def now_and_then(model: MaskIouModel) -> MaskIouModel:
        def score(masks: FloatArray) -> FloatArray:
            if fails:
                raise EngineError("onnxruntime failed to score masks")
            return model(masks)

        return score

    gpu = emulated(wrap_mask_iou=now_and_then)
    detector = gpu.open(plus_native)
    expected = detector(PIXELS[0])
    fails = True
    with pytest.raises(EngineError, match="score masks"):
        detector(PIXELS[0])
    fails = False
    np.testing.assert_array_equal(detector(PIXELS[0]).mask_scores, expected.mask_scores)
    detector.close()
    assert gpu.driver.left_over == {}
