"""`compare` on a YOLACT++, whose masks have scores of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.comparison.compare import compare
from tests.unit.exporters.plus_models import SMALL_PLUS, random_plus
from yolact_deploy import Detector
from yolact_deploy.annotations import load_annotations
from yolact_deploy.evaluation import coco_ap, evaluate


@pytest.fixture(scope="module")
def plus(plus_gridsample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A YOLACT++ as a checkpoint and as the ONNX exported from it."""
    folder = tmp_path_factory.mktemp("plus")
    torch.save(random_plus().state_dict(), folder / "plus.pth")
    return folder / "plus.pth", plus_gridsample


def _annotate(model: Path, pictures: list[Path], target: Path) -> Path:
    """Every third detection as an object."""
    detector = Detector(model, device="cpu")
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        found = detector(picture)
        height, width = found.image_hw
        images.append({"id": image_id, "file_name": picture.name, "width": width, "height": height})
        objects += [
            {**entry, "area": entry["bbox"][2] * entry["bbox"][3]}
            for entry in found.take(np.arange(0, len(found), 3)).to_coco(image_id)
        ]
    categories = [{"id": number, "name": str(number)} for number in SMALL_PLUS.category_ids]
    target.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    return target


@pytest.mark.slow
def test_ap_is_that_of_eval(plus: tuple[Path, Path], pictures: list[Path], tmp_path: Path) -> None:
    checkpoint, model = plus
    annotations = _annotate(model, pictures, tmp_path / "instances.json")
    spec_file = tmp_path / "spec.json"
    spec_file.write_text(SMALL_PLUS.to_json())
    report = compare(checkpoint, model, pictures, annotations=annotations, spec_file=spec_file)
    assert report.ap is not None
    expected = evaluate(Detector(model), pictures[0].parent, annotations)
    for kind in ("bbox", "segm"):
        assert report.ap.b[kind] == expected[kind]
        assert report.ap.a[kind]["AP"] == pytest.approx(expected[kind]["AP"], abs=1e-3)

    by_boxes = [
        {key: value for key, value in entry.items() if key != "mask_score"}
        for image_id, picture in enumerate(pictures, 1)
        for entry in Detector(model)(picture).to_coco(image_id)
    ]
    coco = load_annotations(annotations)
    assert abs(coco_ap(coco, by_boxes, "segm", [1, 2])["AP"] - expected["segm"]["AP"]) > 1e-3


@pytest.mark.slow
def test_what_is_drawn_has_the_scores_of_the_masks(plus: tuple[Path, Path], pictures: list[Path]) -> None:
    _, model = plus
    found = Detector(model)(pictures[0])
    threshold = float(np.median(found.mask_scores))
    (example,) = compare(model, model, pictures[:1], score_threshold=threshold).examples
    shown = found.mask_scores[(found.scores > threshold) & (found.mask_scores >= threshold)]
    assert 0 < len(shown) < len(found)
    np.testing.assert_array_equal(example.a.scores, np.sort(shown)[::-1])
