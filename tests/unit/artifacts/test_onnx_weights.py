"""The digest of an ONNX's weights is of what they are, however a file holds them; and weights that are no numbers are found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from tests.unit.runtime.plus_plan import write_plus_onnx
from yolact_deploy import Detector
from yolact_deploy.artifacts.names import MASK_IOU_METADATA_KEY, WEIGHTS_SHA256_METADATA_KEY
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx, parse_onnx
from yolact_deploy.artifacts.open import inspect_onnx
from yolact_deploy.errors import ArtifactError
from yolact_deploy.reports.tables import inspect_tables


def _parsed(model: onnx.ModelProto) -> OnnxFile:
    return parse_onnx(model.SerializeToString(), "made.onnx")


def _digest(model: onnx.ModelProto) -> str:
    """By the definition, with the onnx package."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: str(tensor.name)):
        content = numpy_helper.to_array(tensor).tobytes()
        digest.update((json.dumps([tensor.name, tensor.data_type, list(tensor.dims), len(content)]) + "\n").encode())
        digest.update(content)
    return digest.hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_is_the_digest_of_the_definition(precision: str) -> None:
    model = make_model(TINY_SPEC, precision=precision)
    assert _parsed(model).weights.sha256 == _digest(model)
    assert _parsed(model).weights.non_finite == {}


def test_it_stays_however_a_file_holds_the_weights(tmp_path: Path) -> None:
    model = make_model(TINY_SPEC)
    expected = _parsed(model).weights.sha256
    onnx.save(model, str(tmp_path / "whole.onnx"))
    onnx.save(
        make_model(TINY_SPEC), str(tmp_path / "parts.onnx"), save_as_external_data=True, location="w", size_threshold=0
    )
    assert open_onnx(tmp_path / "parts.onnx").external
    typed = make_model(TINY_SPEC, metadata={"of": "another"})
    kept = list(typed.graph.initializer)[::-1]
    del typed.graph.initializer[:]
    for tensor in kept:
        values = numpy_helper.to_array(tensor).ravel()
        typed.graph.initializer.append(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values))
    assert not typed.graph.initializer[0].raw_data
    files = [open_onnx(tmp_path / "whole.onnx"), open_onnx(tmp_path / "parts.onnx"), _parsed(typed)]
    assert [file.weights.sha256 for file in files] == [expected] * 3


@pytest.mark.parametrize(
    "dtype",
    [
        *(TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8),
        *(TensorProto.INT32, TensorProto.INT64, TensorProto.UINT64, TensorProto.BOOL),
    ],
)
def test_every_type_has_one_digest_raw_and_typed(dtype: int) -> None:
    values = np.array([0, 1, 1, 0], np.float32)
    digests = set()
    for raw in (False, True):
        model = make_model(TINY_SPEC)
        if raw:
            content = values.astype(helper.tensor_dtype_to_np_dtype(dtype)).tobytes()
            model.graph.initializer.append(helper.make_tensor("more", dtype, [4], content, raw=True))
        else:
            model.graph.initializer.append(helper.make_tensor("more", dtype, [4], values))
        digests.add(_parsed(model).weights.sha256)
    assert len(digests) == 1


def test_another_name_shape_type_or_bit_is_another_digest(tmp_path: Path) -> None:
    def edited(**fields: object) -> str:
        model = make_model(TINY_SPEC)
        weight = model.graph.initializer[0]
        for name, value in fields.items():
            if name == "dims":
                weight.dims[:] = value
            else:
                setattr(weight, name, value)
        return _parsed(model).weights.sha256

    weight = make_model(TINY_SPEC).graph.initializer[0]
    flipped = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    changes: list[dict[str, object]] = [
        {},
        {"name": "other"},
        {"dims": [int(np.prod(weight.dims))]},
        {"data_type": TensorProto.INT32},
        {"raw_data": flipped},
    ]
    assert len({edited(**change) for change in changes}) == len(changes)
    plus = onnx.load(str(write_plus_onnx(tmp_path / "plus.onnx")))
    before = _parsed(plus).weights.sha256
    next(entry for entry in plus.metadata_props if entry.key == MASK_IOU_METADATA_KEY).value += "AAAA"
    assert _parsed(plus).weights.sha256 != before


def _write(folder: Path, *, told: str | None, weight: float | None = None) -> Path:
    """The tiny network with the digest of its weights (or another one) told, and then with a weight changed."""
    model = make_model(TINY_SPEC)
    digest = _digest(model) if told == "its own" else told
    model = make_model(TINY_SPEC, metadata={} if digest is None else {WEIGHTS_SHA256_METADATA_KEY: digest})
    if weight is not None:
        tensor = model.graph.initializer[0]
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] = weight
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = folder / "tiny.onnx"
    onnx.save(model, str(path))
    return path


def test_a_file_whose_weights_were_changed_says_so_and_runs(tmp_path: Path) -> None:
    path = _write(tmp_path, told="its own", weight=0.25)
    assert open_onnx(path).weights_are_as_exported is False
    with Detector(path, device="cpu") as detector:
        detector(np.zeros((20, 20, 3), np.uint8))
        (note,) = detector.notes
    assert note.startswith(f"the weights of {path} are not those that were exported: the file was edited, or damaged")
    report = inspect_onnx(path)
    assert report["weights"] == "not those that were exported"
    assert report["notes"] == [note]


@pytest.mark.parametrize(("told", "as_exported"), [("its own", True), (None, None)])
def test_a_file_as_it_was_exported_and_one_of_before_there_was_a_digest_give_no_note(
    told: str | None, as_exported: bool | None, tmp_path: Path
) -> None:
    path = _write(tmp_path, told=told)
    assert open_onnx(path).weights_are_as_exported is as_exported
    with Detector(path, device="cpu") as detector:
        assert detector.notes == ()
    report = inspect_onnx(path)
    assert report["weights"] == {True: "as exported", None: "the file has no digest of them"}[as_exported]
    assert report["weights_sha256"] == open_onnx(path).weights.sha256


@pytest.mark.parametrize(("weight", "times"), [(None, 1), (7.0, 2)])
def test_inspect_shows_the_digest_of_the_weights_once_unless_the_file_tells_another(
    tmp_path: Path, weight: float | None, times: int
) -> None:
    (table, *_) = inspect_tables(inspect_onnx(_write(tmp_path, told="its own", weight=weight)))
    assert sum(cell.plain.count("weights_sha256") for row in table.rows for cell in row) == times


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_that_are_no_numbers_are_counted_by_name(value: float, precision: str) -> None:
    model = make_model(TINY_SPEC, precision=precision)
    for number in (0, 3):
        tensor = model.graph.initializer[number]
        values = numpy_helper.to_array(tensor).copy()
        values.flat[-2:] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    first, second = model.graph.initializer[0], model.graph.initializer[3]
    sizes = [int(np.prod(tensor.dims)) for tensor in (first, second)]
    file = _parsed(model)
    assert file.weights.non_finite == {first.name: (2, sizes[0]), second.name: (2, sizes[1])}
    (note,) = file.weights_notes
    assert f"NaN or infinite values in 2 of its weights, first in {first.name} (2 of {sizes[0]} values)" in note


def test_the_largest_numbers_are_numbers() -> None:
    model = make_model(TINY_SPEC)
    for dtype in (np.float16, np.float32, np.float64):
        most = np.finfo(dtype).max
        model.graph.initializer.append(numpy_helper.from_array(np.array([most, -most], dtype), np.dtype(dtype).name))
    assert _parsed(model).weights.non_finite == {}


def test_weights_that_end_too_early_are_an_error_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "parts.onnx"
    onnx.save(make_model(TINY_SPEC), str(path), save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-1000])
    file = open_onnx(path)
    with pytest.raises(
        ArtifactError, match=r"can't read the weights of .*parts\.onnx: the tensor .* lies outside of w"
    ):
        _ = file.weights


@pytest.mark.parametrize(("key", "value"), [("offset", "-1"), ("length", "-1"), ("offset", "9" * 40), ("length", "x")])
def test_weights_that_lie_nowhere_are_an_error_when_they_are_read(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "parts.onnx"
    onnx.save(make_model(TINY_SPEC), str(path), save_as_external_data=True, location="w", size_threshold=0)
    model = onnx.load(str(path), load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == key).value = value
    path.write_bytes(model.SerializeToString())
    file = open_onnx(path)
    with pytest.raises(ArtifactError, match=r"lies outside of w|is no number"):
        _ = file.weights
