from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from exporters.onnx_edit import open_session, read_spec, with_outputs
from exporters.precision.calibration import Calibration, calibrate
from exporters.precision.quantize import tensors_to_calibrate
from exporters.precision.ranges import CALIBRATORS, Histogram, observe
from tests.unit.precision.conftest import CALIBRATION_IMAGES
from tests.unit.precision.graph_index import GraphIndex
from yolact_deploy.errors import CalibrationError
from yolact_deploy.reference.images import preprocess, read_image
from yolact_deploy.spec import ModelSpec


@pytest.fixture
def tiny(tiny_onnx: Path) -> onnx.ModelProto:
    return onnx.load(str(tiny_onnx))


@pytest.fixture
def spec(tiny: onnx.ModelProto) -> ModelSpec:
    return read_spec(tiny, "tiny")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), random.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    return sorted(folder.iterdir())


def test_there_are_128_calibration_images() -> None:
    assert len(CALIBRATION_IMAGES) == 128


@pytest.mark.slow
def test_what_is_streamed_equals_what_all_tensors_at_once_give(shapes: onnx.ModelProto, shapes_spec: ModelSpec) -> None:
    names = ["image", "backbone.maxpool/MaxPool", "fpn/Add", "prediction_layers.0.upfeature.1/Relu_4"]
    images = CALIBRATION_IMAGES[:3]
    streamed = observe(shapes, shapes_spec, images, histograms=names)
    batch = preprocess([read_image(path) for path in images], shapes_spec)
    found = dict(
        zip(names[1:], open_session(with_outputs(shapes, names[1:])).run(names[1:], {"image": batch}), strict=True)
    )
    for name, values in {**found, "image": batch}.items():
        whole = Histogram()
        whole.add(values)
        ours = streamed.histograms[name]
        assert ours.total == values.size
        # Another batch size may round a sum differently, and move a value across a bin's border: two counts change.
        assert np.abs(ours.counts - whole.counts).sum() <= 2 + 1e-3 * values.size
        assert ours.maximum == pytest.approx(whole.maximum, rel=1e-5)
        assert streamed.absmax[name] == pytest.approx(whole.maximum, rel=1e-5)


def test_fetching_few_bytes_at_a_time_changes_nothing(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]
) -> None:
    names = tensors_to_calibrate(tiny)
    whole = observe(tiny, spec, photos, histograms=names)
    parts = observe(tiny, spec, photos, histograms=names, max_fetched_bytes=1)
    assert whole.absmax == parts.absmax
    for name in names:
        assert np.array_equal(whole.histograms[name].counts, parts.histograms[name].counts)


def test_largest_magnitudes_are_known_of_every_tensor_of_floats(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]
) -> None:
    seen = observe(tiny, spec, photos)
    made = [name for node in tiny.graph.node for name in node.output]
    assert set(seen.absmax) == {"image", *made}
    assert all(value > 0 for value in seen.absmax.values())


def test_images_are_prepared_as_the_runtime_does(tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]) -> None:
    largest = max(float(np.abs(preprocess([read_image(path)], spec)).max()) for path in photos)
    assert calibrate(tiny, spec, photos, calibrator="max").ranges["image"] == largest


def test_every_calibrator_gives_every_range(tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]) -> None:
    for calibrator in CALIBRATORS:
        found = calibrate(tiny, spec, photos, calibrator=calibrator)
        assert set(found.ranges) == set(tensors_to_calibrate(tiny))
        assert all(0 < value <= found.absmax[name] * (1 + 1e-6) for name, value in found.ranges.items())
        assert found.warnings == ()


def test_no_images_are_an_error(tiny: onnx.ModelProto, spec: ModelSpec) -> None:
    with pytest.raises(CalibrationError, match=r"needs calibration images and none were given.*--calib DIR"):
        calibrate(tiny, spec, [])


def test_fewer_than_8_images_warn_and_say_why(tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]) -> None:
    (warning,) = calibrate(tiny, spec, photos[:7]).warnings
    assert warning.startswith("only 7 calibration images:")
    assert "saturates" in warning


def _of_one_colour(folder: Path, count: int) -> list[Path]:
    """Dark as a covered lens sees it."""
    paths = [folder / f"dark{number}.png" for number in range(count)]
    noise = np.random.default_rng(1)
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), noise.integers(number, number + 4, (40, 30, 3), dtype=np.uint8))
    return paths


def test_images_of_one_colour_alone_are_refused_and_leave_no_cache(
    tiny: onnx.ModelProto, spec: ModelSpec, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="all 10 images are of one colour each, and show no object"):
        calibrate(tiny, spec, _of_one_colour(tmp_path, 10), cache=tmp_path / "cache.json")
    assert not (tmp_path / "cache.json").exists()


def test_copies_of_one_image_count_once_whatever_their_file_is(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], tmp_path: Path
) -> None:
    small = cv2.resize(read_image(photos[0]), (spec.input_size, spec.input_size), interpolation=cv2.INTER_NEAREST)
    copies = [tmp_path / f"copy{number}{suffix}" for number in range(5) for suffix in (".png", ".bmp")]
    for path in copies:
        cv2.imwrite(str(path), small)
    cv2.imwrite(str(tmp_path / "large.png"), np.repeat(np.repeat(small, 3, 0), 3, 1))  # the same once resized
    cache = tmp_path / "cache.json"
    found = calibrate(tiny, spec, [*copies, tmp_path / "large.png", *_of_one_colour(tmp_path, 2)], cache=cache)
    assert (found.images, found.constant, found.distinct) == (13, 2, 1)
    (warning,) = found.warnings
    assert warning.startswith(
        "only 1 calibration image of the 13 (2 of one colour, without an object and 10 the same as another once resized):"
    )
    assert "saturates" in warning
    assert calibrate(tiny, spec, [], cache=cache).warnings == found.warnings


def test_a_few_images_that_tell_nothing_are_counted_among_many_that_do(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], tmp_path: Path
) -> None:
    (warning,) = calibrate(tiny, spec, [*photos, photos[0], *_of_one_colour(tmp_path, 1)]).warnings
    assert warning.startswith("8 calibration images of the 10 (1 of one colour")


def test_a_cache_of_before_images_were_told_apart_is_read(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.json"
    calibrate(tiny, spec, photos, cache=cache)
    content = json.loads(cache.read_text())
    del content["distinct_images"], content["constant_images"]
    cache.write_text(json.dumps(content))
    found = calibrate(tiny, spec, photos, cache=cache)
    assert (found.cache, found.images, found.distinct, found.warnings) == ("reused", 8, None, ())


def test_corrupt_images_are_skipped_and_named(tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]) -> None:
    photos[2].write_bytes(b"")
    photos[5].write_bytes(photos[6].read_bytes()[:100])
    found = calibrate(tiny, spec, photos)
    assert found.images == 6
    assert len(found.skipped) == 2
    assert str(photos[2]) in found.skipped[0]
    assert str(photos[5]) in found.skipped[1]
    assert len(found.warnings) == 2  # few images, and which were skipped
    assert str(photos[2]) in found.warnings[1]


def test_nothing_but_corrupt_images_is_an_error(tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]) -> None:
    for path in photos:
        path.write_bytes(b"<html>")
    with pytest.raises(
        CalibrationError, match=r"none of the 8 images can be used. The first: can't read the image .*0\.png"
    ):
        calibrate(tiny, spec, photos)


def test_a_model_that_gives_nan_is_named_with_its_tensor(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path]
) -> None:
    weight = GraphIndex.of(tiny).weights["protonet.0.weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    with pytest.raises(CalibrationError, match=r"the tensor protonet\.1/Relu .* is not finite on .*0\.png"):
        calibrate(tiny, spec, photos)


def test_only_what_is_not_finite_is_reported_as_such(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_histogram: Histogram, _values: object) -> None:
        raise ValueError("a fault of another kind")

    monkeypatch.setattr(Histogram, "add", fail)
    with pytest.raises(ValueError, match="a fault of another kind"):
        calibrate(tiny, spec, photos)


def test_a_cache_is_written_and_reused_without_looking_at_an_image(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.json"
    looked: list[int] = []
    first = calibrate(tiny, spec, photos, cache=cache, progress=lambda *_: looked.append(1))
    assert looked
    looked.clear()
    again = calibrate(tiny, spec, photos, cache=cache, progress=lambda *_: looked.append(1))
    assert not looked
    assert (first.cache, again.cache) == ("written", "reused")
    assert (again.ranges, again.absmax, again.images) == (first.ranges, first.absmax, first.images)
    # Of the same images, wherever they are and in whatever order; and of any, when none are at hand.
    assert calibrate(tiny, spec, photos[::-1], cache=cache).cache == "reused"
    assert calibrate(tiny, spec, [], cache=cache).ranges == first.ranges


def test_a_value_that_is_not_finite_survives_the_cache(
    tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], tmp_path: Path
) -> None:
    weight = GraphIndex.of(tiny).weights["protonet.2.weight"]  # nothing is quantized behind it
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, 3e38, np.float32), weight.name))
    cache = tmp_path / "cache.json"
    assert calibrate(tiny, spec, photos, cache=cache).absmax["proto"] == math.inf
    assert calibrate(tiny, spec, photos, cache=cache).absmax["proto"] == math.inf
    json.loads(cache.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def _other_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weight = copy.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    return copy


Refused = Callable[[onnx.ModelProto, ModelSpec, list[Path], Path], Calibration]


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        pytest.param(
            lambda model, spec, images, cache: calibrate(_other_weights(model), spec, images, cache=cache),
            "for another model",
            id="model",
        ),
        pytest.param(
            lambda model, spec, images, cache: calibrate(model, _brighter(spec), images, cache=cache),
            "with another spec",
            id="spec",
        ),
        pytest.param(
            lambda model, spec, images, cache: calibrate(model, spec, images[1:], cache=cache),
            r"from other images \(8 of them\)",
            id="images",
        ),
        pytest.param(
            lambda model, spec, images, cache: calibrate(model, spec, images, calibrator="mse", cache=cache),
            "by the calibrator 'entropy', not 'mse'",
            id="calibrator",
        ),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_reason_and_left_alone(
    attempt: Refused, reason: str, tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.json"
    calibrate(tiny, spec, photos, cache=cache)
    before = cache.read_bytes()
    with pytest.raises(CalibrationError, match=rf"cache\.json was made .*{reason}.* Delete it"):
        attempt(tiny, spec, photos, cache)
    assert cache.read_bytes() == before


def _brighter(spec: ModelSpec) -> ModelSpec:
    return ModelSpec.from_dict({**spec.to_dict(), "name": "other"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda _: "not json", "it is not JSON"),
        (lambda _: "[]", "holds no JSON object"),
        (lambda content: json.dumps({**content, "schema": 99}), "has schema 99"),
        (lambda content: json.dumps({**content, "tensors": {"image": {"range": -1.0}}}), "malformed"),
        (lambda content: json.dumps({**content, "tensors": None}), "malformed"),
    ],
)
def test_a_damaged_cache_is_refused(
    edit: Callable[[Any], str], message: str, tiny: onnx.ModelProto, spec: ModelSpec, photos: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.json"
    calibrate(tiny, spec, photos, cache=cache)
    cache.write_text(edit(json.loads(cache.read_text())))
    with pytest.raises(CalibrationError, match=message):
        calibrate(tiny, spec, photos, cache=cache)
