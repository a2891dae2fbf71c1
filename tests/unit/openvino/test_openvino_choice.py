"""Which runtime a CPU's files are run in, and what is said where OpenVINO can't be it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy import Detector
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.errors import ArtifactError, DeviceError, MissingDependencyError, pip_install
from yolact_deploy.runtime import opening
from yolact_deploy.runtime.openvino import library, network

pytest.importorskip("openvino")

WITH_VNNI = "Intel AVX-512 with Intel DL Boost and bfloat16 support"
WITHOUT = "Intel AVX2"


@pytest.fixture(autouse=True)
def _an_x86(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(library, "_instructions", lambda: WITH_VNNI)
    yield
    library.load_openvino.cache_clear()


@pytest.fixture
def int8(shapes_onnx: Path) -> OnnxFile:
    """A file that says of itself to be INT8: what the choice goes by."""
    return dataclasses.replace(open_onnx(shapes_onnx), precision="int8")


def opened(file: OnnxFile | Path, **arguments: Any) -> Detector:
    return Detector(file, device="cpu", threads=1, **arguments)


def test_int8_is_run_in_openvino_where_it_is_added_without_loss(int8: OnnxFile) -> None:
    detector = opened(int8)
    assert detector.description.startswith("OpenVINO")
    assert "the faster one in INT8" in detector.description
    assert detector.notes == ()


def test_float32_stays_in_onnxruntime_whose_description_says_why(shapes_onnx: Path) -> None:
    description = opened(shapes_onnx).description
    assert description.startswith("onnxruntime")
    assert "OpenVINO is no faster in floating point" in description
    assert opened(shapes_onnx, runtime="onnxruntime").description == description.partition(": ")[0]


def test_without_vnni_int8_stays_in_onnxruntime(int8: OnnxFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_instructions", lambda: WITHOUT)
    detector = opened(int8)
    assert detector.description.startswith("onnxruntime")
    assert "OpenVINO's INT8 saturates on this CPU" in detector.description
    (note,) = opened(int8, runtime="openvino").notes
    assert "no VNNI" in note


def test_without_vnni_and_without_onnxruntime_int8_is_run_with_a_note(
    int8: OnnxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_instructions", lambda: WITHOUT)
    monkeypatch.setattr(opening, "installed_version", lambda package: None if "onnxruntime" in package else "1.0")
    detector = opened(int8)
    assert detector.description.endswith("onnxruntime is not installed")
    (note,) = detector.notes
    assert "saturates" in note


def test_where_openvino_does_not_tell_int8_stays_in_onnxruntime(
    int8: OnnxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_instructions", lambda: "")  # 2026.0, or a CPU of another kind
    assert "does not tell whether its INT8 is exact" in opened(int8).description
    assert opened(int8, runtime="openvino").notes == ()


def test_where_openvino_is_missing_int8_tells_what_it_would_bring(
    int8: OnnxFile, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "installed_version", lambda _: None)
    detector = opened(int8)
    assert detector.description.startswith("onnxruntime")
    (note,) = detector.notes
    assert pip_install("openvino") in note
    assert opened(shapes_onnx).notes == ()


def test_an_openvino_that_can_not_be_loaded_leaves_int8_to_onnxruntime_with_a_note(
    int8: OnnxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(library, "_instructions", refuse)
    detector = opened(int8)
    assert detector.description.startswith("onnxruntime")
    (note,) = detector.notes
    assert "libtbb.so.12" in note
    with pytest.raises(ImportError, match="libtbb"):
        opened(int8, runtime="openvino")


def test_a_missing_openvino_is_named_with_its_install(shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.load_openvino.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match="needs openvino, which is not installed") as caught:
        opened(shapes_onnx, runtime="openvino")
    assert pip_install("openvino") in str(caught.value)


def test_an_openvino_that_is_too_old_is_refused_with_its_version(
    shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.load_openvino.cache_clear()
    monkeypatch.setattr(library, "_version", lambda _: "2023.3.0")
    with pytest.raises(MissingDependencyError, match=r"OpenVINO 2025.3 or newer, found 2023.3.0(.|\n)*--upgrade"):
        opened(shapes_onnx, runtime="openvino")


def test_what_openvino_cannot_read_is_run_in_onnxruntime_with_a_note(
    int8: OnnxFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ArtifactError("OpenVINO can't read it: no rule for NoSuchOperator.")

    monkeypatch.setattr(network, "compile_network", refuse)
    detector = opened(int8)
    assert detector.description.startswith("onnxruntime")
    assert "OpenVINO can't run this file" in detector.description
    assert "NoSuchOperator" in detector.notes[0]
    with pytest.raises(ArtifactError, match="NoSuchOperator"):
        opened(int8, runtime="openvino")


def test_bf16_is_refused_where_the_cpu_has_none(shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_instructions", lambda: WITHOUT)
    with pytest.raises(DeviceError, match=r"no bfloat16 arithmetic .*Intel AVX2"):
        opened(shapes_onnx, cpu_precision="bf16")


def test_doctor_tells_what_openvino_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "INT8 without loss" in library.describe_openvino()
    monkeypatch.setattr(library, "_instructions", lambda: WITHOUT)
    assert "CPU (f32, INT8 that saturates)" in library.describe_openvino()
    assert "without loss" not in library.describe_openvino()
