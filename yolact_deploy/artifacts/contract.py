"""What an artifact's inputs and outputs must be, by its spec and its form; every runtime and the builder ask here.

An ordinary export takes preprocessed images and gives head tensors. An end-to-end one goes from an image's bytes to finished
detections; its ONNX carries `FORM_METADATA_KEY`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from yolact_deploy.artifacts.names import END_TO_END, FORM_METADATA_KEY, INPUT, Form, PlanPrecision
from yolact_deploy.errors import SpecError
from yolact_deploy.spec import ModelSpec, PostprocessSpec, PreprocessSpec

EndToEndNms = Literal["fast", "cross_class"]

# Of an end-to-end artifact, with M rows of which the first `num_detections` count.
IMAGE = INPUT  # uint8 [B, H, W, 3]
NUM_DETECTIONS = "num_detections"  # int32 [B]
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

_FLOATS = ("float32", "float16")  # float16 by `quantize --io-precision fp16`
_EXPORT_AGAIN: dict[Form, str] = {
    "heads": "Export it again with `yolact-deploy export`.",
    END_TO_END: "Export it again with `yolact-deploy export --end-to-end`.",
}

Mode = Literal["input", "output"]


@dataclass(frozen=True)
class IoTensor:
    """An input or output, as a file or a runtime has it."""

    name: str
    mode: Mode
    dtype: str  # NumPy's name
    shape: tuple[int, ...]  # -1 where the size is chosen at run time, or not told


@dataclass(frozen=True)
class ExpectedTensor:
    """An input or output, as a spec makes it."""

    mode: Mode
    dtypes: tuple[str, ...]  # NumPy's names: any of them
    shape: tuple[int, ...]  # -1 where the size is chosen at run time


def expected_io(spec: ModelSpec, form: Form = "heads") -> dict[str, ExpectedTensor]:
    """The input and then the outputs of an artifact, by name."""
    if form != END_TO_END:
        return {
            name: ExpectedTensor("input" if name == INPUT else "output", _FLOATS, (-1, *shape))
            for name, shape in spec.io_shapes().items()
        }
    rows = output_rows(spec)
    tensors = {
        IMAGE: ExpectedTensor("input", ("uint8",), (-1, -1, -1, 3)),
        NUM_DETECTIONS: ExpectedTensor("output", ("int32",), (-1,)),
        BOXES: ExpectedTensor("output", ("float32",), (-1, rows, 4)),
        SCORES: ExpectedTensor("output", ("float32",), (-1, rows)),
        CLASS_IDS: ExpectedTensor("output", ("int32",), (-1, rows)),
        MASKS: ExpectedTensor("output", ("bool",), (-1, rows, -1, -1)),
    }
    if spec.mask_iou_layers:
        tensors[MASK_SCORES] = ExpectedTensor("output", ("float32",), (-1, rows))
    return tensors


def is_end_to_end(metadata: Mapping[str, str]) -> bool:
    """Whether an ONNX file's metadata says that it goes from an image to finished detections."""
    return metadata.get(FORM_METADATA_KEY) == END_TO_END


def form_of(tensors: Iterable[IoTensor]) -> Form:
    """The form of an artifact that says it by nothing but its outputs."""
    return END_TO_END if any(tensor.name == NUM_DETECTIONS for tensor in tensors) else "heads"


def output_rows(spec: ModelSpec) -> int:
    """M: the most detections that an image can have in an end-to-end artifact."""
    rules = spec.postprocess
    per_group = min(rules.top_k, spec.num_priors)
    return per_group if rules.nms == "cross_class" else min(rules.max_detections, spec.num_classes * per_group)


def io_problem(
    tensors: Iterable[IoTensor],
    spec: ModelSpec,
    form: Form = "heads",
    *,
    unknown_fits: bool = False,  # a size that is not told (-1) passes where the spec has a number
) -> str | None:
    """The first thing in which inputs and outputs are not those of `spec`, for an error; None where they are."""
    expected = expected_io(spec, form)
    found = {tensor.name: tensor for tensor in tensors}
    for name, wanted in expected.items():
        tensor = found.get(name)
        if tensor is None:
            return f"it has no {wanted.mode} {name} (it has {', '.join(found) or 'none'}), its spec has one"
        if tensor.mode != wanted.mode:
            return f"{name} is an {tensor.mode}, its spec makes it an {wanted.mode}"
        if not _fits(tensor.shape, wanted.shape, unknown_fits):
            return f"{name} is {_shape(tensor.shape)}, its spec makes it {_shape(wanted.shape)}"
        if tensor.dtype not in wanted.dtypes:
            return f"{name} is {tensor.dtype}, it must be {' or '.join(wanted.dtypes)}"
    extra = next((name for name in found if name not in expected), None)
    return None if extra is None else f"it has the {found[extra].mode} {extra}, its spec has {', '.join(expected)}"


def check_io(
    tensors: Iterable[IoTensor],
    spec: ModelSpec,
    form: Form,
    source: str,  # names the file in errors
    *,
    unknown_fits: bool = False,
) -> None:
    """Raise SpecError unless the inputs and outputs of an ONNX are those that its own spec describes; see `io_problem`."""
    if problem := io_problem(tensors, spec, form, unknown_fits=unknown_fits):
        raise SpecError(f"the inputs and outputs of {source} contradict its own spec: {problem}. {_EXPORT_AGAIN[form]}")


class ArtifactDescription(Protocol):
    """What every artifact tells of itself."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def kind(self) -> str:
        """ "checkpoint", "onnx" or "plan"."""
        ...

    @property
    def precision(self) -> PlanPrecision:
        """Of what it computes in."""
        ...

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of its content."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of its content."""
        ...


def describe(artifact: ArtifactDescription) -> dict[str, Any]:
    """A JSON object: path, kind, precision, digest and size."""
    return {
        "path": str(artifact.path),
        "kind": artifact.kind,
        "precision": artifact.precision,
        "sha256": artifact.sha256,
        "size_bytes": artifact.num_bytes,
    }


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


def _fits(found: tuple[int, ...], expected: tuple[int, ...], unknown_fits: bool) -> bool:
    return len(found) == len(expected) and all(
        size == wanted or wanted == -1 or (unknown_fits and size == -1)
        for size, wanted in zip(found, expected, strict=True)
    )


def _shape(shape: tuple[int, ...]) -> str:
    sizes = ("B" if axis == 0 and size == -1 else "any" if size == -1 else str(size) for axis, size in enumerate(shape))
    return f"[{', '.join(sizes)}]"
