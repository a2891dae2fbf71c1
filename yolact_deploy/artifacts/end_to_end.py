"""The contract of an end-to-end ONNX: from an image's bytes to finished detections in one graph.

A file of this form carries `FORM_METADATA_KEY`; one without is the ordinary export, whose outputs are head tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from yolact_deploy.artifacts.names import END_TO_END, FORM_METADATA_KEY, INPUT
from yolact_deploy.errors import SpecError
from yolact_deploy.spec import ModelSpec, PostprocessSpec, PreprocessSpec

EndToEndNms = Literal["fast", "cross_class"]

IMAGE = INPUT  # uint8 [B, H, W, 3]
NUM_DETECTIONS = "num_detections"  # int32 [B]; of the M rows, the first so many are detections
BOXES = "boxes_xyxy"  # float32 [B, M, 4], whole pixels of the input image; 0 beyond
SCORES = "scores"  # float32 [B, M], descending; 0 beyond
CLASS_IDS = "class_ids"  # int32 [B, M], 0 = first foreground class; -1 beyond
MASKS = "masks"  # bool [B, M, H, W]; False beyond
MASK_SCORES = "mask_scores"  # float32 [B, M], of a YOLACT++ only; 0 beyond
PADDING_CLASS_ID = -1
TRADITIONAL_IS_A_LOOP = (
    "an end-to-end graph can't hold traditional NMS, where each box waits for the verdict on all better ones: a loop whose "
    "length depends on the image. Choose --nms fast or cross_class, or export without --end-to-end."
)


def is_end_to_end(metadata: Mapping[str, str]) -> bool:
    """Whether an ONNX file's metadata says that it goes from image to masks."""
    return metadata.get(FORM_METADATA_KEY) == END_TO_END


def output_rows(spec: ModelSpec) -> int:
    """M: the most detections that an image can have."""
    rules = spec.postprocess
    per_group = min(rules.top_k, spec.num_priors)
    return per_group if rules.nms == "cross_class" else min(rules.max_detections, spec.num_classes * per_group)


def end_to_end_io(spec: ModelSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> NumPy's dtype and shape of the input and then the outputs; -1 for what is chosen at run time."""
    rows = output_rows(spec)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        IMAGE: ("uint8", (-1, -1, -1, 3)),
        NUM_DETECTIONS: ("int32", (-1,)),
        BOXES: ("float32", (-1, rows, 4)),
        SCORES: ("float32", (-1, rows)),
        CLASS_IDS: ("int32", (-1, rows)),
        MASKS: ("bool", (-1, rows, -1, -1)),
    }
    if spec.mask_iou_layers:
        tensors[MASK_SCORES] = ("float32", (-1, rows))
    return tensors


def io_problem(
    found: Mapping[str, tuple[str, tuple[int, ...]]],  # name -> NumPy's dtype and shape, -1 where chosen at run time
    spec: ModelSpec,
) -> str | None:
    """The first thing in which inputs and outputs are not those of `spec`, for an error; None where they are."""
    expected = end_to_end_io(spec)
    for name in {**expected, **found}:
        if name not in found:
            return f"it lacks {name}; it has {', '.join(found)}"
        if name not in expected:
            return f"it has the unexpected {name}; its spec has {', '.join(expected)}"
        if not _fits(found[name], expected[name]):
            return f"{name} is {_described(*found[name])} instead of {_described(*expected[name])}"
    return None


def check_expressible(spec: ModelSpec) -> None:
    """Raise SpecError for a spec whose preprocessing or suppression an end-to-end graph can't do."""
    if spec.postprocess.nms == "traditional":
        raise SpecError(f"{spec.name} uses traditional NMS: {TRADITIONAL_IS_A_LOOP}")
    # What a spec may say beyond these fields was not there when the graph was designed, and must not be passed over.
    usual = (
        PreprocessSpec(mean_rgb=spec.preprocess.mean_rgb, std_rgb=spec.preprocess.std_rgb),
        PostprocessSpec(
            nms=spec.postprocess.nms,
            conf_threshold=spec.postprocess.conf_threshold,
            iou_threshold=spec.postprocess.iou_threshold,
            top_k=spec.postprocess.top_k,
            max_detections=spec.postprocess.max_detections,
            clip_boxes=spec.postprocess.clip_boxes,
        ),
    )
    for name, found, expected in zip(
        ("preprocess", "postprocess"), (spec.preprocess, spec.postprocess), usual, strict=True
    ):
        for field, value in vars(found).items():
            if value != vars(expected)[field]:
                raise SpecError(
                    f"{spec.name} has {name}.{field} {value!r}; an end-to-end graph knows only {vars(expected)[field]!r}. "
                    "Export without --end-to-end, and run it with Detector."
                )


def _fits(found: tuple[str, tuple[int, ...]], expected: tuple[str, tuple[int, ...]]) -> bool:
    (dtype, shape), (expected_dtype, expected_shape) = found, expected
    sizes = zip(shape, expected_shape, strict=False)
    return (
        dtype == expected_dtype
        and len(shape) == len(expected_shape)
        and all(-1 in pair or pair[0] == pair[1] for pair in sizes)
    )


def _described(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} [{', '.join('any' if size == -1 else str(size) for size in shape)}]"
