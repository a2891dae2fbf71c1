"""COCO box and mask AP of a Detector, by pycocotools."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolact_deploy.annotations import category_mismatches, check_categories, image_paths, load_annotations
from yolact_deploy.arguments import check_callables, check_counts, check_paths, given
from yolact_deploy.artifacts.names import CpuPrecision, GpuPrecision, OnnxRuntimeChoice, StepProgress
from yolact_deploy.reference.images import MAX_PIXELS
from yolact_deploy.runtime.detector import Detector, detector_for_many
from yolact_deploy.spec import NmsMode

_STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def evaluate(
    artifact: str | os.PathLike[str] | Detector,
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    limit: int | None = None,
    nms: NmsMode | None = None,
    device: str = "auto",
    runtime: OnnxRuntimeChoice = "auto",
    cpu_precision: CpuPrecision = "f32",
    gpu_precision: GpuPrecision = "fp32",
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: StepProgress | None = None,
    on_doubt: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """AP on a scale of 0 to 1: {"bbox": {"AP", "AP50", ...}, "segm": {...}, "images": n, "artifact": path, "backend": what ran
    it, "fallback": why the CPU was taken where device "auto" took it, else None, "notes": `Detector.notes` at the end}.

    `images` is the folder of the annotation file's file names; `limit` takes the first images by id. Detections of every
    score count, 100 per image, as in the original's evaluation. `nms`, `device` to `threads` and `max_pixels` are those of
    `Detector`, and those of a Detector that is given instead of a file. `progress(done, total)` counts images. `on_doubt` is
    told where the model's classes and the file's categories hardly mean the same, of images that have another size than the
    file says, and where nothing is annotated (AP is -1 then); `on_note` what `Detector.notes` say.

    Raises OptionError for arguments that make no sense, AnnotationError when the file is no COCO instance file, names an
    image that `images` lacks, or has none of the model's category ids; ImageError for an unreadable image; and what
    `Detector` raises.

    >>> report = evaluate("model.onnx", images=".", annotations="annotations.json")  # a network with random weights
    >>> report["images"], sorted(report["segm"])
    (1, ['AP', 'AP50', 'AP75', 'AP_large', 'AP_medium', 'AP_small'])
    """
    check_paths(images=images, annotations=annotations)
    check_counts(**given(limit=limit))
    check_callables(progress=progress, on_doubt=on_doubt, on_note=on_note)
    with detector_for_many(
        artifact,
        device=device,
        runtime=runtime,
        cpu_precision=cpu_precision,
        gpu_precision=gpu_precision,
        threads=threads,
        nms=nms,
        max_pixels=max_pixels,
    ) as (detector, batch_size):
        coco = load_annotations(annotations)
        check_categories(coco, detector.spec.category_ids, annotations)
        image_ids = sorted(coco.getImgIds())[:limit]
        names = [coco.imgs[image_id]["file_name"] for image_id in image_ids]
        paths = image_paths(names, Path(images), annotations)
        doubt = on_doubt or (lambda _: None)
        for each in category_mismatches(coco, detector.spec):
            doubt(each)
        if not any(coco.imgToAnns[image_id] for image_id in image_ids):
            doubt(
                f"{annotations} annotates nothing in the {len(image_ids)} images: there is no AP to measure (-1 in JSON)."
            )
        results: list[dict[str, Any]] = []
        resized: list[str] = []
        found = detector.stream(paths, prefetch=max(2, batch_size or 1), batch_size=batch_size, masks="rle")
        for done, (image_id, path, detections) in enumerate(zip(image_ids, paths, found, strict=True)):
            if progress is not None:
                progress(done, len(image_ids))
            (height, width), listed = detections.image_hw, coco.imgs[image_id]
            if (height, width) != (listed["height"], listed["width"]):
                resized.append(f"{path.name} has {width}x{height}, not {listed['width']}x{listed['height']}")
            results += detections.to_coco(image_id)
        if progress is not None:
            progress(len(image_ids), len(image_ids))
        if resized:
            doubt(
                f"{len(resized)} of {len(image_ids)} images have another size than {annotations} says, so that none of their "
                f"masks can fit: {resized[0]}. Are these the images that were annotated, with the same EXIF orientation?"
            )
        if on_note is not None:
            for note in detector.notes:
                on_note(note)
        return {
            "bbox": coco_ap(coco, results, "bbox", image_ids),
            "segm": coco_ap(coco, results, "segm", image_ids),
            "images": len(image_ids),
            "artifact": str(detector.artifact),
            "backend": detector.description,
            "fallback": detector.fallback,
            "notes": list(detector.notes),
        }


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
