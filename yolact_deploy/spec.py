"""`ModelSpec`: all that is needed to turn an image into head tensors and head tensors into detections."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from yolact_deploy.errors import SpecError
from yolact_deploy.spec_json import (
    SINCE,
    JsonError,
    decode,
    encode,
    lowest_schema_version,
    parse_json,
    read_spec_file,
    require_showable_name,
)

SCHEMA_VERSION = 2  # the highest that is read; a spec is written in the lowest that holds it
_OLDEST_SCHEMA_VERSION = 1
_MIN_INPUT_SIZE, _MAX_INPUT_SIZE = 32, 8192  # beyond, priors alone would fill the memory
# The network's tensors.
INPUT = "image"  # [B, 3, S, S], preprocessed
OUTPUTS = ("loc", "conf", "mask_coeff", "proto")

BackboneKind = Literal["resnet", "darknet"]
ConfActivation = Literal["softmax", "logits"]
NmsMode = Literal["fast", "cross_class", "traditional"]
ResizeMode = Literal["stretch", "pad"]
DownsampleSource = Literal["output", "backbone"]

IMAGENET_MEAN_RGB = (123.68, 116.78, 103.94)
IMAGENET_STD_RGB = (58.40, 57.12, 57.38)
_HALVINGS_BEFORE_STAGES = {"resnet": 1, "darknet": 0}  # ResNet: the stem; its max-pool is counted with stage 0
_V2 = {SINCE: 2}  # of fields that schema version 1 does not know: older files are read as if these had their defaults


@dataclass(frozen=True)
class BackboneSpec:
    """The network that sees the image first. Raises SpecError when its parts contradict each other."""

    kind: BackboneKind
    stages: tuple[int, ...]  # residual blocks per stage
    selected_layers: tuple[int, ...]  # stages that feed the FPN, shallowest first
    dcn_blocks: tuple[int, ...] = ()  # YOLACT++: per stage, how many of its last blocks may be deformable; () = none
    dcn_interval: int = 1  # of those, the ones whose number in the stage is a multiple of this

    def __post_init__(self) -> None:
        if not self.stages or min(self.stages) < 1:
            raise SpecError(f"backbone.stages must be positive block counts, found {list(self.stages)}.")
        valid = list(range(len(self.stages)))
        if not self.selected_layers or any(layer not in valid for layer in self.selected_layers):
            raise SpecError(
                f"backbone.selected_layers {list(self.selected_layers)} must name stages of {valid} "
                f"(the backbone has {len(self.stages)})."
            )
        self._check_dcn()

    def deformable_blocks(self, stage: int) -> tuple[int, ...]:
        """Numbers of the deformable blocks of a stage (dbolya/yolact, backbone.py, ResNetBackbone._make_layer)."""
        count, last = self.stages[stage], self.dcn_blocks[stage] if self.dcn_blocks else 0
        return tuple(block for block in range(count) if block + last >= count and block % self.dcn_interval == 0)

    def _check_dcn(self) -> None:
        if self.dcn_interval < 1:
            raise SpecError(f"backbone.dcn_interval must be at least 1, found {self.dcn_interval}.")
        if self.dcn_blocks and (len(self.dcn_blocks) != len(self.stages) or min(self.dcn_blocks) < 0):
            raise SpecError(
                f"backbone.dcn_blocks must hold one count per stage, found {list(self.dcn_blocks)} for the "
                f"{len(self.stages)} stages {list(self.stages)}."
            )
        if self.kind != "resnet" and any(self.dcn_blocks):
            raise SpecError(
                f"backbone.dcn_blocks is {list(self.dcn_blocks)}, but only ResNet blocks can be deformable; "
                f"backbone.kind is {self.kind}."
            )

    def stride_halvings(self, layer: int) -> int:
        """How often the input size has been halved (rounding up) at the output of stage `layer`."""
        return _HALVINGS_BEFORE_STAGES[self.kind] + layer + 1


@dataclass(frozen=True)
class FpnSpec:
    """The feature pyramid on top of the backbone's selected stages (Lin et al. 2017), and the levels added above it."""

    channels: int = 256
    num_downsample: int = 2  # stride-2 convolutions after the top level (P6, P7)
    relu_pred_layers: bool = True
    relu_downsample_layers: bool = False
    # What the first downsampled level is made of: the last output, or the deepest stage of the backbone (mmdetection).
    downsample_source: DownsampleSource = field(default="output", metadata=_V2)
    # After each downsampling convolution, so that the next one reads it (Yolact_minimal). The original's option
    # relu_downsample_layers does something else: it overwrites the shallowest levels.
    downsample_activation: Literal["none", "relu"] = field(default="none", metadata=_V2)


@dataclass(frozen=True)
class ProtonetSpec:
    """The branch that gives the prototypes (Bolya et al. 2019, section 3.1). Raises SpecError for layers that can't be."""

    # (channels, kernel); kernel -2 with channels null is a bilinear upsampling by 2. The last entry gives the prototypes.
    layers: tuple[tuple[int | None, int], ...] = ((256, 3), (256, 3), (256, 3), (None, -2), (256, 3), (32, 1))
    src_level: int = 0  # FPN level it reads, 0 = P3
    align_corners: bool = field(default=False, metadata=_V2)  # of its upsampling

    def __post_init__(self) -> None:
        if not self.layers or self.layers[-1][0] is None:
            raise SpecError("protonet.layers must end in a convolution that gives the prototypes.")
        for channels, kernel in self.layers:
            if channels is None and kernel >= 0:
                raise SpecError(f"protonet.layers: [null, {kernel}] is not an upsampling; its kernel must be negative.")
            if channels is not None and (kernel < 1 or kernel % 2 == 0):
                raise SpecError(f"protonet.layers: [{channels}, {kernel}] needs an odd positive kernel.")

    @property
    def num_prototypes(self) -> int:
        """K: prototypes, and so coefficients of a mask."""
        return self.layers[-1][0] or 0

    @property
    def upsampling(self) -> int:
        """How many times larger the prototypes are than the FPN level they come from."""
        factor = 1
        for channels, kernel in self.layers:
            if channels is None:
                factor *= -kernel
        return factor


@dataclass(frozen=True)
class HeadSpec:
    """The prediction head, shared by all FPN levels."""

    # (channels, kernel) of the convolutions shared by all outputs
    extra_layers: tuple[tuple[int, int], ...] = ((256, 3),)
    kernel_size: int = 3  # of the loc, conf and mask_coeff convolutions


@dataclass(frozen=True)
class PriorsSpec:
    """Scales and shapes of the prior boxes of every FPN level. Raises SpecError when levels disagree."""

    scales: tuple[tuple[float, ...], ...]  # per FPN level, shallowest first; pixels of the input when use_pixel_scales
    aspect_ratios: tuple[tuple[float, ...], ...]  # per FPN level
    use_square_anchors: bool = True
    use_pixel_scales: bool = True
    preapply_sqrt: bool = False  # aspect ratios are stored as their square roots

    def __post_init__(self) -> None:
        if len(self.scales) != len(self.aspect_ratios):
            raise SpecError(
                f"priors.scales has {len(self.scales)} levels but priors.aspect_ratios has {len(self.aspect_ratios)}; "
                "give one entry per FPN level in both."
            )
        _require_positive("priors.scales", [scale for level in self.scales for scale in level])
        _require_positive("priors.aspect_ratios", [ratio for level in self.aspect_ratios for ratio in level])
        counts = {len(s) * len(a) for s, a in zip(self.scales, self.aspect_ratios, strict=True)}
        if len(counts) != 1 or 0 in counts:
            raise SpecError(
                f"the shared head needs the same number of priors per cell on every level, found {sorted(counts)}."
            )

    @property
    def per_cell(self) -> int:
        """Priors of a cell of the grid, the same on every level."""
        return len(self.scales[0]) * len(self.aspect_ratios[0])


@dataclass(frozen=True)
class PreprocessSpec:
    """(pixel - mean) / std on values 0..255, per channel in RGB order, of an image resized to the input size.

    "stretch" takes the image to S x S whatever its shape. "pad" first adds pixels of `pad_rgb` below or on the right of
    the image until it is square: boxes and prototypes are then relative to that square.
    """

    mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB
    std_rgb: tuple[float, float, float] = IMAGENET_STD_RGB
    channel_order: Literal["rgb"] = "rgb"  # of the network's input
    resize: ResizeMode = "stretch"
    pad_rgb: tuple[float, float, float] | None = field(default=None, metadata=_V2)

    def __post_init__(self) -> None:
        _require_positive("preprocess.std_rgb", self.std_rgb)
        for name, values in (("mean_rgb", self.mean_rgb), ("pad_rgb", self.pad_rgb or ())):
            if not all(map(math.isfinite, values)):
                raise SpecError(f"preprocess.{name} must be finite, found {list(values)}.")
        if (self.pad_rgb is not None) != (self.resize == "pad"):
            raise SpecError(
                f'preprocess.resize is "{self.resize}" and preprocess.pad_rgb is '
                f"{None if self.pad_rgb is None else list(self.pad_rgb)}; padding needs a colour, stretching has none."
            )


@dataclass(frozen=True)
class PostprocessSpec:
    """Thresholds of suppression; scores are 0 to 1. Raises SpecError for values out of range."""

    nms: NmsMode = "fast"
    conf_threshold: float = 0.05
    iou_threshold: float = 0.5
    top_k: int = 200  # per class
    max_detections: int = 100
    clip_boxes: bool = field(default=False, metadata=_V2)  # to the image before suppression (mmdetection)

    def __post_init__(self) -> None:
        for name in ("conf_threshold", "iou_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"postprocess.{name} must be from 0 to 1, found {getattr(self, name)}.")
        if self.top_k < 1 or self.max_detections < 1:
            raise SpecError(
                f"postprocess.top_k and max_detections must be at least 1, found {self.top_k} and {self.max_detections}."
            )


@dataclass(frozen=True)
class ModelSpec:
    """Architecture, preprocessing, priors, classes and thresholds of one YOLACT; travels inside ONNX files and sidecars.

    Raises SpecError when its parts contradict each other.

    >>> spec = ModelSpec.from_file("spec.json")
    >>> spec.class_names
    ('disc', 'bar')
    >>> spec.output_shapes()  # of one image
    {'loc': (80, 4), 'conf': (80, 3), 'mask_coeff': (80, 4), 'proto': (8, 8, 4)}
    >>> ModelSpec.from_json(spec.to_json()) == spec
    True
    >>> ModelSpec.from_dict({**spec.to_dict(), "input_size": 16})
    Traceback (most recent call last):
        ...
    yolact_deploy.errors.SpecError: input_size must be from 32 to 8192 pixels, found 16.
    """

    name: str
    input_size: int  # S: the network's input is S x S
    backbone: BackboneSpec
    class_names: tuple[str, ...]  # foreground only
    category_ids: tuple[int, ...]  # the annotation file's id of each class
    priors: PriorsSpec
    fpn: FpnSpec = field(default_factory=FpnSpec)
    protonet: ProtonetSpec = field(default_factory=ProtonetSpec)
    head: HeadSpec = field(default_factory=HeadSpec)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    postprocess: PostprocessSpec = field(default_factory=PostprocessSpec)
    conf_activation: ConfActivation = "softmax"
    # YOLACT++'s mask-IoU network: (channels, kernel) of its stride-2 convolutions; a 1x1 to the classes follows them.
    mask_iou_layers: tuple[tuple[int, int], ...] = ()  # () = masks keep their box's score
    schema_version: int = field(default=SCHEMA_VERSION, compare=False)  # of the file it was read from

    def __post_init__(self) -> None:
        if not _OLDEST_SCHEMA_VERSION <= self.schema_version <= SCHEMA_VERSION:
            raise SpecError(
                f"the spec has schema version {self.schema_version}, this version of yolact-deploy reads "
                f"{_OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}. "
                "Export the model again with this version, or install the version that wrote it."
            )
        if not _MIN_INPUT_SIZE <= self.input_size <= _MAX_INPUT_SIZE:
            raise SpecError(
                f"input_size must be from {_MIN_INPUT_SIZE} to {_MAX_INPUT_SIZE} pixels, found {self.input_size}."
            )
        self._check_names()
        if len(self.category_ids) != len(self.class_names):
            raise SpecError(
                f"category_ids has {len(self.category_ids)} entries but there are {len(self.class_names)} class_names; "
                "give one annotation id per class, in the same order."
            )
        if len(set(self.category_ids)) != len(self.category_ids):
            raise SpecError(f"category_ids has repeated ids: {list(self.category_ids)}.")
        if len(self.priors.scales) != self.num_levels:
            raise SpecError(
                f"priors.scales has {len(self.priors.scales)} levels, but the FPN has {self.num_levels} "
                f"({len(self.backbone.selected_layers)} selected backbone layers + {self.fpn.num_downsample} downsampled)."
            )
        if not 0 <= self.protonet.src_level < self.num_levels:
            raise SpecError(
                f"protonet.src_level {self.protonet.src_level} is not one of the {self.num_levels} FPN levels."
            )
        self._check_mask_iou()

    def _check_names(self) -> None:
        if not self.class_names:
            raise SpecError("class_names is empty; give one name per foreground class.")
        require_showable_name("name", self.name)
        first: dict[str, int] = {}  # where each name stands
        for number, name in enumerate(self.class_names):
            require_showable_name(f"class_names[{number}]", name)
            if first.setdefault(name, number) != number:
                raise SpecError(
                    f"class_names[{first[name]}] and class_names[{number}] are both {name!r}; results could not tell them "
                    "apart. Give every class a name of its own."
                )

    def _check_mask_iou(self) -> None:
        size = self.proto_size
        for channels, kernel in self.mask_iou_layers:
            if channels < 1 or kernel < 1:
                raise SpecError(f"mask_iou_layers: [{channels}, {kernel}] must be a positive width and kernel.")
            size = (size - kernel) // 2 + 1
        if size < 1:
            raise SpecError(
                f"mask_iou_layers {[list(layer) for layer in self.mask_iou_layers]} leave nothing of masks of "
                f"{self.proto_size} x {self.proto_size}; take fewer layers or a larger input_size."
            )

    @property
    def num_classes(self) -> int:
        """C, foreground classes; `conf` has C + 1 columns."""
        return len(self.class_names)

    @property
    def num_prototypes(self) -> int:
        """K: prototypes, and so coefficients of a mask."""
        return self.protonet.num_prototypes

    @property
    def num_levels(self) -> int:
        """FPN levels: those of the backbone's selected stages, and the downsampled ones above."""
        return len(self.backbone.selected_layers) + self.fpn.num_downsample

    @property
    def feature_sizes(self) -> tuple[int, ...]:
        """Side of each (square) FPN level, shallowest first."""
        sizes = [_halve(self.input_size, self.backbone.stride_halvings(i)) for i in self.backbone.selected_layers]
        for _ in range(self.fpn.num_downsample):
            sizes.append(_halve(sizes[-1], 1))
        return tuple(sizes)

    @property
    def num_priors(self) -> int:
        """P: rows of `loc`, `conf` and `mask_coeff`."""
        return sum(size * size for size in self.feature_sizes) * self.priors.per_cell

    @property
    def proto_size(self) -> int:
        """Side of the (square) prototypes."""
        return self.feature_sizes[self.protonet.src_level] * self.protonet.upsampling

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the head tensors without the batch dimension."""
        priors, prototypes = self.num_priors, self.num_prototypes
        loc, conf, coeff = (priors, 4), (priors, 1 + self.num_classes), (priors, prototypes)
        return dict(zip(OUTPUTS, (loc, conf, coeff, (self.proto_size, self.proto_size, prototypes)), strict=True))

    def io_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the network's input, then of the head tensors, without the batch dimension."""
        return {INPUT: (3, self.input_size, self.input_size), **self.output_shapes()}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, in the lowest schema version that holds it."""
        version = lowest_schema_version(self)
        fields = encode(self, version)
        del fields["schema_version"]
        return {"schema_version": version, **fields}

    def to_json(self, *, indent: int | None = None) -> str:
        """The JSON text of `to_dict`; what ONNX files and sidecars carry."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, value: Any) -> ModelSpec:
        """Raises SpecError naming the first field that is missing, unknown or of the wrong type."""
        return decode(cls, value, "spec")

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read back what `to_json` wrote. Raises SpecError for text that is no JSON, and as `from_dict` does."""
        try:
            value = parse_json(text)
        except JsonError as exc:
            raise SpecError(f"the spec is not valid JSON: {exc}.") from exc
        return cls.from_dict(value)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> ModelSpec:
        """Read a spec file. Raises SpecError when it can't be read, and as `from_dict` does."""
        return cls.from_dict(read_spec_file(path))


def _require_positive(name: str, values: Iterable[float]) -> None:
    bad = [value for value in values if not (value > 0 and math.isfinite(value))]
    if bad:
        raise SpecError(f"{name} must be positive numbers, found {bad[0]}.")


def _halve(size: int, times: int) -> int:
    """Output size of `times` stride-2 layers with 'same' padding: rounds up each time."""
    for _ in range(times):
        size = (size + 1) // 2
    return size
