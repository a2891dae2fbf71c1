"""A Detector in OpenVINO finds what it finds in onnxruntime."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.goldens import SHAPES
from yolact_deploy import Detections, Detector
from yolact_deploy.errors import ArtifactError, DeviceError, EngineError, OptionError, YolactDeployError

pytest.importorskip("openvino")

PHOTOS = sorted((SHAPES / "val").glob("*.jpg"))[:3]
# Of head tensors between two runtimes that compute in float32: 4e-5 of ResNet50-550 and 6e-6 of the shapes model were measured.
TOLERANCE = 4e-5
# Of soft masks within rounding of 0.5.
PIXEL_FRACTION = 1e-5


@functools.cache
def detector(file: Path, runtime: Any) -> Detector:
    return Detector(file, device="cpu", runtime=runtime, threads=2)


def assert_same(found: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    assert (found.masks != expected.masks).mean() <= PIXEL_FRACTION


def test_head_tensors_are_those_of_onnxruntime(shapes_onnx: Path) -> None:
    ours, reference = detector(shapes_onnx, "openvino"), detector(shapes_onnx, "onnxruntime")
    batch = np.random.default_rng(0).normal(size=(2, 3, 256, 256)).astype(np.float32)
    for found, expected in zip(ours.run_network(batch), reference.run_network(batch), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_detections_are_those_of_onnxruntime(shapes_onnx: Path) -> None:
    for photo in PHOTOS:
        expected = detector(shapes_onnx, "onnxruntime")(photo, score_threshold=0.1)
        assert len(expected) > 0
        assert_same(detector(shapes_onnx, "openvino")(photo, score_threshold=0.1), expected)


@pytest.mark.parametrize("form", ["plus_gridsample", "plus_native"])
def test_a_yolact_plus_is_read_in_both_forms_of_its_deformable_convolutions(
    form: str, request: pytest.FixtureRequest
) -> None:
    file: Path = request.getfixturevalue(form)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    found, expected = (detector(file, runtime)(image) for runtime in ("openvino", "onnxruntime"))
    assert_same(found, expected)
    assert found.mask_ious is not None
    np.testing.assert_allclose(found.mask_scores, expected.mask_scores, rtol=0, atol=TOLERANCE)


def test_an_end_to_end_file_finds_the_same_in_images_of_any_size(plus_gridsample: Path, tmp_path: Path) -> None:
    from exporters.end_to_end.export import export_end_to_end

    file = tmp_path / "whole.onnx"
    export_end_to_end(plus_gridsample, file, parity=False)
    generator = np.random.default_rng(0)
    sizes = ((48, 64), (48, 64), (77, 33))
    images = [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    images[2].flags.writeable = False  # as what NumPy makes of an image of Pillow's
    ours, reference = (Detector(file, device="cpu", runtime=each, batch_size=3) for each in ("openvino", "onnxruntime"))
    assert ours.description.startswith("OpenVINO")
    for found, expected in zip(ours(images), reference(images), strict=True):
        assert_same(found, expected)
        np.testing.assert_allclose(found.mask_scores, expected.mask_scores, rtol=0, atol=TOLERANCE)


def test_a_stream_of_two_runs_at_once_gives_every_image_its_own_detections(shapes_onnx: Path) -> None:
    ours = detector(shapes_onnx, "openvino")
    assert ours.in_flight == 2
    for photo, found in zip(PHOTOS, ours.stream(PHOTOS, score_threshold=0.1), strict=True):
        expected = ours(photo, score_threshold=0.1)  # used in between, as it may be
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.masks, expected.masks)


def test_an_input_that_may_not_be_written_to_is_read(shapes_onnx: Path) -> None:
    batch = np.zeros((1, 3, 256, 256), np.float32)
    expected = detector(shapes_onnx, "openvino").run_network(batch)
    batch.flags.writeable = False
    for found, heads in zip(detector(shapes_onnx, "openvino").run_network(batch), expected, strict=True):
        np.testing.assert_array_equal(found, heads)


def test_one_image_alone_and_among_others_gives_the_same_heads(shapes_onnx: Path) -> None:
    ours = detector(shapes_onnx, "openvino")
    batch = np.random.default_rng(0).normal(size=(3, 3, 256, 256)).astype(np.float32)
    for alone, together in zip(ours.run_network(batch[1:2]), ours.run_network(batch), strict=True):
        np.testing.assert_allclose(alone, together[1:2], rtol=0, atol=TOLERANCE)


def test_a_stream_that_is_left_half_way_leaves_the_detector_usable(shapes_onnx: Path) -> None:
    ours = detector(shapes_onnx, "openvino")
    stream = ours.stream(PHOTOS * 2)
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(ours(PHOTOS[0]).scores, first.scores)


def test_a_stream_whose_detector_was_closed_says_so(shapes_onnx: Path) -> None:
    ours = Detector(shapes_onnx, device="cpu", runtime="openvino", threads=1)
    stream = ours.stream(PHOTOS)
    next(stream)
    ours.close()
    with pytest.raises(EngineError, match="broken off: the Detector has been closed"):
        next(stream)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process is forked here")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_to_open_its_own_and_does_not_wait_for_ever(shapes_onnx: Path) -> None:
    ours = detector(shapes_onnx, "openvino")
    batch = np.zeros((1, 3, 256, 256), np.float32)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        try:
            ours.run_network(batch)
        except EngineError as error:
            os._exit(7 if "Open a Detector in each process" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_batch_is_run_in_the_file_that_was_opened_whatever_became_of_it(
    shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(shapes_onnx, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    ours = Detector("m.onnx", device="cpu", runtime="openvino", threads=1)
    batch = np.random.default_rng(0).normal(size=(2, 3, 256, 256)).astype(np.float32)
    expected = ours.run_network(batch[:1])
    Path("m.onnx").write_bytes(b"another")
    np.testing.assert_allclose(ours.run_network(batch)[0][:1], expected[0], rtol=0, atol=TOLERANCE)


def test_it_opens_again_in_another_process_in_the_same_runtime(shapes_onnx: Path) -> None:
    again = pickle.loads(pickle.dumps(detector(shapes_onnx, "openvino")))
    assert again.description == detector(shapes_onnx, "openvino").description
    again.close()
    with pytest.raises(EngineError, match="is closed"):
        again(PHOTOS[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"runtime": "tvm"}, OptionError, "runtime must be one of auto, onnxruntime, openvino, found 'tvm'"),
        ({"runtime": "openvino", "device": "cuda:0"}, OptionError, "no GPU of NVIDIA's, found device 'cuda:0'"),
        ({"runtime": "onnxruntime", "device": "openvino:GPU"}, OptionError, "is one of OpenVINO's"),
        ({"runtime": "onnxruntime", "cpu_precision": "bf16"}, OptionError, "onnxruntime has no bfloat16"),
        ({"cpu_precision": "f16"}, OptionError, "cpu_precision must be one of f32, bf16, found 'f16'"),
        ({"device": "openvino:TPU"}, DeviceError, r"OpenVINO has no device TPU here; it has .*CPU"),
        ({"device": "openvino:CPU:1"}, DeviceError, "on its device CPU:1: .*--device cpu"),
        ({"device": "openvino:"}, DeviceError, 'found .openvino:.. "openvino:NAME" is another device'),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(
    arguments: dict[str, Any], error: type[YolactDeployError], message: str, shapes_onnx: Path
) -> None:
    with pytest.raises(error, match=message):
        Detector(shapes_onnx, **arguments)


def test_a_file_with_an_operator_that_openvino_lacks_is_refused_by_its_name(shapes_onnx: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(shapes_onnx)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ArtifactError, match=r"odd.onnx: .*NoSuchOperator.*onnxruntime"):
        Detector(tmp_path / "odd.onnx", device="cpu", runtime="openvino")
