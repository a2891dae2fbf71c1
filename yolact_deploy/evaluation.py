"""COCO box and mask AP of a Detector, by pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.errors import AnnotationError
from yolact_deploy.json_files import JsonError, read_json
from yolact_deploy.runtime.detector import Detector
from yolact_deploy.spec import ModelSpec

_STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
# What pycocotools reads of every entry, without checking that it is there.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,), "width": (int,), "height": (int,)},
    "categories": {"id": (int,)},
    "annotations": {
        "image_id": (int,),
        "category_id": (int,),
        "bbox": (list,),
        "area": (int, float),
        "segmentation": (list, dict),
    },
}


def evaluate(
    detector: Detector,
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_doubt: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """AP on a scale of 0 to 1: {"bbox": {"AP", "AP50", ...}, "segm": {...}, "images": n, "artifact": path}.

    `images` is the folder of the annotation file's file names; `limit` takes the first images by id. Detections of every
    score count, 100 per image, as in the original's evaluation. `on_doubt` is told where the model's classes and the file's
    categories hardly mean the same. Raises AnnotationError when the file is no COCO instance
    file, names an image that `images` lacks, or has none of the model's category ids; ImageError for an unreadable image.

    >>> report = evaluate(Detector("model.onnx"), images=".", annotations="annotations.json")  # a network with random weights
    >>> report["images"], sorted(report["segm"])
    (1, ['AP', 'AP50', 'AP75', 'AP_large', 'AP_medium', 'AP_small'])
    """
    coco = load_annotations(annotations)
    check_categories(coco, detector.spec.category_ids, annotations)
    if on_doubt is not None:
        for doubt in category_doubts(coco, detector.spec):
            on_doubt(doubt)
    image_ids = sorted(coco.getImgIds())[:limit]
    paths = {image_id: Path(images) / coco.imgs[image_id]["file_name"] for image_id in image_ids}
    _check_images(paths, images, annotations)
    results: list[dict[str, Any]] = []
    for done, image_id in enumerate(image_ids):
        if progress is not None:
            progress(done, len(image_ids))
        results += detector(paths[image_id]).to_coco(image_id)
    if progress is not None:
        progress(len(image_ids), len(image_ids))
    return {
        "bbox": coco_ap(coco, results, "bbox", image_ids),
        "segm": coco_ap(coco, results, "segm", image_ids),
        "images": len(image_ids),
        "artifact": str(detector.artifact),
    }


def load_annotations(path: str | os.PathLike[str]) -> Any:
    """A pycocotools COCO. Raises AnnotationError for a file that is no COCO instance annotation.

    Annotations are numbered from 1: pycocotools takes a match with annotation 0 for no match. One without `iscrowd` is
    taken as no crowd.
    """
    from pycocotools.coco import COCO

    try:
        content = read_json(path)
    except OSError as exc:
        raise AnnotationError(f"can't read the annotations {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise AnnotationError(f"the annotations {path} are not valid JSON: {exc}.") from exc
    if problem := _problem(content):
        raise AnnotationError(f"{path} is no COCO instance annotation file: {problem}.")
    annotated = [{"iscrowd": 0, **entry, "id": number} for number, entry in enumerate(content["annotations"], 1)]
    coco = COCO()
    coco.dataset = {**content, "annotations": annotated}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _problem(content: Any) -> str | None:
    """What keeps `content` from being evaluated; the first malformed entry by its place."""
    if not isinstance(content, dict):
        return f"it holds no JSON object but {type(content).__name__}"
    for key, fields in _FIELDS.items():
        if not isinstance(content.get(key), list):
            return f"it lacks {key}" if key not in content else f"{key} is no list"
        for number, entry in enumerate(content[key]):
            for name, types in fields.items():
                if not isinstance(entry, dict) or name not in entry:
                    return f"{key}[{number}] lacks {name}"
                if not isinstance(entry[name], types):
                    return f"{name} of {key}[{number}] is malformed"
    if not content["images"]:
        return "it lists no images"
    sizes_hw = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    for number, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in sizes_hw:
            return f"annotations[{number}] is of image {annotation['image_id']}, which is not listed"
        if problem := _shape_problem(annotation, sizes_hw[annotation["image_id"]]):
            return f"{problem} in annotations[{number}]"
    return None


def _shape_problem(annotation: dict[str, Any], image_hw: list[int]) -> str | None:
    """What is wrong with the box, the area, or the segmentation: polygons of 3 points or more, or a run-length encoding."""
    if len(annotation["bbox"]) != 4 or not _are_finite(annotation["bbox"]):
        return "bbox is not 4 finite numbers"
    if not _are_finite([annotation["area"]]):
        return "area is no finite number"
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        whole = all(isinstance(polygon, list) and len(polygon) >= 6 and _are_finite(polygon) for polygon in shape)
        return None if shape and whole else "segmentation is not polygons of 3 points or more with finite numbers"
    if shape.get("size") != image_hw:
        return f"segmentation is of a {shape.get('size')} image, not of {image_hw} (height, width),"
    return None if _fills(shape.get("counts"), image_hw) else "segmentation has run lengths that don't fill its image"


def _are_finite(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _fills(counts: Any, image_hw: list[int]) -> bool:
    """Whether run lengths, as numbers or packed by pycocotools, are valid ones of an image."""
    from yolact_deploy.reference.masks import run_lengths

    if isinstance(counts, str):
        try:
            counts = run_lengths(counts)
        except ValueError:
            return False
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return False
    return sum(counts) == math.prod(image_hw)


def coco_ap(coco: Any, results: list[dict[str, Any]], kind: str, image_ids: list[int]) -> dict[str, float]:
    """COCO's AP figures over `image_ids`; `kind` is "bbox" or "segm". All 0 when nothing was detected.

    Masks rank by "mask_score" where the results have one.
    """
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(_STATS, 0.0)
    if kind == "segm":  # pycocotools would take a result that has a bbox for a box, and its area from there
        results = [
            {**{k: v for k, v in result.items() if k != "bbox"}, "score": result.get("mask_score", result["score"])}
            for result in results
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_STATS, evaluation.stats, strict=False)}


def check_categories(coco: Any, category_ids: Sequence[int], annotations: str | os.PathLike[str]) -> None:
    """Raise AnnotationError unless the annotations have a category of the model, whose ids are given."""
    model_ids, file_ids = set(category_ids), set(coco.getCatIds())
    if not model_ids & file_ids:
        raise AnnotationError(
            f"{annotations} shares no category id with the model: the file has {sorted(file_ids)[:10]}, "
            f"the model {sorted(model_ids)[:10]}. Export the model with a spec whose category_ids are the file's."
        )


def category_doubts(coco: Any, spec: ModelSpec) -> list[str]:
    """Category ids that model and annotations share but name differently, and ids of the model that the file lacks: with
    either, AP is low for no fault of the model."""
    names = {category["id"]: category.get("name") for category in coco.dataset["categories"]}
    ours = dict(zip(spec.category_ids, spec.class_names, strict=True))
    remedy = "If these are the same classes, correct category_ids in the spec and export again"
    doubts = []
    if differing := [i for i in ours if i in names and names[i] != ours[i]]:
        listed = ", ".join(f'{i} is "{ours[i]}" in the model and "{names[i]}" in the file' for i in differing[:3])
        doubts.append(f"categories differ in name: {listed}. {remedy}.")
    if missing := sorted(ours.keys() - names.keys()):
        doubts.append(
            f"the annotations lack the model's category ids {missing[:10]}; they have {sorted(names)[:10]}. {remedy}."
        )
    return doubts


def _check_images(paths: dict[int, Path], images: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> None:
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise AnnotationError(
            f"{images} lacks {len(missing)} of the {len(paths)} images that {annotations} names, such as {missing[0]}. "
            "Give the folder that holds them, or --limit."
        )
