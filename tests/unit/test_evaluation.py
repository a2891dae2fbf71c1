from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.errors import AnnotationError
from yolact_deploy.evaluation import coco_ap, load_annotations

ANNOTATION = {
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
        ({"annotations": [{**ANNOTATION, "segmentation": [[1, 2]]}]}, r"segmentation of annotations\[0\]"),
        ({"annotations": [ANNOTATION, {**ANNOTATION, "bbox": [1, 2]}]}, r"bbox .* annotations\[1\]"),
    ],
)
def test_files_that_are_no_instance_annotations_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        load_annotations(_annotations(tmp_path, **changes))
