"""Specs by name and by file: the published YOLACT configurations and those of other trainers; a spec file holds a whole
`ModelSpec` as JSON, or the fields in which a model differs from a published configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolact_deploy.errors import SpecError
from yolact_deploy.spec import (
    IMAGENET_MEAN_RGB,
    BackboneSpec,
    FpnSpec,
    ModelSpec,
    PostprocessSpec,
    PreprocessSpec,
    PriorsSpec,
    ProtonetSpec,
)
from yolact_deploy.spec_json import read_spec_file

EXTENDS = "extends"  # the field of a spec file that names a published configuration

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
_COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # ids COCO skipped between 1 and 90
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _COCO_GAPS)
PASCAL_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
YOUTUBE_VIS_CLASSES = (
    "person", "giant_panda", "lizard", "parrot", "skateboard", "sedan", "ape", "dog", "snake", "monkey", "hand", "rabbit",
    "duck", "cat", "cow", "fish", "train", "horse", "turtle", "bear", "motorbike", "giraffe", "leopard", "fox", "deer",
    "owl", "surfboard", "airplane", "truck", "zebra", "tiger", "elephant", "snowboard", "boat", "shark", "mouse", "frog",
    "eagle", "earless_seal", "tennis_racket",
)  # fmt: skip

_RATIOS = ((1.0, 0.5, 2.0),) * 5
_BASE_SCALES = (24, 48, 96, 192, 384)
_RESNET101 = BackboneSpec("resnet", (3, 4, 23, 3), (1, 2, 3))
_RESNET50 = BackboneSpec("resnet", (3, 4, 6, 3), (1, 2, 3))
_RESNET101_DCN = BackboneSpec("resnet", (3, 4, 23, 3), (1, 2, 3), dcn_blocks=(0, 4, 23, 3), dcn_interval=3)
_RESNET50_DCN = BackboneSpec("resnet", (3, 4, 6, 3), (1, 2, 3), dcn_blocks=(0, 4, 6, 3))
_DARKNET53 = BackboneSpec("darknet", (1, 2, 8, 8, 4), (2, 3, 4))
_PLUS_SCALES = tuple(tuple(scale * 2 ** (third / 3.0) for third in range(3)) for scale in _BASE_SCALES)


def _square_priors(input_size: int) -> PriorsSpec:
    scales = tuple((int(input_size / 550 * scale),) for scale in _BASE_SCALES)
    return PriorsSpec(scales, _RATIOS)


_BASE = ModelSpec(
    name="yolact_base",
    input_size=550,
    backbone=_RESNET101,
    class_names=COCO_CLASSES,
    category_ids=COCO_CATEGORY_IDS,
    priors=_square_priors(550),
)
_RESNET50_SPEC = replace(_BASE, name="yolact_resnet50", backbone=_RESNET50)
_PLUS_BASE = replace(
    _BASE,
    name="yolact_plus_base",
    backbone=_RESNET101_DCN,
    priors=PriorsSpec(_PLUS_SCALES, _RATIOS, use_square_anchors=False),
    mask_iou_layers=((8, 3), (16, 3), (32, 3), (64, 3), (128, 3)),
)

PUBLISHED: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _BASE,
        replace(_BASE, name="yolact_im400", input_size=400, priors=_square_priors(400)),
        replace(_BASE, name="yolact_im700", input_size=700, priors=_square_priors(700)),
        _RESNET50_SPEC,
        replace(
            _BASE,
            name="yolact_darknet53",
            backbone=_DARKNET53,
            preprocess=PreprocessSpec(mean_rgb=(0.0, 0.0, 0.0), std_rgb=(255.0, 255.0, 255.0)),
        ),
        replace(
            _RESNET50_SPEC,
            name="yolact_resnet50_pascal",
            class_names=PASCAL_CLASSES,
            category_ids=tuple(range(1, 21)),
            priors=PriorsSpec(tuple((s,) for s in (32, 64, 128, 256, 512)), _RATIOS, use_square_anchors=False),
        ),
        _PLUS_BASE,
        replace(_PLUS_BASE, name="yolact_plus_resnet50", backbone=_RESNET50_DCN),
    )
}


_MMDETECTION_FPN = FpnSpec(relu_pred_layers=False, downsample_source="backbone")
# mmdetection's ratios are height to width: 0.5, 1, 2 in its order.
_MMDETECTION_PRIORS = PriorsSpec(
    tuple((scale,) for scale in _BASE_SCALES), ((2.0, 1.0, 0.5),) * 5, use_square_anchors=False
)
_YOLACT_MINIMAL_FPN = FpnSpec(downsample_activation="relu")
_YOLACT_MINIMAL_PROTONET = ProtonetSpec(align_corners=True)
_YOLACT_MINIMAL_PRIORS = PriorsSpec(tuple((s,) for s in _BASE_SCALES), _RATIOS, use_square_anchors=False)
_YOLACT_MINIMAL_PREPROCESS = PreprocessSpec(resize="pad", pad_rgb=IMAGENET_MEAN_RGB)


def _by_depth(base: ModelSpec, name_101: str, name_50: str) -> dict[str, ModelSpec]:
    return {
        name: replace(base, name=name, backbone=backbone)
        for name, backbone in ((name_101, _RESNET101), (name_50, _RESNET50))
    }


# By the trainer's name, then by configuration. Sources of what differs: docs/other-trainers.md.
OTHER_TRAINERS: dict[str, dict[str, ModelSpec]] = {
    "YolactEdge": {
        **_by_depth(_BASE, "yolact_edge", "yolact_edge_resnet50"),
        **_by_depth(
            replace(_BASE, class_names=YOUTUBE_VIS_CLASSES, category_ids=tuple(range(1, 41))),
            "yolact_edge_youtubevis",
            "yolact_edge_youtubevis_resnet50",
        ),
    },
    "Yolact_minimal": _by_depth(
        replace(
            _BASE,
            input_size=544,
            fpn=_YOLACT_MINIMAL_FPN,
            protonet=_YOLACT_MINIMAL_PROTONET,
            priors=_YOLACT_MINIMAL_PRIORS,
            preprocess=_YOLACT_MINIMAL_PREPROCESS,
        ),
        "yolact_minimal_res101_coco",
        "yolact_minimal_res50_coco",
    ),
    "mmdetection": _by_depth(
        replace(
            _BASE,
            fpn=_MMDETECTION_FPN,
            priors=_MMDETECTION_PRIORS,
            postprocess=PostprocessSpec(clip_boxes=True),
        ),
        "mmdet_yolact_r101",
        "mmdet_yolact_r50",
    ),
}


def published_spec(name: str) -> ModelSpec:
    """The spec of a published configuration, of any trainer. Raises SpecError listing the known names."""
    known = dict(PUBLISHED)
    for specs in OTHER_TRAINERS.values():
        known |= specs
    try:
        return known[name]
    except KeyError:
        raise SpecError(f"no published configuration is named {name!r}; known are {', '.join(known)}.") from None


def load_spec(path: str | os.PathLike[str], *, on_note: Callable[[str], None] | None = None) -> ModelSpec:
    """The spec in a JSON file.

    With ``"extends": "<published name>"`` the file's other fields override those of that configuration: objects are
    merged field by field, lists and values are replaced. `name` defaults to the file's stem. `on_note` is told of every
    value that was derived and not written. Raises SpecError naming the file and the field.
    """
    fields = read_spec_file(path)
    stem = Path(path).stem
    notes: list[str] = []
    try:
        base_name = fields.pop(EXTENDS, None)
        if base_name is None:
            spec = ModelSpec.from_dict({"name": stem, **fields})
        else:
            spec = _extend(base_name, {"name": stem, **fields}, notes)
    except SpecError as exc:
        raise SpecError(f"the spec file {path}: {exc}") from exc
    if on_note is not None:
        for note in notes:
            on_note(note)
    return spec


def _extend(base_name: Any, fields: dict[str, Any], notes: list[str]) -> ModelSpec:
    if not isinstance(base_name, str):
        raise SpecError(f'"{EXTENDS}" must be the name of a published configuration, found {base_name!r}.')
    base = published_spec(base_name)
    merged = _merge(base.to_dict(), fields)
    names = fields.get("class_names")
    if isinstance(names, list) and "category_ids" not in fields:
        merged["category_ids"] = list(range(1, len(names) + 1))
        notes.append(f"category_ids not given with class_names: taken as 1..{len(names)}.")
    spec = ModelSpec.from_dict(merged)
    scales_given = isinstance(fields.get("priors"), Mapping) and "scales" in fields["priors"]
    if spec.input_size != base.input_size and spec.priors.use_pixel_scales and not scales_given:
        notes.append(
            f"input_size is {spec.input_size}, prior scales are still those of {base_name} at {base.input_size} "
            f"pixels: {[list(level) for level in spec.priors.scales]}."
        )
    return spec


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        inherited = base.get(key)
        if isinstance(value, Mapping) and isinstance(inherited, Mapping):
            merged[key] = _merge(inherited, value)
        else:
            merged[key] = value
    return merged
