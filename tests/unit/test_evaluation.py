from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.goldens import SHAPES, SHAPES_SPEC
from yolact_deploy.annotations import category_mismatches, load_annotations
from yolact_deploy.errors import AnnotationError
from yolact_deploy.evaluation import coco_ap
from yolact_deploy.reference.run_lengths import run_lengths
from yolact_deploy.spec import ModelSpec

ANNOTATION: dict[str, Any] = {
    "id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0,
    "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]],
}  # fmt: skip


def _annotations(tmp_path: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}],
        "categories": [{"id": 7, "name": "square"}],
        "annotations": [ANNOTATION],
        **changes,
    }  # fmt: skip
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def _result(box: list[float], score: float = 0.9) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    x, y, w, h = box
    rle = coco_mask.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 10, 10)[0]
    return {"image_id": 1, "category_id": 7, "bbox": box, "segmentation": rle, "score": score}


def test_a_perfect_detection_has_ap_one_and_a_far_one_none(tmp_path: Path) -> None:
    coco = load_annotations(_annotations(tmp_path))
    for kind in ("bbox", "segm"):
        assert coco_ap(coco, [_result([0, 0, 10, 10])], kind, [1])["AP"] == pytest.approx(1)
        assert coco_ap(coco, [_result([0, 0, 3, 3])], kind, [1])["AP"] == 0
        assert coco_ap(coco, [], kind, [1])["AP"] == 0


@pytest.mark.parametrize("number", [0, None])
def test_an_annotation_counts_whatever_its_id_and_without_iscrowd(tmp_path: Path, number: int | None) -> None:
    bare = {key: value for key, value in ANNOTATION.items() if key not in ("id", "iscrowd")}
    annotation = bare if number is None else {**bare, "id": number}
    coco = load_annotations(_annotations(tmp_path, annotations=[annotation]))
    assert coco_ap(coco, [_result([0, 0, 10, 10])], "bbox", [1])["AP"] == pytest.approx(1)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    for text in ("5", "[1]", '"images"', "null"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(AnnotationError, match="no JSON object"):
            load_annotations(tmp_path / "a.json")


def test_an_iou_of_085_counts_up_to_that_threshold(tmp_path: Path) -> None:
    coco = load_annotations(_annotations(tmp_path))
    ap = coco_ap(coco, [_result([0, 0, 10, 8.6])], "bbox", [1])
    assert ap["AP"] == pytest.approx(0.8)  # of the ten thresholds 0.50, 0.55, ..., 0.95 those up to 0.85
    assert ap["AP50"] == pytest.approx(1)
    assert ap["AP75"] == pytest.approx(1)


def test_masks_and_boxes_are_judged_apart(tmp_path: Path) -> None:
    coco = load_annotations(_annotations(tmp_path))
    split = {**_result([0, 0, 10, 10]), "segmentation": _result([0, 0, 2, 2])["segmentation"]}
    assert coco_ap(coco, [split], "bbox", [1])["AP"] == pytest.approx(1)
    assert coco_ap(coco, [split], "segm", [1])["AP"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "lacks categories"),
        ({"images": []}, "lists no images"),
        ({"images": [{"file_name": "a.jpg"}]}, r"images\[0\] lacks id"),
        ({"images": [{"id": 1}]}, r"images\[0\] lacks file_name"),
        ({"images": [{"id": "1", "file_name": "a.jpg"}]}, r"id of images\[0\] is malformed"),
        ({"images": "a.jpg"}, "images is no list"),
        ({"annotations": [[]]}, r"annotations\[0\] lacks image_id"),
        ({"annotations": [{**ANNOTATION, "image_id": 2}]}, r"annotations\[0\] is of image 2, which is not listed"),
        *(
            ({"annotations": [{**ANNOTATION, "segmentation": shape}]}, rf"segmentation .*{found}.* in annotations\[0\]")
            for shape, found in (
                ([[1, 2]], "polygons of 3 points"),
                ([["a"] * 8], "polygons of 3 points"),
                ([], "polygons of 3 points"),
                ({"size": [10, 10], "counts": None}, "run lengths"),
                ({"size": [10, 10]}, "run lengths"),
                ({"size": [10, 10], "counts": [50]}, "run lengths"),
                ({"size": [10, 10], "counts": [-1, 101]}, "run lengths"),
                ({"size": [10, 10], "counts": [50.0, 50.0]}, "run lengths"),
                ({"size": [10, 10], "counts": "no packed runs"}, "run lengths"),
                ({"size": [10, 10], "counts": "T"}, "run lengths"),
                ({"size": [10, 10], "counts": ""}, "run lengths"),
                ({"size": [10, 20], "counts": [50, 150]}, r"a \[10, 20\] image, not of \[10, 10\]"),
                ({"counts": [50, 50]}, "a None image"),
            )
        ),
        *(
            ({"annotations": [ANNOTATION, {**ANNOTATION, "bbox": box}]}, r"bbox .* in annotations\[1\]")
            for box in ([1, 2], ["a", 0, 1, 1], [0, 0, None, 1])
        ),
        ({"annotations": [{**ANNOTATION, "area": True}]}, r"area of annotations\[0\] is malformed"),
        ({"annotations": [{**ANNOTATION, "area": math.nan}]}, "NaN is no number of JSON"),
        ({"annotations": [{**ANNOTATION, "bbox": [0, 0, math.inf, 1]}]}, "Infinity is no number of JSON"),
        ({"annotations": [{**ANNOTATION, "segmentation": [[-math.inf] * 6]}]}, "-Infinity is no number of JSON"),
    ],
)
def test_files_that_are_no_instance_annotations_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        load_annotations(_annotations(tmp_path, **changes))


@pytest.mark.parametrize("packed", [True, False])
def test_run_lengths_are_taken_packed_and_as_numbers(tmp_path: Path, packed: bool) -> None:
    rle = {"size": [10, 10], "counts": [0, 100]}
    if packed:
        rle = {**rle, "counts": _result([0, 0, 10, 10])["segmentation"]["counts"].decode()}
    coco = load_annotations(_annotations(tmp_path, annotations=[{**ANNOTATION, "segmentation": rle}]))
    assert coco_ap(coco, [_result([0, 0, 10, 10])], "segm", [1])["AP"] == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_packed_run_lengths_are_those_that_were_packed(seed: int) -> None:
    from pycocotools import mask as coco_mask

    random = np.random.default_rng(seed)
    lengths = random.integers(1, 10 ** (seed + 1), 41).tolist()
    packed = coco_mask.frPyObjects({"size": [1, sum(lengths)], "counts": lengths}, 1, sum(lengths))
    assert run_lengths(packed["counts"].decode()) == lengths


def test_categories_that_hardly_mean_the_same_are_doubted(tmp_path: Path) -> None:
    spec = ModelSpec.from_file(SHAPES_SPEC)
    coco = load_annotations(SHAPES / "val/instances.json")
    assert category_mismatches(coco, spec) == []
    counted = dataclasses.replace(spec, category_ids=(1, 2, 3, 4, 5, 6))
    differing, missing, foreign = category_mismatches(coco, counted)
    assert '3 is "square" in the model and "circle" in the file' in differing
    assert "[1, 2, 4, 5, 6]" in missing
    assert "[3, 7, 8, 12, 20, 31]" in missing
    assert "of 5 categories that the model lacks ([7, 8, 12, 20, 31]): each of these counts as AP 0" in foreign
