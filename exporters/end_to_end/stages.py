"""What an end-to-end graph does around the network, as ONNX nodes: `yolact_deploy.reference.images` before it,
`yolact_deploy.reference.postprocess`, `nms` and `masks` after it, in their order of float32 operations.

Only operators that onnxruntime and TensorRT have, and no shape that depends on data: instead of dropping a candidate, its
score is set to NO_CANDIDATE, which sorts it behind all others; instead of a list of any length there are M rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from exporters.onnx_edit import UniqueNames
from yolact_deploy.arrays import AnyArray, FloatArray
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.names import ChannelOrder
from yolact_deploy.reference.masks import CROP_PADDING
from yolact_deploy.reference.postprocess import CENTRE_VARIANCE, SIZE_VARIANCE
from yolact_deploy.reference.stretching import MASK_THRESHOLD
from yolact_deploy.spec import ModelSpec

PREPARED = "preprocess/prepared"  # float32 [B, 3, S, S], what the network reads
# int64 [B, M], the row of `loc` that a detection comes from: no output, for tests
PRIOR_IDX = "detect.select/prior_idx"
NO_CANDIDATE = -1.0  # below every score
_BETWEEN = -0.5  # separates scores from it
_RGB_TO_BGR = (2, 1, 0)


@dataclass(frozen=True)
class Heads:
    """UniqueNames of the network's outputs."""

    loc: str  # [B, P, 4]
    conf: str  # [B, P, 1 + C]
    mask_coeff: str  # [B, P, K]
    proto: str  # [B, Hp, Wp, K]


@dataclass(frozen=True)
class Selected:
    """UniqueNames of what is known of the M best candidates, best first."""

    valid: str  # bool [B, M]; those that are none come last
    scores: str  # [B, M]
    class_ids: str  # int64 [B, M]
    boxes_xyxy: str  # [B, M, 4], relative
    prior_idx: str  # int64 [B, M]


def write_preprocess(
    graph: OnnxGraphWriter,
    image: str,  # uint8 [B, H, W, 3]
    spec: ModelSpec,
    channel_order: ChannelOrder,
) -> str:  # float32 [B, 3, S, S]
    """Stretched to the input size, then (x - mean) / std in RGB order.

    The stretch is OpenCV's but for the last bit. ONNX's Resize takes source coordinates in float32, which in large images
    are off by 1e-4 of a pixel and more.
    """
    pixels = graph.op("Cast", image, to=TensorProto.FLOAT)  # first: TensorRT moves no bytes
    for axis in (2, 1):  # columns, rows
        pixels = _stretch_axis(graph, pixels, axis, spec.input_size)
    planes = graph.op("Transpose", pixels, perm=[0, 3, 1, 2])
    rgb = graph.op("Gather", planes, graph.ints(_RGB_TO_BGR), axis=1) if channel_order == "bgr" else planes
    mean = graph.floats(np.reshape(spec.preprocess.mean_rgb, (3, 1, 1)))
    std = graph.floats(np.reshape(spec.preprocess.std_rgb, (3, 1, 1)))
    return graph.op("Div", graph.op("Sub", rgb, mean), std, gives=PREPARED)


def write_detect(
    graph: OnnxGraphWriter,
    heads: Heads,
    spec: ModelSpec,
    priors: FloatArray,  # [P, 4], cx cy w h
) -> Selected:
    """Threshold, decode, and FastNMS per class or across classes."""
    rules = spec.postprocess
    scores, best, confident = _score(graph.inside("score"), heads, spec)
    boxes = _decode(graph.inside("decode"), heads.loc, spec, priors)

    nms = graph.inside("nms")
    nowhere = nms.floats(NO_CANDIDATE)
    count = min(rules.top_k, spec.num_priors)
    if rules.nms == "cross_class":
        groups = 1
        ranked = nms.op("Transpose", nms.op("Where", confident, best, nowhere), perm=[0, 2, 1])  # [B, 1, P]
    else:
        groups = spec.num_classes
        ranked = nms.op("Transpose", nms.op("Where", confident, scores, nowhere), perm=[0, 2, 1])  # [B, C, P]
    top, prior_idx = nms.ops("TopK", 2, ranked, nms.ints([count]), axis=2)  # [B, G, k]
    prior_idx = nms.reshape(prior_idx, [0, -1])  # [B, G * k]
    boxes = nms.op("GatherND", boxes, nms.unsqueeze(prior_idx, 2), batch_dims=1)  # [B, G * k, 4]
    alive = _not_overlapped(nms, nms.reshape(boxes, [0, groups, count, 4]), count, rules.iou_threshold)
    left = nms.reshape(nms.op("Where", alive, top, nowhere), [0, -1])  # [B, G * k]

    select = graph.inside("select")
    kept, places = select.ops("TopK", 2, left, select.ints([contract.output_rows(spec)]), axis=1)  # [B, M]
    prior_idx = select.op("GatherElements", prior_idx, places, axis=1, gives=PRIOR_IDX)
    if rules.nms == "cross_class":
        class_ids = select.op("GatherElements", select.op("ArgMax", scores, axis=2, keepdims=0), prior_idx, axis=1)
    else:
        class_ids = select.op("Div", places, select.ints(count))
    return Selected(
        valid=select.op("Greater", kept, select.floats(_BETWEEN)),
        scores=kept,
        class_ids=class_ids,
        boxes_xyxy=select.op("GatherND", boxes, select.unsqueeze(places, 2), batch_dims=1),
        prior_idx=prior_idx,
    )


def write_outputs(graph: OnnxGraphWriter, image: str, found: Selected) -> None:
    """All outputs but the masks and their scores."""
    count = graph.op("ReduceSum", graph.op("Cast", found.valid, to=TensorProto.INT32), graph.ints([1]), keepdims=0)
    graph.op("Identity", count, gives=contract.NUM_DETECTIONS)
    zero = graph.floats(0.0)
    graph.op("Where", found.valid, found.scores, zero, gives=contract.SCORES)
    class_ids = graph.op("Where", found.valid, found.class_ids, graph.ints(contract.PADDING_CLASS_ID))
    graph.op("Cast", class_ids, to=TensorProto.INT32, gives=contract.CLASS_IDS)

    image_wh = graph.op("Gather", graph.op("Shape", image), graph.ints([2, 1]), axis=0)
    low, high = _ordered_limits(graph, found.boxes_xyxy, graph.op("Cast", image_wh, to=TensorProto.FLOAT), padding=0)
    exact = graph.op("Concat", low, high, axis=2)
    truncated = graph.op(
        "Where", graph.op("Less", exact, zero), graph.op("Ceil", exact), graph.op("Floor", exact)
    )  # ONNX has no Trunc
    graph.op("Where", graph.unsqueeze(found.valid, 2), truncated, zero, gives=contract.BOXES)


def write_soft_masks(graph: OnnxGraphWriter, heads: Heads, found: Selected, spec: ModelSpec) -> str:
    """float32 [B, M, Hp, Wp]: sigmoid(proto · coefficients), cropped to the box; 0 for rows that are no detections."""
    size, rows = spec.proto_size, contract.output_rows(spec)
    coefficients = graph.op("GatherND", heads.mask_coeff, graph.unsqueeze(found.prior_idx, 2), batch_dims=1)
    planes = graph.reshape(graph.op("Transpose", heads.proto, perm=[0, 3, 1, 2]), [0, 0, -1])  # [B, K, Hp * Wp]
    soft = graph.op("Sigmoid", graph.reshape(graph.op("MatMul", coefficients, planes), [0, rows, size, size]))
    low, high = _ordered_limits(graph, found.boxes_xyxy, graph.floats(float(size)), padding=CROP_PADDING)
    cells = graph.floats(np.arange(size))
    inside = []
    for axis in (0, 1):  # x, y
        after = graph.op("GreaterOrEqual", cells, graph.slice(low, axis, axis + 1, 2))  # [B, M, Hp]
        before = graph.op("Less", cells, graph.slice(high, axis, axis + 1, 2))
        inside.append(graph.op("And", after, before))
    in_column, in_row = inside
    in_row = graph.op("And", in_row, graph.unsqueeze(found.valid, 2))
    window = graph.op("And", graph.unsqueeze(in_row, 3), graph.unsqueeze(in_column, 2))
    return graph.op("Where", window, soft, graph.floats(0.0))


def write_masks(graph: OnnxGraphWriter, image: str, soft: str) -> None:
    """The masks at the image's size."""
    sizes = graph.op("Concat", _dimensions(graph, soft, 0, 2), _dimensions(graph, image, 1, 3), axis=0)
    stretched = graph.op(
        "Resize", soft, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel", antialias=0
    )
    graph.op("Greater", stretched, graph.floats(float(MASK_THRESHOLD)), gives=contract.MASKS)


def write_mask_scores(
    graph: OnnxGraphWriter,
    judged: str,  # [B * M, C], what the mask-IoU network says of each mask
    found: Selected,
    spec: ModelSpec,
) -> None:
    """The score of each mask: its box's score times what is said of it for its own class."""
    per_class = graph.reshape(judged, [-1, contract.output_rows(spec), spec.num_classes])
    own = graph.squeeze(graph.op("GatherElements", per_class, graph.unsqueeze(found.class_ids, 2), axis=2), 2)
    product = graph.op("Mul", found.scores, own)
    graph.op("Where", found.valid, product, graph.floats(0.0), gives=contract.MASK_SCORES)


def _score(graph: OnnxGraphWriter, heads: Heads, spec: ModelSpec) -> tuple[str, str, str]:
    """Foreground scores [B, P, C], the best of each prior [B, P, 1], and whether it is a candidate, bool [B, P, 1]."""
    conf = heads.conf if spec.conf_activation == "softmax" else graph.op("Softmax", heads.conf, axis=-1)
    scores = graph.slice(conf, 1, 1 + spec.num_classes, 2)
    best = graph.op("ReduceMax", scores, graph.ints([2]), keepdims=1)
    above = graph.op("Greater", best, graph.floats(spec.postprocess.conf_threshold))
    # Whether a maximum tells of NaN depends on the runtime, a sum always does.
    total = graph.op("ReduceSum", scores, graph.ints([2]), keepdims=1)
    is_number = graph.op("LessOrEqual", total, graph.floats(float(np.finfo(np.float32).max)))
    return scores, best, graph.op("And", above, is_number)


def _decode(graph: OnnxGraphWriter, loc: str, spec: ModelSpec, priors: FloatArray) -> str:
    """Boxes x1 y1 x2 y2 [B, P, 4], relative to the image."""
    prior_xy, prior_wh = graph.floats(priors[:, :2]), graph.floats(priors[:, 2:])
    shift = graph.op("Mul", graph.slice(loc, 0, 2, 2), graph.floats(CENTRE_VARIANCE))
    centres = graph.op("Add", prior_xy, graph.op("Mul", shift, prior_wh))
    growth = graph.op("Exp", graph.op("Mul", graph.slice(loc, 2, 4, 2), graph.floats(SIZE_VARIANCE)))
    sizes = graph.op("Mul", prior_wh, growth)
    top_left = graph.op("Sub", centres, graph.op("Div", sizes, graph.floats(2.0)))
    boxes = graph.op("Concat", top_left, graph.op("Add", sizes, top_left), axis=2)
    if not spec.postprocess.clip_boxes:
        return boxes
    return graph.op("Min", graph.op("Max", boxes, graph.floats(0.0)), graph.floats(1.0))


def _not_overlapped(
    graph: OnnxGraphWriter,
    boxes_xyxy: str,  # [B, G, k, 4], in descending order of score
    count: int,
    iou_threshold: float,
) -> str:  # bool [B, G, k]
    """Whether no box before it in its group overlaps a box by more than the threshold; NaN counts as overlapping."""
    corners = graph.ops("Split", 4, boxes_xyxy, graph.ints([1, 1, 1, 1]), axis=3)  # x1 y1 x2 y2, each [B, G, k, 1]
    x1, y1, x2, y2 = corners
    area = graph.op("Mul", graph.op("Sub", x2, x1), graph.op("Sub", y2, y1))
    x1_t, y1_t, x2_t, y2_t, area_t = (graph.op("Transpose", side, perm=[0, 1, 3, 2]) for side in (*corners, area))
    zero = graph.floats(0.0)
    width = graph.op("Max", graph.op("Sub", graph.op("Min", x2, x2_t), graph.op("Max", x1, x1_t)), zero)
    height = graph.op("Max", graph.op("Sub", graph.op("Min", y2, y2_t), graph.op("Max", y1, y1_t)), zero)
    shared = graph.op("Mul", width, height)
    iou = graph.op("Div", shared, graph.op("Sub", graph.op("Add", area, area_t), shared))  # [B, G, higher, lower]
    apart = graph.op("LessOrEqual", iou, graph.floats(iou_threshold))
    harmless = graph.op("Or", apart, graph.bools(np.tri(count, dtype=np.bool_)))  # only better boxes suppress
    least = graph.op("ReduceMin", graph.op("Cast", harmless, to=TensorProto.FLOAT), graph.ints([2]), keepdims=0)
    return graph.op("Greater", least, graph.floats(0.5))


def _ordered_limits(
    graph: OnnxGraphWriter,
    boxes_xyxy: str,  # [B, M, 4], relative
    size: str,  # of the image or the prototypes
    padding: int,
) -> tuple[str, str]:  # [B, M, 2] each, x and y
    """Lower and upper limits in pixels or cells: the lower clamped at 0 only, the upper at `size` only."""
    first = graph.op("Mul", graph.slice(boxes_xyxy, 0, 2, 2), size)
    second = graph.op("Mul", graph.slice(boxes_xyxy, 2, 4, 2), size)
    low, high = graph.op("Min", first, second), graph.op("Max", first, second)
    if padding:
        low = graph.op("Sub", low, graph.floats(float(padding)))
        high = graph.op("Add", high, graph.floats(float(padding)))
    return graph.op("Max", low, graph.floats(0.0)), graph.op("Min", high, size)


def _stretch_axis(
    graph: OnnxGraphWriter,
    pixels: str,  # [B, H, W, 3]
    axis: int,  # 1 or 2
    size: int,
) -> str:
    """Bilinear with half-pixel centres along one axis.

    The source of i is (i + 0.5) * length / size - 0.5, not below 0: a whole number over 2 * size, whose quotient is the
    first neighbour and whose remainder the weight of the second. OpenCV 5 computes first + (second - first) * weight fused.
    """
    length = _dimensions(graph, pixels, axis, axis + 1)
    numerator = graph.op("Sub", graph.op("Mul", graph.ints(range(1, 2 * size, 2)), length), graph.ints([size]))
    numerator = graph.op("Max", numerator, graph.ints([0]))
    denominator = graph.ints([2 * size])
    first = graph.op("Div", numerator, denominator)
    remainder = graph.op("Sub", numerator, graph.op("Mul", first, denominator))
    weight = graph.op("Div", graph.op("Cast", remainder, to=TensorProto.FLOAT), graph.floats([2.0 * size]))
    weight = graph.reshape(weight, [-1, 1] if axis == 2 else [-1, 1, 1])
    second = graph.op("Min", graph.op("Add", first, graph.ints([1])), graph.op("Sub", length, graph.ints([1])))
    near = graph.op("Gather", pixels, first, axis=axis)
    step = graph.op("Sub", graph.op("Gather", pixels, second, axis=axis), near)
    return graph.op("Add", near, graph.op("Mul", step, weight))


def _dimensions(graph: OnnxGraphWriter, tensor: str, start: int, end: int) -> str:
    return graph.op("Shape", tensor, start=start, end=end)


class OnnxGraphWriter:
    """Collects nodes and constants for a graph that `names` belongs to; tensors are passed around by name."""

    def __init__(self, names: UniqueNames, module: str = "") -> None:
        self._names, self._module = names, module
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def inside(self, module: str) -> OnnxGraphWriter:
        """A writer to the same graph, for nodes of the submodule `module`."""
        writer = OnnxGraphWriter(self._names, f"{self._module}.{module}" if self._module else module)
        writer.nodes, writer.constants, writer._known = self.nodes, self.constants, self._known
        return writer

    def op(self, operator: str, *inputs: str, gives: str | None = None, **attributes: Any) -> str:
        """Add a node and return its (first) output, named `gives` or like the node."""
        return self.ops(operator, 1, *inputs, gives=gives, **attributes)[0]

    def ops(
        self, operator: str, outputs: int, *inputs: str, gives: str | None = None, **attributes: Any
    ) -> tuple[str, ...]:
        """As `op`, for an operator with several outputs."""
        name = self._names.new(self._module, operator)
        tensors = (gives or name, *(f"{name}:{number}" for number in range(1, outputs)))
        self.nodes.append(onnx.helper.make_node(operator, inputs, tensors, name=name, **attributes))
        return tensors

    def floats(self, value: AnyArray | Sequence[float] | float) -> str:
        """A float32 constant of any shape: the value's."""
        return self._constant(np.asarray(value, np.float32))

    def ints(self, value: Sequence[int] | int) -> str:
        """An int64 constant; a list gives one of shape [n]."""
        return self._constant(np.asarray(value, np.int64))

    def bools(self, value: AnyArray) -> str:
        """A bool constant of any shape: the value's."""
        return self._constant(np.asarray(value, np.bool_))

    def _constant(self, value: AnyArray) -> str:
        """The name of an initializer; equal values share one."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = self._names.new(self._module, "constant")
            self.constants.append(numpy_helper.from_array(value, self._known[key]))
        return self._known[key]

    def slice(self, tensor: str, start: int, stop: int, axis: int) -> str:
        """`tensor[start:stop]` along an axis."""
        return self.op("Slice", tensor, self.ints([start]), self.ints([stop]), self.ints([axis]))

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """0 keeps the size at its place, -1 takes what is left."""
        return self.op("Reshape", tensor, self.ints(shape))

    def unsqueeze(self, tensor: str, axis: int) -> str:
        """The tensor with a new axis of length 1."""
        return self.op("Unsqueeze", tensor, self.ints([axis]))

    def squeeze(self, tensor: str, axis: int) -> str:
        """The tensor without an axis of length 1."""
        return self.op("Squeeze", tensor, self.ints([axis]))
