"""The peers without this project do the whole work: what they find is what the Detector finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.figures.plain_peers import Network, detect, in_onnxruntime, in_openvino
from tests.goldens import SHAPES
from yolact_deploy import Detector
from yolact_deploy.reference.images import read_image

IMAGE = SHAPES / "val" / "val_public_0000.jpg"


@pytest.mark.parametrize(
    "opened", [in_onnxruntime, pytest.param(in_openvino, marks=pytest.mark.needs("openvino"))], ids=lambda f: f.__name__
)
def test_a_plain_peer_finds_what_the_detector_finds(opened: Callable[[Path, int], Network], shapes_onnx: Path) -> None:
    pytest.importorskip("pycocotools")
    image = read_image(IMAGE)
    with Detector(shapes_onnx, device="cpu", runtime="onnxruntime", threads=1) as detector:
        ours, spec = detector(image), detector.spec
    theirs = detect(opened(shapes_onnx, 1), spec, image)
    shown, also = ours.scores > 0.3, theirs.scores > 0.3
    assert np.count_nonzero(shown) > 3
    assert ours.class_ids[shown].tolist() == theirs.class_ids[also].tolist()
    both = (ours.masks[shown] & theirs.masks[also]).sum((1, 2))
    either = (ours.masks[shown] | theirs.masks[also]).sum((1, 2))
    assert (both / either > 0.95).all()
    results = theirs.to_coco(7, spec)
    assert [result["category_id"] for result in results[:2]] == [spec.category_ids[i] for i in theirs.class_ids[:2]]
