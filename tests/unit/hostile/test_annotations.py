"""Annotation files that point elsewhere, count nothing, or would crash pycocotools."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.goldens import SHAPES
from tests.unit.hostile.json_readers import ANNOTATIONS, SPEC
from yolact_deploy import Detector
from yolact_deploy.annotations import category_mismatches, image_paths, load_annotations
from yolact_deploy.errors import AnnotationError
from yolact_deploy.evaluation import evaluate
from yolact_deploy.reference.images import read_image
from yolact_deploy.reference.run_lengths import run_lengths


def _written(tmp_path: Path, **changes: Any) -> Path:
    """ANNOTATIONS with entries changed: {"images": {"file_name": ...}} changes the first image."""
    content = copy.deepcopy(ANNOTATIONS)
    for key, entry in changes.items():
        content[key][0].update(entry)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "a/../../secret.png", "a/../b.png"])
def test_file_names_stay_below_the_folder_of_the_images(tmp_path: Path, name: str) -> None:
    with pytest.raises(AnnotationError, match=rf"file_name of images\[0\] is '{name}', which leaves the folder"):
        load_annotations(_written(tmp_path, images={"file_name": name}))


@pytest.mark.parametrize("name", ["nul\x00.png", "x" * 10_000, "\x1b[2J", "", "."])
def test_file_names_that_no_file_can_have_are_missing_images(tmp_path: Path, name: str) -> None:
    coco = load_annotations(_written(tmp_path, images={"file_name": name}))
    with pytest.raises(AnnotationError, match="lacks 1 of the 1 images") as caught:
        image_paths([coco.imgs[1]["file_name"]], tmp_path, "instances.json")
    assert len(str(caught.value)) < 300
    assert "\x1b" not in str(caught.value)


def test_a_fifo_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match="lacks 1 of the 1 images"):
        image_paths(["a.png"], tmp_path, "instances.json")


def test_annotations_of_a_category_that_is_not_listed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"annotations\[0\] is of category 8, which categories does not list"):
        load_annotations(_written(tmp_path, annotations={"category_id": 8}))


@pytest.mark.parametrize("key", ["images", "categories"])
def test_two_entries_of_one_id_are_refused(tmp_path: Path, key: str) -> None:
    content = copy.deepcopy(ANNOTATIONS)
    content[key].append(copy.deepcopy(content[key][0]))
    (tmp_path / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(AnnotationError, match=rf"{key}\[0\] and {key}\[\d\] have the same id"):
        load_annotations(tmp_path / "instances.json")


def test_an_image_under_two_ids_is_refused(tmp_path: Path) -> None:
    content = copy.deepcopy(ANNOTATIONS)
    content["images"].append({**content["images"][0], "id": 12345})
    (tmp_path / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(AnnotationError, match=r"images\[0\] and images\[\d\] have the same file_name"):
        load_annotations(tmp_path / "instances.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"height": 0}}, r"images\[0\] can't be 10 x 0 pixels"),
        ({"images": {"width": -10}}, "can't be -10 x 10"),
        ({"images": {"width": 10**9}}, "can't be 1000000000 x 10"),
        ({"images": {"width": 100_000, "height": 100_000}}, "can't be 100000 x 100000"),
        ({"images": {"id": True}}, r"id of images\[0\] is malformed"),
        ({"annotations": {"iscrowd": "yes"}}, r"iscrowd of annotations\[0\] is neither 0 nor 1"),
        ({"annotations": {"iscrowd": []}}, "neither 0 nor 1"),
        ({"annotations": {"segmentation": [[0, 0, 1e9, 0, 5, 5]]}}, "far beyond any image"),
        ({"annotations": {"segmentation": [[0, 0, 1e308, 0, -1e308, 5]]}}, "far beyond any image"),
        ({"annotations": {"segmentation": [[0, 0, 9, 9] * 100_000]}}, "far beyond any image"),
        ({"annotations": {"bbox": [0, 0, 10**17, 1e400]}}, "Infinity is no number of JSON"),
        ({"annotations": {"segmentation": {"size": [10, 10], "counts": "o" * 1_000_000}}}, "run lengths"),
        ({"annotations": {"segmentation": {"size": [10, 10], "counts": "0" * 1_000_000}}}, "run lengths"),
        ({"annotations": {"segmentation": {"size": "[" * 1_000_000, "counts": []}}}, r"of a \[{59}… image"),
    ],
)
def test_what_would_crash_or_stall_pycocotools_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        load_annotations(_written(tmp_path, **changes))


def test_a_long_outline_that_fits_its_image_is_taken(tmp_path: Path) -> None:
    comb = [value for x in range(0, 10_000) for value in (x / 1000, 9 * (x % 2))]
    assert load_annotations(_written(tmp_path, annotations={"segmentation": [comb]}))


def test_packed_run_lengths_have_an_end() -> None:
    with pytest.raises(ValueError, match="too many digits"):
        run_lengths("o" * 1_000_000)


def test_annotated_categories_that_the_model_lacks_are_counted(tmp_path: Path) -> None:
    changed = _written(tmp_path, categories={"id": 4}, annotations={"category_id": 4})
    doubts = category_mismatches(load_annotations(changed), SPEC)
    assert "1 of 2 annotations are of 1 categories that the model lacks ([4])" in doubts[-1]
    assert category_mismatches(load_annotations(_written(tmp_path)), SPEC) == []


def test_long_names_of_a_hostile_file_are_cut(tmp_path: Path) -> None:
    (doubt,) = category_mismatches(load_annotations(_written(tmp_path, categories={"name": "\x1b[2J" * 100_000})), SPEC)
    assert "\x1b" not in doubt
    assert len(doubt) < 300


def test_images_of_another_size_than_annotated_are_counted(shapes_onnx: Path, tmp_path: Path) -> None:
    content = json.loads((SHAPES / "val/instances.json").read_text(encoding="utf-8"))
    kept = content["images"][:2]
    ids = {image["id"] for image in kept}
    content = {**content, "images": kept, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}
    (tmp_path / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    for number, image in enumerate(kept):
        turned = np.rot90(read_image(SHAPES / "val" / image["file_name"]), k=number)  # the second one only
        cv2.imwrite(str(tmp_path / image["file_name"]), turned)
    doubts: list[str] = []
    evaluate(Detector(shapes_onnx, device="cpu"), tmp_path, tmp_path / "instances.json", on_doubt=doubts.append)
    (found,) = [doubt for doubt in doubts if "size" in doubt]
    width, height = kept[1]["width"], kept[1]["height"]
    assert "1 of 2 images have another size" in found
    assert f"{kept[1]['file_name']} has {height}x{width}, not {width}x{height}" in found


def test_images_without_any_annotation_have_no_ap(shapes_onnx: Path, tmp_path: Path) -> None:
    content = json.loads((SHAPES / "val/instances.json").read_text(encoding="utf-8"))
    (tmp_path / "instances.json").write_text(json.dumps({**content, "annotations": []}), encoding="utf-8")
    doubts: list[str] = []
    evaluate(
        Detector(shapes_onnx, device="cpu"),
        SHAPES / "val",
        tmp_path / "instances.json",
        limit=2,
        on_doubt=doubts.append,
    )
    assert any("annotates nothing in the 2 images" in doubt for doubt in doubts)
