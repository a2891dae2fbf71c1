"""What an end-to-end graph computes around the network, against the NumPy reference on the 40 recorded cases."""

from __future__ import annotations

import dataclasses
import functools
import json
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from exporters.end_to_end import stages
from exporters.end_to_end.stages import OnnxGraphWriter
from exporters.onnx_edit import UniqueNames
from tests import goldens
from tests.goldens import f32
from tests.unit.exporters.plus_models import SMALL_PLUS
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.names import END_TO_END, OUTPUTS, ChannelOrder
from yolact_deploy.reference.images import preprocess
from yolact_deploy.reference.postprocess import assemble_masks, detect
from yolact_deploy.runtime.end_to_end import read_outputs
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec, PostprocessSpec

Array = npt.NDArray[Any]

CASES = {case["id"]: case for case in json.loads((goldens.GOLDEN / "post" / "cases.json").read_text(encoding="utf-8"))}
# A spec has square prototypes, and so has a graph that is made of it.
SQUARE = [
    pytest.param(case_id, marks=pytest.mark.slow if case["spec"]["proto"][0] > 100 and "crowded" not in case_id else ())
    for case_id, case in CASES.items()
    if case["spec"]["proto"][0] == case["spec"]["proto"][1]
]
# onnxruntime's exp and sigmoid are off by a unit in the last place or two, and relative boxes are of order 1.
PIXEL_MARGIN = 1e-3
OPSET = 19


@pytest.mark.parametrize("nms", ["fast", "cross_class"])
@pytest.mark.parametrize("case_id", SQUARE)
def test_detections_of_recorded_cases_are_the_references(case_id: str, nms: contract.EndToEndNms) -> None:
    inputs = _inputs(case_id)
    width, height = CASES[case_id]["wh"]
    spec = _spec_of(inputs, PostprocessSpec(nms=nms))
    outputs = _run(spec, inputs, (height, width))
    heads = HeadTensors(*(inputs[name] for name in OUTPUTS))
    for row, raw in enumerate(detect(*heads, inputs["priors"], nms=nms)):
        expected, found = assemble_masks(raw, (height, width)), read_outputs(outputs, row, spec)
        np.testing.assert_array_equal(outputs[stages.PRIOR_IDX][row, : len(found)], raw.prior_idx)
        np.testing.assert_array_equal(found.class_ids, raw.class_ids)
        np.testing.assert_array_equal(found.scores, raw.scores)
        exact = raw.boxes_xyxy * np.array([width, height, width, height])
        off = np.abs(found.boxes_xyxy - expected.boxes_xyxy)
        assert off[np.abs(exact - np.round(exact)) > PIXEL_MARGIN].max(initial=0) == 0
        assert off.max(initial=0) <= 1
        # Of 370 million pixels none differs with AVX-512; another SIMD's exp may move one that is at 0.5.
        assert np.count_nonzero(found.masks != expected.masks) <= 1e-6 * expected.masks.size


def test_rows_beyond_the_detections_are_padding() -> None:
    outputs = _run(
        _spec_of(_inputs("p08_iou_exactly_half"), PostprocessSpec()), _inputs("p08_iou_exactly_half"), (64, 64)
    )
    (count,) = outputs[contract.NUM_DETECTIONS]
    assert 0 < count < outputs[contract.SCORES].shape[1]
    for name in (contract.SCORES, contract.BOXES, contract.MASKS):
        assert not outputs[name][:, count:].any()
    assert (outputs[contract.CLASS_IDS][:, count:] == contract.PADDING_CLASS_ID).all()


def test_a_row_with_a_nan_score_is_dropped() -> None:
    conf = f32([[[0.1, 0.9, 0.0], [0.1, np.nan, 0.8], [np.nan, np.nan, np.nan], [0.3, 0.0, 0.7]]])
    found = _detect_boxes(f32([[0, 0, 0.2, 0.2], [0.3, 0, 0.2, 0.2], [0, 0.3, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]), conf)
    assert found == [(0, 0), (1, 3)]


def test_a_box_of_nan_suppresses_all_lower_ones_of_its_class() -> None:
    conf = f32([[[0.1, 0.9, 0.6], [0.1, 0.8, 0.7], [0.1, 0.7, 0.8]]])
    found = _detect_boxes(f32([[np.nan, 0, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]), conf)
    assert found == [(0, 0), (1, 2), (1, 1)]


def test_a_score_exactly_at_the_threshold_is_no_candidate() -> None:
    conf = f32([[[0.9, 0.05, 0.0], [0.9, np.nextafter(f32(0.05), f32(1)), 0.0]]])
    found = _detect_boxes(f32([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]), conf)
    assert {prior for _, prior in found} == {1}


@pytest.mark.parametrize("channel_order", ["bgr", "rgb"])
@pytest.mark.parametrize("image_hw", [(48, 64), (333, 500), (1080, 1920), (31, 20)])
def test_the_image_is_prepared_as_detector_does_it(image_hw: tuple[int, int], channel_order: ChannelOrder) -> None:
    spec = dataclasses.replace(SMALL_PLUS, input_size=550)
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    writer = OnnxGraphWriter(UniqueNames())
    stages.write_preprocess(writer, contract.IMAGE, spec, channel_order)
    given = image if channel_order == "bgr" else np.ascontiguousarray(image[..., ::-1])
    outputs = _run_nodes(writer, {contract.IMAGE: given[None]}, [stages.PREPARED])
    difference = np.abs(outputs[stages.PREPARED] - preprocess([image], spec))
    # OpenCV before version 5 rounds source coordinates to float32: 6e-5 of a pixel at 1920, times 255 on this noise.
    assert difference.max() <= (2e-6 if int(cv2.__version__.partition(".")[0]) >= 5 else 2e-3)


@functools.cache
def _inputs(case_id: str) -> dict[str, Array]:
    made = goldens.postgen().make_case(CASES[case_id]["spec"])
    return {"mask_coeff": made["mask"], **{name: made[name] for name in ("loc", "conf", "proto", "priors")}}


def _spec_of(inputs: dict[str, Array], postprocess: PostprocessSpec) -> ModelSpec:
    """As much of a spec as the stages read, with any priors."""
    return cast(
        ModelSpec,
        SimpleNamespace(
            num_priors=len(inputs["priors"]),
            num_classes=inputs["conf"].shape[2] - 1,
            proto_size=inputs["proto"].shape[1],
            postprocess=postprocess,
            conf_activation="softmax",
            mask_iou_layers=(),
            class_names=(),
            category_ids=(),
        ),
    )


def _detect_boxes(
    boxes_cxcywh: Array,  # [P, 4]
    conf: Array,  # [1, P, 1 + C]
) -> list[tuple[int, int]]:
    """(class, prior) of what FastNMS leaves of these very boxes with a score above 0, best first."""
    inputs = {
        "loc": np.zeros_like(boxes_cxcywh)[None],
        "conf": conf,
        "mask_coeff": np.zeros((1, len(boxes_cxcywh), 1), np.float32),
        "proto": np.zeros((1, 4, 4, 1), np.float32),
        "priors": boxes_cxcywh,
    }
    outputs = _run(_spec_of(inputs, PostprocessSpec()), inputs, (8, 8))
    above = outputs[contract.SCORES][0] > 0
    columns = (outputs[contract.CLASS_IDS], outputs[stages.PRIOR_IDX])
    return list(zip(*(column[0, above].tolist() for column in columns), strict=True))


def _run(spec: ModelSpec, inputs: dict[str, Array], image_hw: tuple[int, int]) -> dict[str, Array]:
    """The stages behind the network as a graph of their own; the image gives its size only."""
    writer = OnnxGraphWriter(UniqueNames())
    heads = stages.Heads(*OUTPUTS)
    found = stages.write_detect(writer.inside("detect"), heads, spec, inputs["priors"])
    stages.write_outputs(writer.inside("outputs"), contract.IMAGE, found)
    masks = writer.inside("masks")
    stages.write_masks(masks, contract.IMAGE, stages.write_soft_masks(masks, heads, found, spec))
    image = np.zeros((len(inputs["loc"]), *image_hw, 3), np.uint8)
    given = {contract.IMAGE: image, **{name: inputs[name] for name in OUTPUTS}}
    return _run_nodes(writer, given, [*list(contract.expected_io(spec, END_TO_END))[1:], stages.PRIOR_IDX])


def _run_nodes(writer: OnnxGraphWriter, inputs: dict[str, Array], outputs: list[str]) -> dict[str, Array]:
    graph = onnx.helper.make_graph(
        writer.nodes,
        "stages",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape)
            )
            for name, value in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        writer.constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(outputs, inputs), strict=True))
