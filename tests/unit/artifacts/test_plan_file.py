from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.plan_file import (
    BatchRange,
    Sidecar,
    open_plan,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from yolact_deploy.errors import OutputError, PlanMismatchError, SpecError
from yolact_deploy.spec import BackboneSpec, ModelSpec, PriorsSpec

PLAN = b"plan" * 100
SPEC = ModelSpec(
    name="tiny",
    input_size=32,
    backbone=BackboneSpec(kind="resnet", stages=(1,), selected_layers=(0,)),
    class_names=("disc", "bâton"),
    category_ids=(3, 9),
    priors=PriorsSpec(scales=((8.0,), (16.0,), (32.0,)), aspect_ratios=((1.0,),) * 3),
)
SIDECAR = Sidecar(
    spec=SPEC,
    plan_sha256=hashlib.sha256(PLAN).hexdigest(),
    plan_bytes=len(PLAN),
    runtime="tensorrt-rtx",
    runtime_version="1.7.1.116",
    targets=("sm86", "sm120"),
    precision="fp16",
    batch=BatchRange(1, 2, 4),
    onnx_sha256="ab" * 32,
    onnx_name="tiny.onnx",
    io_tensors=(IoTensor("image", "input", "float32", (-1, 3, 32, 32)),),
    created="2025-01-31T12:00:00+00:00",
    yolact_deploy_version="0.1.0",
    notes=("a note",),
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(PLAN)
    write_sidecar(sidecar_path(path), SIDECAR)
    return path


def test_sidecar_lies_beside_the_plan_under_its_whole_name() -> None:
    assert sidecar_path("a/model.engine") == Path("a/model.engine.json")
    assert sidecar_path("model.v2.plan") == Path("model.v2.plan.json")


def test_sidecar_survives_the_file(plan: Path) -> None:
    assert read_sidecar(plan) == SIDECAR
    assert open_plan(plan).sidecar == SIDECAR


def test_the_bytes_are_the_proven_ones_and_can_be_given_back(plan: Path) -> None:
    opened = open_plan(plan)
    assert (opened.content, opened.sidecar) == (PLAN, SIDECAR)
    kept = opened.without_content()
    assert not kept.content
    assert open_plan(opened) is opened
    assert open_plan(kept).content == PLAN


def test_missing_sidecar_says_that_it_must_travel_and_how_to_rebuild(plan: Path) -> None:
    sidecar_path(plan).unlink()
    with pytest.raises(
        PlanMismatchError, match=r"(?s)model.engine.json is not beside it.*travel with it.*build-engine"
    ):
        open_plan(plan)


def test_tampered_byte_names_both_digests(plan: Path) -> None:
    other = b"x" + PLAN[1:]
    plan.write_bytes(other)
    pattern = f"{hashlib.sha256(other).hexdigest()[:12]}.*{SIDECAR.plan_sha256[:12]}"
    with pytest.raises(PlanMismatchError, match=pattern):
        open_plan(plan)


def test_truncated_plan_is_told_from_another_file(plan: Path) -> None:
    plan.write_bytes(PLAN[:-1])
    with pytest.raises(PlanMismatchError, match="has 399 bytes, its sidecar says 400: it was cut short"):
        open_plan(plan)
    plan.write_bytes(PLAN + b"x")
    with pytest.raises(PlanMismatchError, match="has 401 bytes, its sidecar says 400: it is another file"):
        open_plan(plan)


def test_missing_plan_is_named(plan: Path) -> None:
    plan.unlink()
    with pytest.raises(PlanMismatchError, match=r"can't read the plan .*model.engine: No such file"):
        open_plan(plan)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "sidecar must be an object, found list"),
        ("{}", "sidecar lacks the field 'spec'"),
    ],
)
def test_malformed_sidecar_is_named(text: str, message: str, plan: Path) -> None:
    sidecar_path(plan).write_text(text)
    with pytest.raises(PlanMismatchError, match=message):
        read_sidecar(plan)


def test_sidecar_that_is_no_text_is_named(plan: Path) -> None:
    sidecar_path(plan).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanMismatchError, match="is not valid JSON"):
        read_sidecar(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "has schema version 2, this version of yolact-deploy reads 1"),
        ({"schema_version": "1"}, "sidecar.schema_version must be int"),
        ({"plan_bytes": "400"}, "sidecar.plan_bytes must be int, found str"),
        ({"plan_bytes": 0}, "plan_bytes must be positive"),
        ({"plan_sha256": "ABC"}, "plan_sha256 must be 64 lower-case hexadecimal digits"),
        ({"runtime": "openvino"}, "sidecar.runtime must be one of 'tensorrt', 'tensorrt-rtx'"),
        ({"precision": "fp8"}, "sidecar.precision must be one of"),
        ({"targets": "sm86"}, "sidecar.targets must be a list"),
        ({"targets": ["8.6"]}, "targets must look like sm86"),
        ({"batch": {"min": 4, "opt": 2, "max": 1}}, "batch must satisfy 1 <= min <= opt <= max"),
        ({"io_tensors": [{"name": "image"}]}, r"sidecar.io_tensors\[0\] lacks the field 'mode'"),
        ({"spec": {}}, "sidecar.spec lacks the field"),
        ({"onnx_name": "/home/someone/tiny.onnx"}, "onnx_name must be a file name without folders"),
        ({"colour": "red"}, "sidecar has the unknown field 'colour'"),
    ],
)
def test_wrong_field_is_named(change: dict[str, Any], message: str, plan: Path) -> None:
    sidecar_path(plan).write_text(json.dumps(SIDECAR.to_dict() | change))
    with pytest.raises(PlanMismatchError, match=message):
        read_sidecar(plan)


@pytest.mark.parametrize("name", ["a/b.onnx", "C:\\models\\b.onnx"])
def test_sidecar_takes_no_path_of_the_building_machine(name: str) -> None:
    with pytest.raises(SpecError, match="without folders"):
        dataclasses.replace(SIDECAR, onnx_name=name)


def test_short_facts_come_before_the_long_spec() -> None:
    keys = list(SIDECAR.to_dict())
    assert keys[0] == "schema_version"
    assert keys[-1] == "spec"


def test_unwritable_sidecar_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_sidecar(tmp_path / "gone" / "model.engine.json", SIDECAR)
