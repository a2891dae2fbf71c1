"""COCO box and mask AP of a Detector, by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolact_deploy.errors import AnnotationError
from yolact_deploy.runtime.detector import Detector

_STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def evaluate(
    detector: Detector,
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """AP on a scale of 0 to 1: {"bbox": {"AP", "AP50", ...}, "segm": {...}, "images": n, "artifact": path}.

    `images` is the folder of the annotation file's file names; `limit` takes the first images by id. Detections of every
    score count, 100 per image, as in the original's evaluation. Raises AnnotationError when the file is no COCO instance
    file, names an image that `images` lacks, or has none of the model's category ids; ImageError for an unreadable image.
    """
    coco = load_annotations(annotations)
    _check_categories(coco, detector, annotations)
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
    """A pycocotools COCO. Raises AnnotationError for a file that is no COCO instance annotation."""
    from pycocotools.coco import COCO

    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise AnnotationError(f"can't read the annotations {path}: {exc.strerror or exc}.") from exc
    except ValueError as exc:
        raise AnnotationError(f"the annotations {path} are not valid JSON: {exc}.") from exc
    missing = [key for key in ("images", "annotations", "categories") if key not in content] if content else ["images"]
    if missing or not isinstance(content, dict):
        raise AnnotationError(f"{path} is no COCO instance annotation file: it lacks {', '.join(missing)}.")
    if not content["images"]:
        raise AnnotationError(f"{path} lists no images.")
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            coco.createIndex()
        except (KeyError, TypeError) as exc:
            raise AnnotationError(
                f"{path} is no COCO instance annotation file: {exc!r} is missing or malformed."
            ) from exc
    return coco


def coco_ap(coco: Any, results: list[dict[str, Any]], kind: str, image_ids: list[int]) -> dict[str, float]:
    """COCO's AP figures over `image_ids`; `kind` is "bbox" or "segm". All 0 when nothing was detected."""
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(_STATS, 0.0)
    if kind == "segm":  # pycocotools would take a result that has a bbox for a box, and its area from there
        results = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_STATS, evaluation.stats, strict=False)}


def _check_categories(coco: Any, detector: Detector, annotations: str | os.PathLike[str]) -> None:
    model_ids, file_ids = set(detector.spec.category_ids), set(coco.getCatIds())
    if not model_ids & file_ids:
        raise AnnotationError(
            f"{annotations} shares no category id with the model: the file has {sorted(file_ids)[:10]}, "
            f"the model {sorted(model_ids)[:10]}. Export the model with a spec whose category_ids are the file's."
        )


def _check_images(paths: dict[int, Path], images: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> None:
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise AnnotationError(
            f"{images} lacks {len(missing)} of the {len(paths)} images that {annotations} names, such as {missing[0]}. "
            "Give the folder that holds them, or --limit."
        )
