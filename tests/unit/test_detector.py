from __future__ import annotations

import dataclasses
import hashlib
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnxruntime
import pytest

from exporters import export
from tests.goldens import SHAPES, SHAPES_CHECKPOINT, SHAPES_SPEC
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from yolact_deploy import Detections, Detector
from yolact_deploy.artifacts.names import SPEC_METADATA_KEY
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.artifacts.plan_file import BatchRange, Sidecar, sidecar_path, write_sidecar
from yolact_deploy.errors import (
    ArtifactError,
    DeviceError,
    DeviceMemoryError,
    EngineError,
    ImageError,
    MissingDependencyError,
    OptionError,
    PlanMismatchError,
    SpecError,
)
from yolact_deploy.reference.images import read_image
from yolact_deploy.runtime.gpu.pipeline import REAL_GPU
from yolact_deploy.spec import ModelSpec

PHOTOS = [SHAPES / "val" / f"val_public_000{i}.jpg" for i in range(4)]


@pytest.fixture(scope="module")
def detector(shapes_onnx: Path) -> Detector:
    return Detector(shapes_onnx, device="cpu", threads=1)


def assert_same(a: Detections, b: Detections) -> None:
    np.testing.assert_array_equal(a.raw.prior_idx, b.raw.prior_idx)
    np.testing.assert_array_equal(a.class_ids, b.class_ids)
    np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
    assert np.count_nonzero(a.masks != b.masks) <= len(a)


def test_what_a_detection_holds(detector: Detector) -> None:
    image = read_image(PHOTOS[0])
    found = detector(image)
    count, (height, width) = len(found), image.shape[:2]
    assert count > 5
    assert found.boxes_xyxy.dtype == found.scores.dtype == np.float32
    assert found.boxes_xyxy.shape == found.boxes_relative.shape == (count, 4)
    np.testing.assert_array_equal(found.boxes_xyxy, np.trunc(found.boxes_xyxy))
    assert (np.diff(found.scores) <= 0).all()
    assert found.class_ids.dtype == np.int64
    assert set(found.class_names) <= set(detector.spec.class_names)
    assert found.masks.dtype == np.bool_
    assert found.masks.shape == (count, height, width)
    assert found.masks is found.masks
    assert len(found.rle()) == count


def test_a_path_an_array_and_a_list_give_the_same(detector: Detector) -> None:
    by_array = detector(read_image(PHOTOS[0]))
    assert_same(detector(PHOTOS[0]), by_array)
    assert_same(detector(str(PHOTOS[0])), by_array)
    first, second = detector(PHOTOS[:2])
    assert_same(first, by_array)
    assert second.image_hw == read_image(PHOTOS[1]).shape[:2]
    assert detector([]) == []


def test_rgb_arrays_are_told_by_channel_order(detector: Detector) -> None:
    image = read_image(PHOTOS[0])
    assert_same(detector(image[..., ::-1], channel_order="rgb"), detector(image))


def test_batches_change_nothing(shapes_onnx: Path, detector: Detector) -> None:
    batched = Detector(shapes_onnx, device="cpu", threads=1, batch_size=3)(PHOTOS)
    for a, b in zip(batched, detector(PHOTOS), strict=True):
        assert_same(a, b)


def test_a_detector_pickles_as_its_arguments(detector: Detector) -> None:
    data = pickle.dumps(detector)
    assert len(data) < 1000
    assert_same(pickle.loads(data)(PHOTOS[0]), detector(PHOTOS[0]))


def test_a_closed_detector_holds_no_session(shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of onnxruntime that outlives its Detector keeps a GPU's memory, and may meet the end of the process."""
    sessions = []
    make = onnxruntime.InferenceSession

    def watched(*arguments: Any, **options: Any) -> Any:
        session = make(*arguments, **options)
        sessions.append(weakref.ref(session))
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    detector = Detector(shapes_onnx, device="cpu", runtime="onnxruntime", threads=1)
    detector(np.zeros((32, 32, 3), np.uint8))
    assert [session() is None for session in sessions] == [False]
    detector.close()
    assert [session() is None for session in sessions] == [True]
    with pytest.raises(EngineError, match="closed"):
        detector(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "it is of NVIDIA's GPUs, and device is 'cpu'"),
        ({"runtime": "openvino"}, "it is of NVIDIA's GPUs, and runtime is 'openvino'"),
        ({"device": "openvino:GPU"}, "and device is 'openvino:GPU'"),
        ({"device": "cuda:0", "gpu_precision": "bf16"}, "gpu_precision must be one of fp32, tf32, found 'bf16'"),
    ],
)
def test_tf32_is_refused_where_nothing_computes_in_it(options: dict[str, Any], message: str, shapes_onnx: Path) -> None:
    with pytest.raises(OptionError, match=message):
        Detector(shapes_onnx, **{"gpu_precision": "tf32", **options})


def test_tf32_is_refused_for_a_file_that_is_not_float32(shapes_onnx: Path) -> None:
    typed = dataclasses.replace(open_onnx(shapes_onnx), precision="int8")
    with pytest.raises(OptionError, match="is int8, and tf32 is a way to compute float32"):
        Detector(typed, device="cuda:0", gpu_precision="tf32")


def test_score_threshold_keeps_a_prefix(detector: Detector) -> None:
    everything, sure = detector(PHOTOS[0]), detector(PHOTOS[0], score_threshold=0.3)
    assert 0 < len(sure) < len(everything)
    assert sure.scores.min() > 0.3 >= everything.scores[len(sure)]
    np.testing.assert_array_equal(sure.masks, everything.masks[: len(sure)])


@pytest.mark.slow
def test_logits_and_softmax_exports_find_the_same(tmp_path: Path, detector: Detector) -> None:
    export(SHAPES_CHECKPOINT, tmp_path / "l.onnx", spec=SHAPES_SPEC, conf="logits", parity=False)
    logits = Detector(tmp_path / "l.onnx", device="cpu", threads=1)
    assert logits.spec.conf_activation == "logits"
    assert_same(logits(PHOTOS[0]), detector(PHOTOS[0]))


def test_a_batch_that_was_fixed_at_export_bounds_those_of_the_cpu(tmp_path: Path) -> None:
    onnx.save(make_model(TINY_SPEC, batch=1), str(tmp_path / "one.onnx"))
    images = [np.full((8, 8, 3), gray, np.uint8) for gray in (0, 90, 180)]
    found = Detector(tmp_path / "one.onnx", device="cpu", batch_size=4)(images)
    one_by_one = Detector(tmp_path / "one.onnx", device="cpu")
    for each, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(each.scores, one_by_one(image).scores)


@pytest.mark.parametrize("nms", ["cross_class", "traditional"])
def test_nms_can_be_chosen(shapes_onnx: Path, detector: Detector, nms: str) -> None:
    found = Detector(shapes_onnx, device="cpu", threads=1, nms=nms)(PHOTOS[0])  # type: ignore[arg-type]
    assert 0 < len(found) < len(detector(PHOTOS[0]))


def test_coco_entries_have_the_models_category_ids_and_no_empty_boxes(detector: Detector) -> None:
    found = detector(PHOTOS[0])
    inverted = found.boxes_xyxy.copy()
    inverted[0] = (50, 10, 50, 30)
    entries = dataclasses.replace(found, boxes_xyxy=inverted).to_coco(7)
    assert len(entries) == len(found) - 1
    assert {entry["category_id"] for entry in entries} <= set(detector.spec.category_ids)
    assert entries[0]["image_id"] == 7
    assert entries[0]["segmentation"] == found.rle()[1]
    x1, y1, x2, y2 = found.boxes_xyxy[1].tolist()
    assert entries[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]


def test_to_supervision_carries_everything(detector: Detector) -> None:
    found = detector(PHOTOS[0], score_threshold=0.15)
    shown = found.to_supervision()
    np.testing.assert_array_equal(shown.xyxy, found.boxes_xyxy)
    np.testing.assert_array_equal(shown.mask, found.masks)
    assert shown.data["class_name"].tolist() == found.class_names


def test_an_image_without_detections(detector: Detector) -> None:
    found = detector(np.zeros((33, 21, 3), np.uint8), score_threshold=0.9999)
    assert (len(found), found.class_names, found.rle(), found.to_coco(1)) == (0, [], [], [])
    assert found.masks.shape == (0, 33, 21)
    assert len(found.to_supervision()) == 0


def test_bad_images_are_refused_and_the_detector_goes_on(detector: Detector, tmp_path: Path) -> None:
    for bad in (np.zeros((0, 3, 3), np.uint8), np.zeros((4, 4, 3)), tmp_path / "none.jpg"):
        with pytest.raises(ImageError):
            detector(bad)
    with pytest.raises(ImageError, match=r"found NoneType \(what cv2.imread gives"):
        detector(None)  # type: ignore[call-overload]
    assert len(detector(PHOTOS[0]))


def test_artifacts_that_cannot_be_opened_are_refused_with_the_reason(shapes_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "half.onnx").write_bytes(shapes_onnx.read_bytes()[:50_000])
    (tmp_path / "a.engine").write_bytes(b"plan")
    for name, error, message in (
        ("none.onnx", ArtifactError, "does not exist"),
        ("half.onnx", ArtifactError, r"can't open .*half.onnx \(50000 bytes\)"),
        ("weights.pth", ArtifactError, "neither .onnx nor"),
        ("a.engine", PlanMismatchError, "a.engine.json is not beside it"),
    ):
        with pytest.raises(error, match=message):
            Detector(tmp_path / name)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1"])
def test_an_unknown_device_is_refused(shapes_onnx: Path, device: str) -> None:
    with pytest.raises(EngineError, match="device must be"):
        Detector(shapes_onnx, device=device)


def test_a_model_without_metadata_or_against_its_own_spec_is_refused(shapes_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(str(shapes_onnx))
    spec = next(prop for prop in model.metadata_props if prop.key == SPEC_METADATA_KEY)
    spec.value = spec.value.replace('"circle", ', "").replace("[3, 7,", "[7,")
    onnx.save(model, str(tmp_path / "five.onnx"))
    with pytest.raises(
        SpecError, match=r"five.onnx contradict.* conf is \[B, 4092, 7\], its spec makes it \[B, 4092, 6\]\. "
    ):
        Detector(tmp_path / "five.onnx")
    spec.value = "{"
    onnx.save(model, str(tmp_path / "torn.onnx"))
    with pytest.raises(SpecError, match=r"torn.onnx carries a spec that can't be used"):
        Detector(tmp_path / "torn.onnx")
    model.metadata_props.remove(spec)
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(SpecError, match=r"carries no 'yolact_deploy.spec' metadata.*yolact-deploy export"):
        Detector(tmp_path / "bare.onnx")


def test_a_gpu_that_does_not_start_is_no_silent_cpu(shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]  # as onnxruntime-gpu lists them without a driver
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    with pytest.raises(DeviceError, match=r"no NVIDIA driver|no GPU|CUDA provider did not start"):
        Detector(shapes_onnx, device="cuda:0")
    assert "(CPU)" in Detector(shapes_onnx, device="auto").description


def test_a_plan_runs_on_gpus_only(tmp_path: Path) -> None:
    plan = tmp_path / "model.engine"
    plan.write_bytes(b"plan")
    spec = ModelSpec.from_file(SHAPES_SPEC)
    sidecar = Sidecar(
        spec=spec,
        plan_sha256=hashlib.sha256(b"plan").hexdigest(),
        plan_bytes=4,
        runtime="tensorrt",
        runtime_version="10.3.0",
        targets=("sm90",),
        precision="fp32",
        batch=BatchRange(1, 1, 1),
        onnx_sha256="ab" * 32,
        onnx_name="model.onnx",
        io_tensors=(),
        created="2025-01-31T12:00:00+00:00",
        yolact_deploy_version="0.1.0",
    )
    write_sidecar(sidecar_path(plan), sidecar)
    with pytest.raises(DeviceError, match=r"plans run on GPUs only.*cuda:0.*\(model\.onnx\)"):
        Detector(plan, device="cpu")


def test_auto_says_why_it_took_the_cpu(shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: Exception) -> Callable[[object], None]:
        def check(artifact: object) -> None:
            raise error

        return check

    for error, described in (
        (DeviceError("no driver here"), False),
        (MissingDependencyError("cuda-bindings", extra="gpu", purpose="running on a GPU"), False),
        (SpecError("the kernels do not pad"), True),  # a GPU that is there, but not for this model: worth a word
    ):
        gpu = dataclasses.replace(REAL_GPU, check_network=refuse(error))
        detector = Detector(shapes_onnx, threads=1, gpu=gpu)
        assert "(CPU)" in detector.description
        assert (str(error) in detector.description) is described
        assert str(error) in detector.notes[0]
        assert detector.fallback == " ".join(str(error).split())
        assert detector.gpu_index is None
        with pytest.raises(type(error)):
            Detector(shapes_onnx, device="cuda:0", gpu=gpu)
    monkeypatch.setattr("yolact_deploy.runtime.opening.has_nvidia_driver", lambda: False)
    without = Detector(shapes_onnx, threads=1)
    assert (without.notes, without.fallback) == ((), "this machine has no NVIDIA driver.")
    with pytest.raises(DeviceError, match=r"no NVIDIA driver.*--device cpu") as refused:
        Detector(shapes_onnx, device="cuda:0")
    assert "pip" not in str(refused.value)  # the runtime that works is not what is wrong
    asked_for = Detector(shapes_onnx, device="cpu")
    assert (asked_for.notes, asked_for.fallback) == ((), None)


@pytest.mark.parametrize("error", [DeviceMemoryError("no room for 'proto'"), EngineError("the kernels do not compile")])
def test_auto_takes_no_cpu_for_a_gpu_on_which_the_work_fails(shapes_onnx: Path, error: EngineError) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    gpu = dataclasses.replace(REAL_GPU, check_network=lambda _: None, open_driver=fail)
    with pytest.raises(type(error), match=str(error)):
        Detector(shapes_onnx, gpu=gpu)
