from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.checkpoints.checkpoint import LoadedCheckpoint
from exporters.network.yolact import Yolact
from exporters.parity import ImageParity, ParityReport, TensorParity, builtin_images, check_parity
from tests import goldens
from yolact_deploy.reference.images import read_image


@pytest.fixture(scope="module")
def photos() -> list[tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]:
    paths = [goldens.SHAPES / "val" / f"val_public_{number:04d}.jpg" for number in (0, 3)]
    return [(path.name, read_image(path)) for path in paths]


def _perturbed(source: Path, target: Path, weight: str, factor: float) -> Path:
    model = onnx.load(str(source))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    onnx.save(model, str(target))
    return target


def test_a_faithful_export_passes_on_real_images(
    shapes: LoadedCheckpoint, shapes_model: Yolact, shapes_onnx: Path, photos: list[tuple[str, np.ndarray]]
) -> None:
    report = check_parity(shapes_model, shapes_onnx, shapes.spec, images=photos)
    assert report.passed
    assert report.failures() == []
    assert set(report.max_abs_error) == {"loc", "conf", "mask_coeff", "proto"}
    assert max(report.max_abs_error.values()) < 1e-4
    assert [image.image for image in report.images] == ["val_public_0000.jpg", "val_public_0003.jpg"]
    assert all(image.detections > 0 and image.missing == image.extra == 0 for image in report.images)
    assert [output.name for output in report.batch] == ["loc", "conf", "mask_coeff", "proto"]


def test_the_builtin_images_are_deterministic_and_find_something(
    shapes: LoadedCheckpoint, shapes_model: Yolact, shapes_onnx: Path
) -> None:
    for (name, first), (_, second) in zip(builtin_images(), builtin_images(), strict=True):
        assert np.array_equal(first, second), name
        assert first.dtype == np.uint8
    report = check_parity(shapes_model, shapes_onnx, shapes.spec, dynamic_batch=False)
    assert report.passed
    assert report.batch == ()
    assert sum(image.detections for image in report.images) > 0


@pytest.mark.parametrize(
    ("weight", "factor", "output"),
    [
        ("prediction_layers.0.bbox_layer.weight", 1.001, "loc"),
        ("prediction_layers.0.conf_layer.bias", 1.001, "conf"),
        ("prediction_layers.0.mask_layer.weight", 1.001, "mask_coeff"),
        ("proto_net.10.weight", 1.001, "proto"),
        ("backbone.layers.3.0.conv3.weight", 1.01, "loc"),
    ],
)
def test_a_weight_that_is_off_by_a_thousandth_fails(
    shapes: LoadedCheckpoint,
    shapes_model: Yolact,
    shapes_onnx: Path,
    photos: list[tuple[str, np.ndarray]],
    tmp_path: Path,
    weight: str,
    factor: float,
    output: str,
) -> None:
    wrong = _perturbed(shapes_onnx, tmp_path / "wrong.onnx", weight, factor)
    report = check_parity(shapes_model, wrong, shapes.spec, images=photos[:1], dynamic_batch=False)
    assert not report.passed
    assert any(f"val_public_0000.jpg: {output} differs by up to" in failure for failure in report.failures())


def test_lost_detections_are_counted(
    shapes: LoadedCheckpoint,
    shapes_model: Yolact,
    shapes_onnx: Path,
    photos: list[tuple[str, np.ndarray]],
    tmp_path: Path,
) -> None:
    wrong = _perturbed(shapes_onnx, tmp_path / "wrong.onnx", "prediction_layers.0.conf_layer.weight", 0.5)
    (image,) = check_parity(shapes_model, wrong, shapes.spec, images=photos[:1], dynamic_batch=False).images
    assert image.missing + image.extra > 0


GOOD_TENSOR = TensorParity("loc", 1e-5, 1e-4, 1.0)
GOOD_IMAGE = ImageParity("a.jpg", (GOOD_TENSOR,), 50, 1, 0, 1.0, 0.99, 0.5)


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (
            {"outputs": (dataclasses.replace(GOOD_TENSOR, max_abs_error=1.1e-4),)},
            "a.jpg: loc differs by up to 1.10e-04",
        ),
        ({"outputs": (dataclasses.replace(GOOD_TENSOR, max_abs_error=float("nan")),)}, "loc differs by up to nan"),
        ({"missing": 2}, "a.jpg: 2 detections are missing and 0 are new in the ONNX, 50 are common"),
        ({"extra": 1}, "1 detections are missing and 1 are new"),
        ({"detections": 49}, "1 detections are missing and 0 are new"),
        ({"max_box_difference_px": 2.0}, "a box differs by 2 pixels"),
        ({"mean_mask_iou": 0.98}, "the masks' mean IoU is 0.980"),
    ],
)
def test_each_tolerance_fails_alone_and_is_named(change: dict[str, object], failure: str) -> None:
    assert ParityReport((GOOD_IMAGE,), (GOOD_TENSOR,), "x").passed
    report = ParityReport((GOOD_IMAGE, dataclasses.replace(GOOD_IMAGE, **change)), (), "x")  # type: ignore[arg-type]
    assert not report.passed
    assert len(report.failures()) == 1
    assert failure in report.failures()[0]


def test_a_batch_that_differs_from_its_images_fails() -> None:
    report = ParityReport((GOOD_IMAGE,), (dataclasses.replace(GOOD_TENSOR, max_abs_error=1.0),), "x")
    assert not report.passed
    assert "batch of 2 against single images: loc differs" in report.failures()[0]
