"""What is read of an ONNX without the onnx package is what that package reads; and nothing hostile gets further than an
ArtifactError."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.unit.engines.tiny_network import TINY_SPEC, Graph, make_model
from tests.unit.runtime.plus_plan import PLUS_SPEC, mask_iou_onnx, write_plus_onnx
from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.names import (
    FORM_METADATA_KEY,
    MASK_IOU_METADATA_KEY,
    MAX_BATCH_METADATA_KEY,
    PRECISION_METADATA_KEY,
)
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx, parse_onnx
from yolact_deploy.errors import ArtifactError, SpecError


def _parsed(model: onnx.ModelProto) -> OnnxFile:
    return parse_onnx(model.SerializeToString(), "made.onnx")


def _io_of(model: onnx.ModelProto) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        (
            value.name,
            str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim),
        )
        for value in (*model.graph.input, *model.graph.output)
    ]


@pytest.fixture(params=["fp32", "fp16", "int8", "plus", "exported"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "exported":
        path: Path = request.getfixturevalue("shapes_onnx")
        return path
    if request.param == "plus":
        return write_plus_onnx(tmp_path / "plus.onnx")
    onnx.save(make_model(TINY_SPEC, precision=request.param), str(tmp_path / "tiny.onnx"))
    return tmp_path / "tiny.onnx"


def test_it_reads_what_the_onnx_package_reads(source: Path) -> None:
    model, file = onnx.load(str(source)), open_onnx(source)
    graph = model.graph
    assert dict(file.metadata) == {entry.key: entry.value for entry in model.metadata_props}
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in file.io_tensors] == _io_of(model)
    assert [tensor.mode for tensor in file.io_tensors] == ["input"] + ["output"] * (len(file.io_tensors) - 1)
    assert [(node.name, node.operator) for node in file.nodes] == [(node.name, node.op_type) for node in graph.node]
    assert file.num_parameters == sum(int(np.prod(list(tensor.dims))) for tensor in graph.initializer)
    assert dict(file.opsets) == {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    assert (file.ir_version, file.producer) == (
        model.ir_version,
        f"{model.producer_name} {model.producer_version}".strip(),
    )
    content = source.read_bytes()
    assert (file.sha256, file.num_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert open_onnx(source, whole=True).content == content
    assert open_onnx(file) is file


def test_it_needs_neither_onnx_nor_a_runtime(tmp_path: Path) -> None:
    path = write_plus_onnx(tmp_path / "plus.onnx")
    code = (
        "import sys; from yolact_deploy.artifacts.open import open_artifact; "
        f"file = open_artifact({str(path)!r}); file.spec; file.mask_iou; file.describe(); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"onnx", "onnxruntime", "torch", "tensorrt", "google.protobuf"} & set(result.stdout.split())


def _half_constant(graph: Graph) -> None:
    value = numpy_helper.from_array(np.zeros(1, np.float16), "half")
    graph.nodes.append(helper.make_node("Constant", [], ["unused"], name="unused/Constant", value=value))


def _half_weight(graph: Graph) -> None:
    graph.constant("unused", np.zeros(1, np.float16))


def _half_cast(graph: Graph) -> None:
    graph.add("Cast", ["image"], "unused", to=TensorProto.FLOAT16)


@pytest.mark.parametrize(
    ("edit", "precision"),
    [(None, "fp32"), (_half_constant, "fp16"), (_half_weight, "fp16"), (_half_cast, "fp16")],
)
def test_precision_is_that_of_the_graph_whatever_it_says_of_itself(
    edit: Callable[[Graph], None] | None, precision: str
) -> None:
    model = make_model(TINY_SPEC, metadata={PRECISION_METADATA_KEY: "int8"}, edit=edit)
    assert _parsed(model).precision == precision


def test_a_graph_that_quantizes_is_int8_even_with_halves() -> None:
    assert _parsed(make_model(TINY_SPEC, precision="int8", edit=_half_weight)).precision == "int8"


def test_weights_that_are_declared_as_inputs_are_none() -> None:
    model = make_model(TINY_SPEC)
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    assert [tensor.name for tensor in _parsed(model).io_tensors if tensor.mode == "input"] == ["image"]


@pytest.mark.parametrize(
    ("batch", "metadata", "limits"),
    [("batch", {MAX_BATCH_METADATA_KEY: "8"}, (1, 8)), ("batch", {}, (1, None)), (4, {}, (4, 4))]
    + [("batch", {MAX_BATCH_METADATA_KEY: text}, (1, None)) for text in ("0", "-1", "two", "٣", "9" * 5000)],
)
def test_batches_are_those_of_the_shape_and_the_export(
    batch: int | str, metadata: dict[str, str], limits: tuple[int, int | None]
) -> None:
    assert _parsed(make_model(TINY_SPEC, batch=batch, metadata=metadata)).batch == limits


def test_types_without_a_name_in_numpy_and_shapes_that_are_not_told_are_said_to_be_so() -> None:
    model = make_model(TINY_SPEC)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.BFLOAT16
    model.graph.output[2].ClearField("type")
    found = {tensor.name: tensor for tensor in _parsed(model).io_tensors}
    assert found["loc"] == IoTensor("loc", "output", "float32", ())
    assert found["conf"].dtype == "bfloat16"
    assert found["mask_coeff"] == IoTensor("mask_coeff", "output", "undefined", ())


def test_the_mask_iou_network_comes_out_as_it_went_in(tmp_path: Path) -> None:
    assert open_onnx(write_plus_onnx(tmp_path / "plus.onnx")).mask_iou == mask_iou_onnx()
    assert _parsed(make_model(TINY_SPEC)).mask_iou is None
    for text in ("?", "ü", "AAA"):
        with pytest.raises(SpecError, match=r"mask-IoU network in made\.onnx is damaged"):
            _ = _parsed(make_model(PLUS_SPEC, metadata={MASK_IOU_METADATA_KEY: text})).mask_iou


def test_the_form_decides_what_may_be_done_with_it() -> None:
    heads = _parsed(make_model(TINY_SPEC))
    images = _parsed(make_model(TINY_SPEC, metadata={FORM_METADATA_KEY: "end-to-end"}))
    heads.check_io()
    with pytest.raises(ArtifactError, match="gives no head tensors"):
        images.check_io()
    with pytest.raises(SpecError, match="is not an end-to-end ONNX"):
        heads.check_io("end-to-end")
    with pytest.raises(SpecError, match=r"made\.onnx contradict its own spec: image is \[B, 3, 32, 32\]"):
        images.check_io("end-to-end")


# Weights in other files


@pytest.fixture
def external(tmp_path: Path) -> Path:
    path = tmp_path / "big.onnx"
    onnx.save(make_model(TINY_SPEC), str(path), save_as_external_data=True, location="big.bin", size_threshold=0)
    return path


def test_the_digest_is_of_the_weights_too(external: Path) -> None:
    file = open_onnx(external)
    assert set(file.external.values()) == {external.with_name("big.bin")}
    before, size = file.sha256, file.num_bytes
    assert size == external.stat().st_size + external.with_name("big.bin").stat().st_size
    weights = bytearray(external.with_name("big.bin").read_bytes())
    weights[10] ^= 1
    external.with_name("big.bin").write_bytes(weights)
    assert open_onnx(external).sha256 != before
    assert open_onnx(external, whole=True).sha256 == open_onnx(external).sha256


def test_what_takes_one_file_says_how_to_make_it(external: Path) -> None:
    with pytest.raises(ArtifactError, match=r"keeps weights in a separate file \(tensor .*onnx.save"):
        open_onnx(external).require_one_file()
    _parsed(make_model(TINY_SPEC)).require_one_file()


def test_a_file_that_was_copied_without_its_weights_is_told_so(external: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    alone = shutil.copy(external, tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"keeps weights in big.bin .* not beside it. Copy the files together"):
        open_onnx(alone)


@pytest.mark.parametrize("location", ["/etc/hostname", "../big.bin", "a/../../big.bin", "C:\\big.bin", ""])
def test_weights_outside_of_the_folder_are_not_touched(location: str, external: Path) -> None:
    model = onnx.load(str(external), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="is not in its folder"):
        open_onnx(external)


# Hostile files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\x08\x09", "it holds no graph"),
        (b"<!DOCTYPE html>", "byte 0 begins no field"),
        (b"\x3a\x05\x0a", "the field at byte 0 has 5 bytes, and 1 are left"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "has 18446744073709551615 bytes"),
        (b"\x3a" + b"\xff" * 20, "the number at byte 1 has no end"),
        (b"\x3a", "the number at byte 1 has no end"),
        (b"\x00\x00", "byte 0 begins no field"),
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "the text at byte 6 is not UTF-8"),
    ],
)
def test_what_is_no_onnx_is_told_where_it_goes_wrong(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    message = rf"can't open .*m\.onnx \({len(content)} bytes\): m\.onnx is not an ONNX model, or is damaged: .*{reason}"
    for whole in (False, True):
        with pytest.raises(ArtifactError, match=message):
            open_onnx(path, whole=whole)


@pytest.mark.parametrize(("name", "remedy"), [("a.pth", "yolact-deploy export"), ("a.engine", "named as a plan is")])
def test_what_is_named_as_something_else_is_told_what_to_do(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=remedy):
        open_onnx(tmp_path / name)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"can't read .*none\.onnx: No such file"):
        open_onnx(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match="can't read"):
        open_onnx(tmp_path)


def test_parts_that_stand_apart_are_one_message_as_the_format_has_it() -> None:
    whole = make_model(TINY_SPEC)
    nodes, rest = onnx.ModelProto(), onnx.ModelProto()
    rest.CopyFrom(whole)
    del rest.graph.node[:]
    nodes.graph.node.extend(whole.graph.node)
    content = nodes.SerializeToString() + rest.SerializeToString()
    assert onnx.load_from_string(content) == whole
    assert parse_onnx(content, "made.onnx").nodes == _parsed(whole).nodes
    assert parse_onnx(content, "made.onnx").io_tensors == _parsed(whole).io_tensors


def test_no_damage_does_more_than_raise_an_artifact_error() -> None:
    content = make_model(PLUS_SPEC, precision="fp16", metadata={MASK_IOU_METADATA_KEY: "AAAA"}).SerializeToString()
    random = np.random.default_rng(0)
    survived = 0
    for cut in random.integers(1, len(content), 200):
        with pytest.raises(ArtifactError):
            parse_onnx(content[:cut], "made.onnx")
    for _ in range(1000):
        damaged = bytearray(content)
        for position in random.integers(0, len(content), 3):
            damaged[position] = random.integers(256)
        try:
            parse_onnx(bytes(damaged), "made.onnx").describe()
            survived += 1
        except ArtifactError:
            pass
    assert 0 < survived < 1000  # most bytes are weights
