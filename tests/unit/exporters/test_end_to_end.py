"""End-to-end ONNX files: what they find, what they say of themselves, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from typer.testing import CliRunner

from exporters.checkpoints.checkpoint import LoadedCheckpoint, build_model
from exporters.checkpoints.configs import published_spec
from exporters.end_to_end import stages
from exporters.end_to_end.export import check_end_to_end, export_end_to_end, make_end_to_end
from exporters.onnx_edit import FLOAT, load_onnx, metadata, open_session, set_precision, with_outputs
from exporters.onnx_export import export_onnx
from exporters.parity import builtin_images
from exporters.precision.fp16 import to_half
from exporters.precision.run import apply_precision
from tests import goldens
from tests.unit.exporters.plus_models import SMALL_PLUS
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.contract import EndToEndNms
from yolact_deploy.artifacts.names import (
    CHANNEL_ORDER_METADATA_KEY,
    END_TO_END,
    FORM_METADATA_KEY,
    MASK_IOU_METADATA_KEY,
    SPEC_METADATA_KEY,
)
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.cli import app
from yolact_deploy.errors import ArtifactError, EngineError, ExportError, SpecError
from yolact_deploy.files import sha256_file
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.images import read_image
from yolact_deploy.runtime.detector import Detector
from yolact_deploy.runtime.end_to_end import read_outputs
from yolact_deploy.runtime.onnxruntime.end_to_end import EndToEndNetwork
from yolact_deploy.spec import ModelSpec, PreprocessSpec

Array = npt.NDArray[Any]

PHOTOS = sorted((goldens.SHAPES / "val").glob("*.jpg"))[:12]
# Between two ways to compute the prepared image; see the test of the stages for where it comes from.
SCORE_TOLERANCE = 1e-4
# Pixels of soft masks within rounding of 0.5: 4 of 191 million were measured.
PIXEL_FRACTION = 1e-6


@pytest.fixture(scope="module")
def shapes_file(shapes_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("end_to_end") / "shapes.onnx"
    result = export_end_to_end(shapes_onnx, target)
    assert result.parity is not None
    assert result.parity.passed
    return target


def test_a_file_tells_the_digest_of_its_weights(shapes_file: Path) -> None:
    assert open_onnx(shapes_file).weights_are_as_exported is True


@pytest.mark.slow
@pytest.mark.parametrize("nms", ["fast", "cross_class"])
def test_photos_give_detectors_detections(shapes_onnx: Path, tmp_path: Path, nms: EndToEndNms) -> None:
    target = tmp_path / "model.onnx"
    export_end_to_end(shapes_onnx, target, nms=nms, channel_order="rgb", parity=False)
    detector, network = Detector(shapes_onnx, device="cpu", nms=nms), EndToEndNetwork(target, device="cpu")
    for photo in PHOTOS:
        expected, found = detector(photo), _detect(network, read_image(photo))
        assert len(expected) > 0
        _assert_same(found, expected)


@pytest.mark.slow
def test_a_batch_is_its_images_one_by_one(shapes_file: Path) -> None:
    network = EndToEndNetwork(shapes_file, device="cpu")
    image = read_image(PHOTOS[0])
    images = [image, np.ascontiguousarray(image[::-1]), np.zeros_like(image)]
    for together, alone in zip(network.detect(images), images, strict=True):
        _assert_same(together, _detect(network, alone))


@pytest.mark.slow
def test_images_of_different_sizes_are_taken_together(shapes_file: Path) -> None:
    network = EndToEndNetwork(shapes_file, device="cpu")
    small, large = read_image(PHOTOS[0]), np.zeros((50, 70, 3), np.uint8)
    found = network.detect([small, large])
    assert [detections.image_hw for detections in found] == [small.shape[:2], (50, 70)]


def test_scores_are_above_the_threshold_and_masks_encode(shapes_file: Path, shapes_onnx: Path) -> None:
    image = read_image(PHOTOS[0])
    found = EndToEndNetwork(shapes_file, device="cpu").detect([image], 0.3)[0]
    expected = Detector(shapes_onnx, device="cpu")(image, score_threshold=0.3)
    assert 0 < len(found) == len(expected)
    for ours, theirs in zip(found.to_coco(7), expected.to_coco(7), strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=SCORE_TOLERANCE)
        assert {**ours, "score": 0} == {**theirs, "score": 0}
    assert found.class_names == expected.class_names


@pytest.mark.slow
def test_masks_of_a_plus_model_are_rescored(plus_gridsample: Path, tmp_path: Path) -> None:
    target = tmp_path / "plus.onnx"
    assert export_end_to_end(plus_gridsample, target).parity is not None
    image = builtin_images()[1][1]
    found, expected = (
        _detect(EndToEndNetwork(target, device="cpu"), image),
        Detector(plus_gridsample, device="cpu")(image),
    )
    _assert_same(found, expected)
    assert np.abs(expected.mask_scores - expected.scores).max() > 0.01
    assert MASK_IOU_METADATA_KEY not in metadata(load_onnx(target))


@pytest.mark.slow
def test_a_golden_net_finds_what_the_original_found(tmp_path: Path) -> None:
    config = "yolact_resnet50"
    spec, golden = published_spec(config), goldens.golden_net(config)
    state = {name: torch.from_numpy(tensor) for name, tensor in goldens.golden_weights(config).items()}
    heads = tmp_path / "heads.onnx"
    export_onnx(build_model(LoadedCheckpoint(spec, state, (), Path(config), "")), spec, heads)
    session = open_session(with_outputs(make_end_to_end(heads), [stages.PRIOR_IDX]))
    names = [output.name for output in session.get_outputs()]
    image = np.ascontiguousarray(goldens.golden_image(0))
    outputs = dict(zip(names, session.run(names, {contract.IMAGE: image[None]}), strict=True))
    found = read_outputs(outputs, 0, spec)

    place = {key: row for row, key in enumerate(_pairs(found.class_ids, outputs[stages.PRIOR_IDX][0]))}
    keys = _pairs(golden["det_fast.class"], golden["det_fast.prior_idx"])
    assert sorted(place) == sorted(keys)
    in_order = found.take(np.array([place[key] for key in keys]))
    # The goldens' images were resized by PyTorch, which differs from OpenCV by up to 1.6e-4 of what the network reads.
    np.testing.assert_allclose(in_order.scores, golden["det_fast.score"], rtol=0, atol=2 * SCORE_TOLERANCE)
    height, width = found.image_hw
    exact = golden["det_fast.box"] * np.array([width, height, width, height])
    off = np.abs(in_order.boxes_xyxy - golden["det_fast.post.box"])
    assert off[np.abs(exact - np.round(exact)) > 2e-2].max() == 0
    assert off.max() <= 1
    _assert_same(_in_order(found, outputs), _in_order(Detector(heads, device="cpu")(image), None))


def test_auto_says_why_it_took_the_cpu(shapes_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolact_deploy.runtime.opening.has_nvidia_driver", lambda: False)
    assert Detector(shapes_file).fallback == "this machine has no NVIDIA driver."
    monkeypatch.setattr("yolact_deploy.runtime.opening.has_nvidia_driver", lambda: True)
    detector = Detector(shapes_file)
    assert (detector.gpu_index is None) is (detector.fallback is not None)
    if detector.fallback is not None:
        assert "CUDA provider" in detector.fallback
        assert detector.notes[0].split() == f"No GPU is used: {detector.fallback}".split()
    assert (Detector(shapes_file, device="cpu").fallback, Detector(shapes_file, device="cpu").notes) == (None, ())


def test_what_the_file_says_of_itself(shapes_file: Path, shapes_onnx: Path) -> None:
    model, heads = onnx.load(str(shapes_file)), onnx.load(str(shapes_onnx))
    said = metadata(model)
    assert said[FORM_METADATA_KEY] == END_TO_END
    assert said[CHANNEL_ORDER_METADATA_KEY] == "bgr"
    assert said[SPEC_METADATA_KEY] == metadata(heads)[SPEC_METADATA_KEY]
    assert (open_onnx(shapes_file).form, open_onnx(shapes_onnx).form) == (END_TO_END, "heads")
    # The network's own nodes and weights are those of the ordinary export.
    names = {node.name for node in model.graph.node}
    assert {node.name for node in heads.graph.node} <= names
    assert {tensor.name for tensor in heads.graph.initializer} <= {tensor.name for tensor in model.graph.initializer}


def test_the_graph_has_no_shape_that_depends_on_data(shapes_file: Path) -> None:
    operators = {node.op_type for node in onnx.load(str(shapes_file)).graph.node}
    assert not operators & {"NonMaxSuppression", "NonZero", "Compress", "Unique", "Loop", "If", "Scan"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_a_plan_for_images_of_any_size(
    shapes_onnx: Path, plus_gridsample: Path, tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    from engines import build

    for heads, outputs in ((shapes_onnx, 5), (plus_gridsample, 6)):
        source = heads
        if precision == "fp16":
            typed = to_half(load_onnx(heads))
            set_precision(typed, "fp16")
            source = tmp_path / "typed.onnx"
            onnx.save(typed, str(source))
        target = tmp_path / "model.onnx"
        export_end_to_end(source, target, parity=precision == "fp16" and heads is shapes_onnx)
        sizes = ((32, 32), (480, 640), (1080, 1920))
        result = build(
            target,
            tmp_path / "model.engine",
            runtime="tensorrt-rtx",
            targets=["sm86"],
            batch=(1, 2, 4),
            image_size=sizes,
        )
        assert result.sidecar.precision == precision
        tensors = {tensor.name: tensor for tensor in result.sidecar.io_tensors}
        assert len(tensors) == 1 + outputs
        assert (tensors["image"].dtype, tensors["image"].shape) == ("uint8", (-1, -1, -1, 3))
        assert (tensors["masks"].dtype, tensors["masks"].shape[2:]) == ("bool", (-1, -1))


def test_image_sizes_are_refused_for_an_ordinary_export(shapes_onnx: Path, tmp_path: Path) -> None:
    from engines import build

    size = (64, 64)
    with pytest.raises(EngineError, match="takes preprocessed images of 256x256"):
        build(shapes_onnx, tmp_path / "x.engine", image_size=size)


@pytest.mark.slow
def test_a_graph_that_finds_something_else_fails_parity(shapes_onnx: Path, shapes: LoadedCheckpoint) -> None:
    model = make_end_to_end(shapes_onnx)
    threshold = next(t for t in model.graph.initializer if t.data_type == FLOAT and _value(t) == np.float32(0.5))
    threshold.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.1), threshold.name))  # of NMS and masks
    report = check_end_to_end(shapes_onnx, model, shapes.spec, "bgr", images=builtin_images()[:1])
    assert not report.passed


def test_nothing_is_written_when_parity_fails(
    shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "MASK_THRESHOLD", np.float32(0.99))
    with pytest.raises(ExportError, match="was not written"):
        export_end_to_end(shapes_onnx, tmp_path / "x.onnx", images=builtin_images()[:1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: _with_nms(spec, "traditional"), "traditional NMS"),
        (
            lambda spec: dataclasses.replace(spec, preprocess=PreprocessSpec(resize="pad", pad_rgb=(1, 2, 3))),
            "preprocess.resize 'pad'",
        ),
    ],
)
def test_what_a_graph_can_not_do_is_refused(change: Callable[[ModelSpec], ModelSpec], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        contract.check_expressible(change(SMALL_PLUS))


def test_an_end_to_end_file_is_not_quantized_or_made_end_to_end_again(shapes_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is an end-to-end ONNX"):
        apply_precision(shapes_file, tmp_path / "x.onnx", precision="fp16")
    with pytest.raises(ArtifactError, match="is an end-to-end ONNX"):
        make_end_to_end(shapes_file)


def test_detector_runs_the_file_but_has_no_stages_and_no_other_nms(shapes_file: Path, shapes_onnx: Path) -> None:
    with Detector(shapes_file, device="cpu") as detector, Detector(shapes_onnx, device="cpu") as ordinary:
        _assert_same(detector(PHOTOS[0]), ordinary(PHOTOS[0]))
        with pytest.raises(ArtifactError, match="gives no head tensors"):
            detector.run_network(np.zeros((1, 3, 256, 256), np.float32))
    with pytest.raises(SpecError, match="Export it again with"):
        Detector(shapes_file, device="cpu", nms="cross_class")


@pytest.mark.slow
def test_the_command_writes_one_file_and_tells_of_it(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    options = [
        "--spec",
        goldens.SHAPES_SPEC,
        "--end-to-end",
        "--nms",
        "cross_class",
        "--channel-order",
        "rgb",
        "--no-parity",
    ]
    result = _command("export", goldens.SHAPES_CHECKPOINT, "-o", target, "--json", *options)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["output"] == report["end_to_end"]["output"] == str(target)
    assert report["end_to_end"]["nms"] == "cross_class"
    assert report["end_to_end"]["parity"] is None
    assert report["sha256"] == sha256_file(target)
    assert metadata(load_onnx(target))[CHANNEL_ORDER_METADATA_KEY] == "rgb"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nms", "fast"], "--nms has no effect on the ordinary export"),
        (["--channel-order", "rgb"], "--channel-order has no effect on the ordinary export"),
        (["--end-to-end", "--nms", "traditional"], "can't hold traditional NMS"),
        (["--end-to-end", "--precision", "fp16", "--io-precision", "fp16"], "can't be had"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_the_export(
    tmp_path: Path, options: list[str], message: str
) -> None:
    result = _command("export", goldens.SHAPES_CHECKPOINT, "-o", tmp_path / "x.onnx", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("text", ["640", "640x480,1280x720", "0x10", "ax3"])
def test_a_malformed_image_size_is_refused(shapes_file: Path, tmp_path: Path, text: str) -> None:
    result = _command("build-engine", shapes_file, "-o", tmp_path / "x.engine", "--image-size", text)
    assert result.exit_code == 2
    assert "WIDTHxHEIGHT" in result.stderr


def test_half_inputs_and_outputs_are_refused(shapes_onnx: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    onnx.save(to_half(load_onnx(shapes_onnx), io_precision="fp16"), str(half))
    with pytest.raises(ArtifactError, match="image, mask_coeff, proto in another type than float32"):
        make_end_to_end(half)


def test_an_ordinary_export_is_no_end_to_end_file(shapes_onnx: Path) -> None:
    with pytest.raises(SpecError, match="is not an end-to-end ONNX"):
        EndToEndNetwork(shapes_onnx, device="cpu")


def test_a_batch_of_one_stays_fixed(plus_gridsample: Path, tmp_path: Path) -> None:
    model = load_onnx(plus_gridsample)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    heads, target = tmp_path / "heads.onnx", tmp_path / "model.onnx"
    onnx.save(model, str(heads))
    export_end_to_end(heads, target, parity=False)
    network = EndToEndNetwork(target, device="cpu")
    assert network.max_batch == 1
    image = builtin_images()[1][1]
    first, second = network.detect([image, image])
    _assert_same(first, second)


def _command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _detect(network: EndToEndNetwork, image: Array) -> Detections:
    return network.detect([image])[0]


def _pairs(class_ids: Array, prior_idx: Array) -> list[tuple[int, int]]:
    return list(zip(class_ids.tolist(), prior_idx[: len(class_ids)].tolist(), strict=True))


def _in_order(found: Detections, outputs: dict[str, Array] | None) -> Detections:
    """Sorted by (class, prior), so that scores that tie within rounding don't matter."""
    prior_idx = found.raw.prior_idx if outputs is None else outputs[stages.PRIOR_IDX][0, : len(found)]
    return found.take(np.lexsort((prior_idx, found.class_ids)))


def _assert_same(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(found.mask_scores, expected.mask_scores, rtol=0, atol=SCORE_TOLERANCE)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    assert np.count_nonzero(found.masks != expected.masks) <= 1 + PIXEL_FRACTION * expected.masks.size


def _value(tensor: onnx.TensorProto) -> Any:
    value = onnx.numpy_helper.to_array(tensor)
    return value[()] if value.ndim == 0 else None


def _with_nms(spec: ModelSpec, nms: Any) -> ModelSpec:
    return dataclasses.replace(spec, postprocess=dataclasses.replace(spec.postprocess, nms=nms))
