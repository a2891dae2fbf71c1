"""The whole GPU path of `Detector`, on the emulated GPU."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.subjects import describe
from tests.emulator.backend import EmulatedGpu
from tests.emulator.driver import EmulatedDriver
from tests.goldens import SHAPES
from tests.unit.gpu_path.gpu_expectations import PHOTOS, PIXELS, assert_identical
from yolact_deploy import Detector
from yolact_deploy.errors import EngineError, OptionError
from yolact_deploy.evaluation import evaluate
from yolact_deploy.file_detection import detect_files
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.runtime.detector import detector_for_many
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import NmsMode

Emulate = Callable[..., EmulatedGpu]


@pytest.mark.slow
@pytest.mark.parametrize("in_stream", [True, False], ids=["capturable", "not-capturable"])
@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "no-graph"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_detections_are_those_of_the_cpu(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector, in_stream: bool, cuda_graph: bool, batch_size: int
) -> None:
    gpu = emulated(in_stream=in_stream)
    detector = gpu.open(shapes_onnx, batch_size=batch_size, cuda_graph=cuda_graph)
    expected = on_cpu(PHOTOS[:3])  # each of another size
    for _ in range(3):  # step by step, captured, replayed
        for found, reference in zip(detector(PHOTOS[:3]), expected, strict=True):
            assert_identical(found, reference)
    graphs_of_a_frame = 1 if in_stream else 2
    frames_in_graphs = 2 * 3 // batch_size
    assert gpu.driver.graph_launches == (graphs_of_a_frame * frames_in_graphs if cuda_graph else 0)
    assert detector.notes == ()


def test_a_driver_without_graphs_does_without(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated(EmulatedDriver(captures_cuda_graphs=False), in_stream=True)
    detector = gpu.open(shapes_onnx)
    for _ in range(2):
        assert_identical(detector(PHOTOS[0]), on_cpu(PHOTOS[0]))


@pytest.mark.slow
def test_a_graph_that_cannot_be_captured_is_a_note_and_no_error(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector
) -> None:
    gpu = emulated(in_stream=True)
    gpu.driver.fail_capture = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    detector = gpu.open(shapes_onnx)
    for _ in range(5):
        assert_identical(detector(PHOTOS[0]), on_cpu(PHOTOS[0]))
    (note,) = detector.notes
    assert "3 times: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in note


@pytest.mark.slow
def test_a_capture_that_other_work_broke_is_tried_again(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    for fail in (None, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", None, None):
        gpu.driver.fail_capture = fail
        assert_identical(detector(PHOTOS[0]), on_cpu(PHOTOS[0]))
    assert detector.notes == ()
    assert gpu.driver.graph_launches == 2  # of the last two frames


def test_nothing_is_collected_while_a_graph_is_captured(
    emulated: Emulate, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    enabled = []
    end = gpu.driver.end_capture

    def watched(stream: int) -> int:
        enabled.append(gc.isenabled())
        return end(stream)

    monkeypatch.setattr(gpu.driver, "end_capture", watched)
    for _ in range(2):
        detector(PHOTOS[0])
    assert enabled == [False]
    assert gc.isenabled()


@pytest.mark.slow
def test_where_memory_is_short_one_batch_is_in_flight(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    measured = emulated(in_stream=True)
    with measured.open(shapes_onnx) as detector:
        detector(PHOTOS[0])
        needed = measured.driver.device_bytes
    gpu = emulated(EmulatedDriver(memory_bytes=int(needed * 1.5)), in_stream=True)
    detector = gpu.open(shapes_onnx)
    for found, expected in zip(detector.stream([PHOTOS[0]] * 4), [on_cpu(PHOTOS[0])] * 4, strict=True):
        assert_identical(found, expected)
    (note,) = detector.notes
    assert "no memory for a second one" in note
    detector.close()
    assert gpu.driver.left_over == {}


@pytest.mark.slow
@pytest.mark.parametrize("nms", ["fast", "cross_class"])
@pytest.mark.parametrize("masks", ["bits", "rle", "dense"])
def test_masks_cross_in_any_form(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector, nms: NmsMode, masks: MaskForm
) -> None:
    gpu = emulated()
    reference = on_cpu if nms == "fast" else Detector(shapes_onnx, device="cpu", threads=1, nms=nms)
    detector = gpu.open(shapes_onnx, batch_size=3, nms=nms)
    for found, expected in zip(detector(PHOTOS[:3], masks=masks), reference(PHOTOS[:3]), strict=True):
        assert_identical(found, expected)


def test_an_unknown_form_of_masks_is_refused(on_cpu: Detector) -> None:
    calls: list[Callable[..., object]] = [on_cpu, on_cpu.stream, on_cpu.timed]
    for call in calls:
        with pytest.raises(ValueError, match="masks must be one of bits, rle, dense, found 'bytes'"):
            call([PHOTOS[0]], masks="bytes")


@pytest.mark.slow
def test_only_the_masks_that_were_found_cross_to_the_host(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    pixels = PIXELS[0].shape[0] * PIXELS[0].shape[1]
    crossed = {}
    for threshold in (0.0, 0.3, 1.0):
        detector = gpu.open(shapes_onnx)
        before = gpu.driver.copied["to_host"]
        found = detector(PIXELS[0], score_threshold=threshold)
        windows = pickle.loads(pickle.dumps(found)).mask_source.words.nbytes  # which has nothing but them
        crossed[len(found)] = gpu.driver.copied["to_host"] - before, windows
    fixed, _ = crossed.pop(0)
    assert fixed < 32 * 1024
    assert crossed
    for count, (nbytes, windows) in crossed.items():
        assert nbytes - fixed == windows < count * pixels / 8


@pytest.mark.slow
def test_results_are_not_touched_by_the_next_call(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated()
    detector = gpu.open(shapes_onnx)
    first = detector(PIXELS[0])
    for image in PIXELS[1:]:
        detector(image)
    detector.close()
    assert_identical(first, on_cpu(PIXELS[0]))


@pytest.mark.slow
def test_score_threshold_keeps_what_the_cpu_keeps(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated(in_stream=True)
    detector = gpu.open(shapes_onnx)
    scores = on_cpu(PHOTOS[0]).scores
    exactly = float(scores[len(scores) // 2])
    for threshold in (exactly, 0.3, exactly):
        found = detector(PHOTOS[0], score_threshold=threshold)
        assert_identical(found, on_cpu(PHOTOS[0], score_threshold=threshold))
        assert 0 < len(found) < len(scores)


def test_an_image_without_detections(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated()
    forms: tuple[MaskForm, ...] = ("bits", "rle", "dense")
    detector = gpu.open(shapes_onnx)
    for form in forms:
        found = detector(np.zeros((33, 21, 3), np.uint8), score_threshold=0.9999, masks=form)
        assert (len(found), found.class_names, found.rle(), found.to_coco(1)) == (0, [], [], [])
        assert found.masks.shape == (0, 33, 21)


@pytest.mark.slow
def test_rgb_and_gray_images_are_read_as_they_are(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated()
    detector = gpu.open(shapes_onnx)
    rgb = np.ascontiguousarray(PIXELS[1][..., ::-1])
    assert_identical(detector(rgb, channel_order="rgb"), on_cpu(PIXELS[1]))
    gray = PIXELS[1][..., 1]
    assert_identical(detector(gray), on_cpu(gray))
    assert_identical(detector(PIXELS[1][::2, ::-2]), on_cpu(PIXELS[1][::2, ::-2]))


@pytest.mark.slow
def test_a_network_in_half_precision_is_read_as_the_reference_reads_it(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(half=True)
    detector = gpu.open(shapes_onnx)
    for image in PIXELS[:2]:
        (raw,) = detector.suppress(detector.run_network(detector.preprocess([image])))
        assert_identical(detector(image), detector.assemble(raw, (image.shape[0], image.shape[1])))


@pytest.mark.slow
def test_heads_that_hold_nan_and_infinity_are_dropped_as_on_the_cpu(emulated: Emulate, shapes_onnx: Path) -> None:
    def spoil(heads: HeadTensors) -> HeadTensors:
        heads.conf[:, ::3, 2] = np.nan
        heads.loc[:, 1::7] = np.inf
        heads.loc[:, 2::11] = np.nan
        return heads

    gpu = emulated(alter=spoil)
    detector = gpu.open(shapes_onnx)
    (raw,) = detector.suppress(detector.run_network(detector.preprocess([PIXELS[0]])))
    found = detector(PIXELS[0])
    assert len(found) > 0
    assert_identical(found, detector.assemble(raw, found.image_hw))


@pytest.mark.slow
def test_a_batch_is_never_larger_than_the_network_takes(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated(max_batch=2)
    detector = gpu.open(shapes_onnx, batch_size=8)
    for found, expected in zip(detector(PHOTOS[:3]), on_cpu(PHOTOS[:3]), strict=True):
        assert_identical(found, expected)
    assert gpu.networks[0].batches == [2, 1]


@pytest.mark.slow
def test_files_and_evaluation_go_through_a_gpu_in_batches(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector, tmp_path: Path
) -> None:
    gpu = emulated()
    with detector_for_many(shapes_onnx, device="auto", threads=1, nms=None, gpu=gpu.backend) as (detector, batch_size):
        assert detector.on_gpu
        assert batch_size == 4
    arguments = (SHAPES / "val", SHAPES / "val/instances.json")
    on_gpu = gpu.open(shapes_onnx, batch_size=4)
    found = evaluate(on_gpu, *arguments, limit=6)
    assert gpu.networks[1].batches == [4, 2]
    assert {**found, "backend": ""} == {**evaluate(on_cpu, *arguments, limit=6), "backend": ""}
    detect_files(on_gpu, PHOTOS[:3], coco=tmp_path / "gpu.json")
    assert gpu.networks[1].batches == [4, 2, 3]
    detect_files(on_cpu, PHOTOS[:3], coco=tmp_path / "cpu.json")
    assert (tmp_path / "gpu.json").read_text() == (tmp_path / "cpu.json").read_text()


def test_traditional_nms_runs_on_the_host_and_says_so(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated()
    detector = gpu.open(shapes_onnx, nms="traditional")
    expected = Detector(shapes_onnx, device="cpu", threads=1, nms="traditional")(PHOTOS[0])
    assert_identical(detector(PHOTOS[0]), expected)
    assert "the rest on the CPU" in detector.description
    assert "Traditional NMS" in detector.notes[0]


@pytest.mark.slow
def test_derived_detections_keep_their_masks(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated()
    found, expected = gpu.open(shapes_onnx)(PIXELS[0]), on_cpu(PIXELS[0])
    rows = np.array([4, 0, 2])
    assert_identical(found.take(rows), expected.take(rows))
    assert_identical(found.top(3), expected.top(3))
    assert found.to_coco(7) == expected.to_coco(7)
    for region, row in zip(found.iter_regions(), expected.masks, strict=True):
        whole = np.zeros(found.image_hw, bool)
        height, width = region.window.shape
        whole[region.row : region.row + height, region.column : region.column + width] = region.window
        np.testing.assert_array_equal(whole, row)
    np.testing.assert_array_equal(found.to_supervision().mask, expected.masks)
    assert_identical(pickle.loads(pickle.dumps(found)), expected)


def test_without_its_masks_a_detection_of_a_gpu_cannot_be_assembled(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated()
    found = gpu.open(shapes_onnx)(PIXELS[0])
    with pytest.raises(ValueError, match="prototypes"):
        dataclasses.replace(found, mask_source=None)


def test_stages_are_timed_on_the_device(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated(EmulatedDriver(host_takes_time=True), in_stream=True)
    detector = gpu.open(shapes_onnx)
    (found,), stages = detector.timed([PHOTOS[0]])
    assert_identical(found, on_cpu(PHOTOS[0]))
    # pieces of work, and nothing of the host's calls: the last stage copies the detections, and then their masks
    assert stages == {
        "host_to_device": 1,
        "preprocess": 1,
        "network": 1,
        "detect": 3,
        "masks": 1,
        "device_to_host": 2,
    }
    with pytest.raises(EngineError, match="one by one"):
        on_cpu.timed([PHOTOS[0]])


def test_tf32_is_allowed_by_name_and_on_gpus_that_have_it(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated()
    for precision in ("tf32", "fp32"):
        with gpu.open(shapes_onnx, gpu_precision=precision) as detector:
            assert gpu.allows_tf32 is (precision == "tf32")
            assert describe(detector)["precision"] == precision
    gpu.driver.device = dataclasses.replace(gpu.driver.device, compute_capability=(7, 5))
    with pytest.raises(OptionError, match=r"a GPU since Ampere \(compute capability 8\.0\).* has 7\.5"):
        gpu.open(shapes_onnx, gpu_precision="tf32")


def test_a_closed_detector_says_so(emulated: Emulate, shapes_onnx: Path, on_cpu: Detector) -> None:
    gpu = emulated()
    with gpu.open(shapes_onnx) as detector:
        detector(PHOTOS[0])
    assert gpu.driver.left_over == {}
    detector.close()
    with pytest.raises(EngineError, match="is closed"):
        detector(PHOTOS[0])
    assert_identical(copy.copy(detector)(PHOTOS[0]), on_cpu(PHOTOS[0]))
