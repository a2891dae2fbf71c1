"""From an exported ONNX of any precision to one that takes an image's bytes and gives finished detections.

The network is left as it is, typed and quantized as it may be; what comes before and after it is added in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import onnx
from onnx import TensorProto

from exporters.end_to_end import stages
from exporters.end_to_end.stages import PREPARED, PRIOR_IDX, OnnxGraphWriter
from exporters.matching import capped_size, detect_heads, paired_rows
from exporters.onnx_edit import (
    FLOAT,
    UniqueNames,
    check_types,
    finished,
    load_onnx,
    metadata,
    open_session,
    with_outputs,
)
from exporters.parity import (
    ImageParity,
    ParityReport,
    TensorParity,
    builtin_images,
    compare_tensor,
    count_above_margin,
    image_parity,
)
from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.names import (
    CHANNEL_ORDER_METADATA_KEY,
    END_TO_END,
    FORM_METADATA_KEY,
    INPUT,
    MASK_IOU_METADATA_KEY,
    OUTPUTS,
    SPEC_METADATA_KEY,
    ChannelOrder,
    IoPrecision,
)
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.errors import ArtifactError, ExportError, SpecError
from yolact_deploy.files import atomic_path, check_writable, refuse_overwriting, sha256_file
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.images import preprocess
from yolact_deploy.reference.postprocess import assemble_masks, make_priors, rescore_masks
from yolact_deploy.runtime.end_to_end import read_outputs
from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec, NmsMode

HEIGHT_DIM, WIDTH_DIM = "height", "width"
_MASK_IOU_PREFIX = "mask_iou."  # keeps its names apart from the network's
_MAX_LISTED_FAILURES = 3
_ONNX_TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": FLOAT, "bool": TensorProto.BOOL}
# Of a prepared pixel or a score. OpenCV before version 5 rounds the source coordinates of its resize to float32, which in
# images of 640 pixels moves a pixel by up to 1.4e-4 and a score by nearly as much.
MAX_ERROR = 5e-4


@dataclass(frozen=True)
class EndToEndResult:
    """The written end-to-end ONNX, and how it compared with a Detector."""

    output: Path
    channel_order: ChannelOrder
    nms: str
    max_detections: int  # M, the rows of every output
    size_bytes: int
    sha256: str
    added_bytes: int  # over the ordinary ONNX
    parity: ParityReport | None  # None where it was not asked for

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        parity = None if self.parity is None else self.parity.to_dict()
        return {**vars(self), "output": str(self.output), "parity": parity}


def check_request(
    end_to_end: bool, nms: NmsMode | None, channel_order: ChannelOrder | None, io_precision: IoPrecision
) -> None:
    """Raise SpecError before the export for what would fail or have no effect after it."""
    idle = [option for option, value in (("--nms", nms), ("--channel-order", channel_order)) if value is not None]
    if idle and not end_to_end:
        raise SpecError(f"{', '.join(idle)} has no effect on the ordinary export. Add --end-to-end, or leave it out.")
    if end_to_end and io_precision == "fp16":
        raise SpecError("an end-to-end graph takes bytes and gives float32, so --io-precision fp16 can't be had.")
    if nms == "traditional":
        raise SpecError(contract.TRADITIONAL_IS_A_LOOP)


def export_end_to_end(
    heads_onnx: Path,
    output: Path,
    *,
    channel_order: ChannelOrder = "bgr",
    nms: contract.EndToEndNms | None = None,
    images: Sequence[tuple[str, Image]] = (),
    parity: bool = True,
) -> EndToEndResult:
    """Write the ONNX of `yolact-deploy export` (fp32, fp16 or int8) as an end-to-end one, whose contract is
    `yolact_deploy.artifacts.contract`.

    `channel_order` is that of the images it will be given; `nms` replaces the spec's own. With `parity` its detections on
    `images` (name and uint8 [H, W, 3] BGR; none = built-in ones) are compared with `Detector`'s on `heads_onnx`, and
    `output` appears only when they agree. Raises ArtifactError, SpecError, OutputError, ExportError.
    """
    heads_onnx, output = Path(heads_onnx), Path(output)
    check_writable(output)
    refuse_overwriting(output, heads_onnx)
    model = make_end_to_end(heads_onnx, channel_order=channel_order, nms=nms)
    spec = ModelSpec.from_json(metadata(model)[SPEC_METADATA_KEY])
    report: ParityReport | None = None
    with atomic_path(output) as temporary:
        temporary.write_bytes(finished(model))
        if parity:
            report = check_end_to_end(heads_onnx, model, spec, channel_order, images=images)
            if not report.passed:
                listed = "; ".join(report.failures()[:_MAX_LISTED_FAILURES])
                raise ExportError(
                    f"{output} was not written: in {report.runtime} its detections are not those of Detector. {listed}. "
                    "Try another onnxruntime version, and report it."
                )
    size = output.stat().st_size
    return EndToEndResult(
        output=output,
        channel_order=channel_order,
        nms=spec.postprocess.nms,
        max_detections=contract.output_rows(spec),
        size_bytes=size,
        sha256=sha256_file(output),
        added_bytes=size - heads_onnx.stat().st_size,
        parity=report,
    )


def make_end_to_end(
    heads_onnx: Path, *, channel_order: ChannelOrder = "bgr", nms: contract.EndToEndNms | None = None
) -> onnx.ModelProto:
    """The end-to-end graph, not yet compared with anything. Raises ArtifactError, SpecError, ExportError."""
    if channel_order not in get_args(ChannelOrder):
        raise ExportError(f'channel_order must be "bgr" or "rgb", found {channel_order!r}.')
    file = open_onnx(heads_onnx)
    file.check_io()
    model, spec = load_onnx(heads_onnx), file.spec
    if nms is not None:
        spec = dataclasses.replace(spec, postprocess=dataclasses.replace(spec.postprocess, nms=nms))
    contract.check_expressible(spec)
    _check_float32(file)
    judge = _mask_iou_model(file)

    graph, names = model.graph, UniqueNames.of(model.graph)
    before, after = OnnxGraphWriter(names), OnnxGraphWriter(names)
    prepared = stages.write_preprocess(before.inside("preprocess"), contract.IMAGE, spec, channel_order)
    for node in graph.node:
        node.input[:] = [prepared if name == INPUT else name for name in node.input]
    heads = stages.Heads(*OUTPUTS)
    found = stages.write_detect(after.inside("detect"), heads, spec, make_priors(spec))
    stages.write_outputs(after.inside("results"), contract.IMAGE, found)
    masks = after.inside("masks")
    soft = stages.write_soft_masks(masks, heads, found, spec)
    stages.write_masks(masks, contract.IMAGE, soft)
    if judge is not None:
        judged = _inline(judge, masks.reshape(soft, [-1, spec.proto_size, spec.proto_size]), after)
        stages.write_mask_scores(after.inside("mask_scores"), judged, found, spec)

    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before.nodes, *network, *after.nodes])
    graph.initializer.extend([*before.constants, *after.constants])
    _declare_io(graph, spec)
    described = {key: value for key, value in metadata(model).items() if key != MASK_IOU_METADATA_KEY}
    described[SPEC_METADATA_KEY] = spec.to_json()
    described[FORM_METADATA_KEY] = END_TO_END
    described[CHANNEL_ORDER_METADATA_KEY] = channel_order
    onnx.helper.set_model_props(model, described)
    return check_types(model)


def _check_float32(file: OnnxFile) -> None:
    if half := [tensor.name for tensor in file.io_tensors if tensor.dtype != "float32"]:
        raise ArtifactError(
            f"{file.path} has {', '.join(half)} in another type than float32, and an end-to-end graph has neither as input nor "
            "as output. Make it with float32 inputs and outputs (--io-precision fp32)."
        )


def _mask_iou_model(file: OnnxFile) -> onnx.ModelProto | None:
    if file.mask_iou is None:
        return None
    try:
        return onnx.load_model_from_string(file.mask_iou)
    except Exception as exc:  # protobuf's own error type, which moved between its versions
        raise SpecError(
            f"the mask-IoU network in {file.path} is damaged: {exc}. Export it again with `yolact-deploy export`."
        ) from exc


def _inline(judge: onnx.ModelProto, masks: str, writer: OnnxGraphWriter) -> str:
    """Put the nodes of the mask-IoU network into the graph, reading `masks`; the name of its output [n, C]."""
    graph = onnx.compose.add_prefix(judge, _MASK_IOU_PREFIX).graph
    for node in graph.node:
        node.input[:] = [masks if name == graph.input[0].name else name for name in node.input]
    writer.nodes.extend(graph.node)
    writer.constants.extend(graph.initializer)
    return str(graph.output[0].name)


def _declare_io(graph: onnx.GraphProto, spec: ModelSpec) -> None:
    """The contract's input and outputs in place of the network's; the batch stays as dynamic or fixed as it was."""
    first = graph.input[0].type.tensor_type.shape.dim[0]
    batch = first.dim_param or first.dim_value
    values = []
    for name, tensor in contract.expected_io(spec, END_TO_END).items():
        image_hw = iter((HEIGHT_DIM, WIDTH_DIM))  # what is dynamic beside the batch
        shape = [batch, *(next(image_hw) if size == -1 else size for size in tensor.shape[1:])]
        values.append(onnx.helper.make_tensor_value_info(name, _ONNX_TYPES[tensor.dtypes[0]], shape))
    del graph.input[:], graph.output[:]
    graph.input.extend(values[:1])
    graph.output.extend(values[1:])


def check_end_to_end(
    heads_onnx: Path,
    model: onnx.ModelProto,  # end-to-end, made of `heads_onnx`
    spec: ModelSpec,  # of the end-to-end graph: its NMS may differ
    channel_order: ChannelOrder,
    *,
    images: Sequence[tuple[str, Image]] = (),  # name and uint8 [H, W, 3] BGR; none = the built-in ones
) -> ParityReport:
    """Run both on the images, which are made smaller where they are large, and one image in a batch.

    What is judged of each image: what the network reads, the choice of (class, prior), scores, integer boxes and masks. In
    half or INT8 the last bit of a pixel may decide a rounding and change scores by 1e-3; the network's outputs in the
    end-to-end graph itself are then what is expected to become these detections.
    """
    network = OnnxNetwork(heads_onnx, device="cpu")
    is_float32 = open_onnx(heads_onnx).precision == "fp32"
    session = open_session(with_outputs(model, [PREPARED, PRIOR_IDX, *([] if is_float32 else OUTPUTS)]))
    names = [output.name for output in session.get_outputs()]

    def run(batch: Image) -> dict[str, AnyArray]:
        given = batch if channel_order == "bgr" else batch[..., ::-1]
        return dict(zip(names, session.run(names, {contract.IMAGE: np.ascontiguousarray(given)}), strict=True))

    results: list[ImageParity] = []
    batches: list[TensorParity] = []
    for name, original in images or builtin_images():
        image = _capped(original)
        outputs = run(image[None])
        prepared = preprocess([image], spec)
        heads = network.run(prepared) if is_float32 else HeadTensors(*(outputs[name] for name in OUTPUTS))
        raw = detect_heads(heads, spec)
        expected = assemble_masks(raw, (image.shape[0], image.shape[1]))
        if network.mask_iou is not None:
            expected = rescore_masks(expected, network.mask_iou)
        results.append(_compare(name, prepared, expected, outputs, spec))
        if not batches and _is_dynamic(model):
            mirrored = np.ascontiguousarray(image[:, ::-1])
            apart = [outputs[contract.SCORES][0], run(mirrored[None])[contract.SCORES][0]]
            together = run(np.stack([image, mirrored]))[contract.SCORES]
            batches.append(compare_tensor(contract.SCORES, np.stack(apart), together))
    return ParityReport(tuple(results), tuple(batches), network.description)


def _compare(
    name: str, prepared: FloatArray, expected: Detections, outputs: Mapping[str, AnyArray], spec: ModelSpec
) -> ImageParity:
    found = read_outputs(outputs, 0, spec)
    prior_idx = outputs[PRIOR_IDX][0, : len(found)]
    found = dataclasses.replace(found, raw=dataclasses.replace(found.raw, prior_idx=prior_idx))
    rows, partners = paired_rows(expected.raw, found.raw)
    a, b = expected.take(rows), found.take(partners)
    tensors = [
        _tensor_parity("prepared image", prepared, outputs[PREPARED]),
        _tensor_parity(contract.SCORES, a.scores, b.scores),
    ]
    if a.mask_ious is not None:
        tensors.append(_tensor_parity(contract.MASK_SCORES, a.mask_scores, b.mask_scores))
    return image_parity(
        name,
        tuple(tensors),
        (a, b),
        missing=count_above_margin(expected.raw, found.raw, spec),
        extra=count_above_margin(found.raw, expected.raw, spec),
    )


def _tensor_parity(name: str, expected: FloatArray, found: FloatArray) -> TensorParity:
    if not expected.size:  # no detections are equal detections
        expected = found = np.zeros(1, np.float32)
    return dataclasses.replace(compare_tensor(name, expected, found), allowed=MAX_ERROR)


def _capped(image: Image) -> Image:
    height, width = capped_size(image.shape)
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _is_dynamic(model: onnx.ModelProto) -> bool:
    return bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_param)
