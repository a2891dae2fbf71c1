"""COCO instance annotations, checked before pycocotools, which checks nothing, computes from them."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.errors import AnnotationError
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import JsonError, read_json
from yolact_deploy.text import shorten

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
_MAX_SIDE, _MAX_PIXELS = 1 << 20, (1 << 31) - 1  # OpenCV's longest side; run lengths add up in 32 bits
_MAX_OUTLINE = 1_000_000  # pixels; pycocotools takes 40 bytes and more for each, and does not look whether it got them
_SHOWN = 3  # examples in a message


def load_annotations(path: str | os.PathLike[str]) -> Any:
    """A pycocotools COCO. Raises AnnotationError for a file that is no COCO instance annotation.

    Annotations are numbered from 1: pycocotools takes a match with annotation 0 for no match. One without `iscrowd` is
    taken as no crowd.
    """
    from pycocotools.coco import COCO

    content = _read(path)
    if problem := _problem(content):
        raise AnnotationError(f"{path} is no COCO instance annotation file: {problem}.")
    annotated = [{"iscrowd": 0, **entry, "id": number} for number, entry in enumerate(content["annotations"], 1)]
    coco = COCO()
    coco.dataset = {**content, "annotations": annotated}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_image_ids(path: str | os.PathLike[str]) -> dict[int, str]:
    """File names by image id, ascending, of a COCO file that may hold no annotations, as those of COCO's test images do.

    Raises AnnotationError for a file without such a list, or with names that leave its folder.
    """
    content = _read(path)
    if problem := _form_problem(content, ("images",)) or _image_problem(content["images"]):
        raise AnnotationError(f"{path} has no list of images as COCO files do: {problem}.")
    return dict(sorted((image["id"], image["file_name"]) for image in content["images"]))


def check_categories(coco: Any, category_ids: Sequence[int], annotations: str | os.PathLike[str]) -> None:
    """Raise AnnotationError unless the annotations have a category of the model, whose ids are given."""
    model_ids, file_ids = set(category_ids), set(coco.getCatIds())
    if not model_ids & file_ids:
        raise AnnotationError(
            f"{annotations} shares no category id with the model: the file has {sorted(file_ids)[:10]}, "
            f"the model {sorted(model_ids)[:10]}. Export the model with a spec whose category_ids are the file's."
        )


def category_mismatches(coco: Any, spec: ModelSpec) -> list[str]:
    """Category ids that model and annotations share but name differently, ids of the model that the file lacks, and
    annotated ones that the model lacks: with any of them, AP is low for no fault of the model."""
    names = {category["id"]: category.get("name") for category in coco.dataset["categories"]}
    ours = dict(zip(spec.category_ids, spec.class_names, strict=True))
    remedy = "If these are the same classes, correct category_ids in the spec and export again"
    doubts = []
    if differing := [i for i in ours if i in names and names[i] != ours[i]]:
        listed = ", ".join(
            f'{i} is "{ours[i]}" in the model and "{shorten(str(names[i]))}" in the file' for i in differing[:_SHOWN]
        )
        doubts.append(f"categories differ in name: {listed}. {remedy}.")
    if missing := sorted(ours.keys() - names.keys()):
        doubts.append(
            f"the annotations lack the model's category ids {missing[:10]}; they have {sorted(names)[:10]}. {remedy}."
        )
    annotated = Counter(entry["category_id"] for entry in coco.dataset["annotations"])
    if foreign := sorted(annotated.keys() - ours.keys()):
        doubts.append(
            f"{sum(annotated[i] for i in foreign)} of {annotated.total()} annotations are of {len(foreign)} categories that the "
            f"model lacks ({foreign[:10]}): each of these counts as AP 0 in the mean."
        )
    return doubts


def image_paths(file_names: Iterable[str], images: Path, annotations: str | os.PathLike[str]) -> list[Path]:
    """Where these images of an annotation file lie below the folder `images`. Raises AnnotationError when one does not."""
    paths = [images / name for name in file_names]
    missing = [path.name for path in paths if not os.path.isfile(path)]  # noqa: PTH113 - False for any name, however odd
    if missing:
        raise AnnotationError(
            f"{images} lacks {len(missing)} of the {len(paths)} images that {annotations} names, such as "
            f"{shorten(missing[0])}. Give the folder that holds them."
        )
    return paths


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        return read_json(path)
    except OSError as exc:
        raise AnnotationError(f"can't read the annotations {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise AnnotationError(f"the annotations {path} are not valid JSON: {exc}.") from exc


def _problem(content: Any) -> str | None:
    """What keeps `content` from being evaluated; the first malformed entry by its place."""
    return (
        _form_problem(content, _FIELDS)
        or _image_problem(content["images"])
        or _repeated("categories", content)
        or _annotation_problem(content)
    )


def _form_problem(content: Any, keys: Iterable[str]) -> str | None:
    if not isinstance(content, dict):
        return f"it holds no JSON object but {type(content).__name__}"
    for key in keys:
        fields = _FIELDS[key]
        if not isinstance(content.get(key), list):
            return f"it lacks {key}" if key not in content else f"{key} is no list"
        for number, entry in enumerate(content[key]):
            for name, types in fields.items():
                if not isinstance(entry, dict) or name not in entry:
                    return f"{key}[{number}] lacks {name}"
                if type(entry[name]) not in types:
                    return f"{name} of {key}[{number}] is malformed"
    return None if content["images"] else "it lists no images"


def _image_problem(images: list[dict[str, Any]]) -> str | None:
    for number, image in enumerate(images):
        name, height, width = Path(image["file_name"]), image["height"], image["width"]
        if name.is_absolute() or ".." in name.parts:
            return (
                f"file_name of images[{number}] is {shorten(str(name))!r}, which leaves the folder of the images; names are "
                "relative to that folder and stay in it"
            )
        if not (0 < height <= _MAX_SIDE and 0 < width <= _MAX_SIDE and height * width <= _MAX_PIXELS):
            return f"images[{number}] can't be {width} x {height} pixels"
    return _repeated("images", {"images": images}) or _repeated("images", {"images": images}, "file_name")


def _repeated(key: str, content: dict[str, list[dict[str, Any]]], field: str = "id") -> str | None:
    """pycocotools takes the last entry of an id, and forgets the others; an image that is two images, each with a part of the
    annotations, counts what the other part says as false."""
    first: dict[Any, int] = {}
    for number, entry in enumerate(content[key]):
        if first.setdefault(entry[field], number) != number:
            value = shorten(str(entry[field]))
            return f"{key}[{first[entry[field]]}] and {key}[{number}] have the same {field} {value}"
    return None


def _annotation_problem(content: dict[str, Any]) -> str | None:
    sizes_hw = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for number, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in sizes_hw:
            return f"annotations[{number}] is of image {annotation['image_id']}, which is not listed"
        if annotation["category_id"] not in categories:
            return (
                f"annotations[{number}] is of category {annotation['category_id']}, which categories does not list: it "
                "would not count"
            )
        if annotation.get("iscrowd", 0) not in (0, 1):
            return f"iscrowd of annotations[{number}] is neither 0 nor 1"
        if problem := _shape_problem(annotation, sizes_hw[annotation["image_id"]]):
            return f"{problem} in annotations[{number}]"
    return None


def _shape_problem(annotation: dict[str, Any], image_hw: list[int]) -> str | None:
    """What is wrong with the box, the area, or the segmentation: polygons of 3 points or more, or a run-length encoding."""
    if len(annotation["bbox"]) != 4 or not _are_numbers(annotation["bbox"]):
        return "bbox is not 4 numbers"
    shape = annotation["segmentation"]
    if isinstance(shape, list):
        whole = all(isinstance(polygon, list) and len(polygon) >= 6 and _are_numbers(polygon) for polygon in shape)
        if not shape or not whole:
            return "segmentation is not polygons of 3 points or more with numbers"
        return None if sum(map(_outline, shape)) <= _MAX_OUTLINE else "segmentation has polygons far beyond any image"
    if shape.get("size") != image_hw:
        return f"segmentation is of a {shorten(str(shape.get('size')))} image, not of {image_hw} (height, width),"
    return None if _fills(shape.get("counts"), image_hw) else "segmentation has run lengths that don't fill its image"


def _are_numbers(values: list[Any]) -> bool:
    return all(
        type(value) in (int, float) for value in values
    )  # which the reader of JSON gives only if they are finite


def _outline(polygon: list[float]) -> float:
    """Pixels along the edges of a polygon x y x y ..., each counted along its longer direction; at most, if that is enough."""
    xs, ys = polygon[0::2], polygon[1::2]
    at_most = len(xs) * max(max(xs) - min(xs), max(ys) - min(ys))
    if at_most <= _MAX_OUTLINE:
        return at_most
    steps = zip(xs, [*xs[1:], xs[0]], ys, [*ys[1:], ys[0]], strict=False)
    return sum(max(abs(x2 - x1), abs(y2 - y1)) for x1, x2, y1, y2 in steps)


def _fills(counts: Any, image_hw: list[int]) -> bool:
    """Whether run lengths, as numbers or packed by pycocotools, are valid ones of an image."""
    from yolact_deploy.reference.run_lengths import run_lengths

    if isinstance(counts, str):
        try:
            counts = run_lengths(counts)
        except ValueError:
            return False
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return False
    return sum(counts) == math.prod(image_hw)
