"""The whole path on a trained checkpoint: what the original found in 200 images."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.goldens import GOLDEN, SHAPES
from yolact_deploy import Detector
from yolact_deploy.annotations import load_annotations
from yolact_deploy.evaluation import coco_ap

SCORE_ERROR = (
    1e-5  # the original differs from itself by 7e-7 with the number of threads; onnxruntime sums in another order
)
# The original differs from itself by one pixel in up to 9 of 6,809 masks with the number of threads.
MAX_CHANGED_MASKS = 9
# Boxes are truncated: a coordinate within rounding of a whole pixel may fall on either side on another processor.
MAX_CHANGED_BOXES = 2

Entries = list[dict[str, Any]]


def _original(kind: str) -> Entries:
    entries: Entries = json.loads((GOLDEN / f"shapes/val_public_{kind}_detections.json").read_text())
    return entries


@pytest.fixture(scope="module")
def found(shapes_onnx: Path) -> Entries:
    detector = Detector(shapes_onnx, device="cpu")
    images = json.loads((SHAPES / "val/instances.json").read_text())["images"]
    return [entry for image in images for entry in detector(SHAPES / "val" / image["file_name"]).to_coco(image["id"])]


def _by_image(entries: Entries) -> dict[int, Entries]:
    grouped = defaultdict(list)
    for entry in entries:
        grouped[entry["image_id"]].append(entry)
    return grouped


@pytest.mark.slow
def test_detections_are_the_originals(found: Entries) -> None:
    boxes, masks = _by_image(_original("bbox")), _by_image(_original("mask"))
    ours = _by_image(found)
    assert {i: len(entries) for i, entries in ours.items()} == {i: len(entries) for i, entries in boxes.items()}
    changed_boxes = changed_masks = 0
    for image_id, entries in ours.items():
        pairs = zip(entries, _matched(entries, boxes[image_id]), _matched(entries, masks[image_id]), strict=True)
        for entry, box, mask in pairs:
            assert entry["category_id"] == box["category_id"]
            moved, pixels = _distance(box, entry), _distance(mask, entry)
            assert moved <= 1
            assert pixels <= 1
            changed_boxes += moved > 0
            changed_masks += pixels > 0
    assert changed_boxes <= MAX_CHANGED_BOXES
    assert changed_masks <= MAX_CHANGED_MASKS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_is_the_originals(found: Entries, kind: str) -> None:
    coco = load_annotations(SHAPES / "val/instances.json")
    original = json.loads((GOLDEN / "shapes/ap.json").read_text())["val"][kind]
    ap = coco_ap(coco, found, kind, sorted(coco.getImgIds()))
    for name in ("AP", "AP50", "AP75"):
        assert ap[name] == pytest.approx(original[name], abs=0.001)


def _matched(entries: Entries, recorded: Entries) -> Entries:
    """The recorded entry of each, in order of score; of those whose scores are equal within the error, the same class
    and box."""
    remaining = sorted(recorded, key=lambda entry: -entry["score"])
    matches = []
    for entry in entries:
        close = [r for r in remaining if abs(r["score"] - entry["score"]) <= SCORE_ERROR]
        close.sort(key=lambda r: (r["category_id"] != entry["category_id"], _distance(r, entry)))
        assert close, f"nothing recorded has the score of {entry}"
        matches.append(close[0])
        remaining.remove(close[0])
    return matches


def _distance(recorded: dict[str, Any], entry: dict[str, Any]) -> float:
    if "bbox" in recorded:
        return float(np.abs(np.subtract(recorded["bbox"], entry["bbox"])).max())
    return float(_changed_pixels(recorded["segmentation"], entry["segmentation"]))


def _changed_pixels(a: dict[str, Any], b: dict[str, Any]) -> int:
    if a == b:  # decoding 13,000 masks takes longer than finding them
        return 0
    return int(np.count_nonzero(coco_mask.decode(a) != coco_mask.decode(b)))
