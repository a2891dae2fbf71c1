from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata
from types import SimpleNamespace

import pytest

from yolact_deploy import diagnosis
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.errors import pip_install

H200 = GpuDevice(0, "NVIDIA H200", (9, 0), driver_version=(13, 0), memory_bytes=141 << 30, multiprocessors=132)


@dataclass(frozen=True)
class FakeBuilder:
    name: str = "tensorrt"
    usable: bool = False
    reason: str = "no GPU."


def _install(monkeypatch: pytest.MonkeyPatch, packages: set[str], *, providers: list[str] | None) -> None:
    """A machine with these packages alone, and an onnxruntime of these providers."""

    def version(package: str) -> str:
        if package not in packages:
            raise metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    onnxruntime = None if providers is None else SimpleNamespace(get_available_providers=lambda: providers)
    monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)


def _ability(report: dict[str, object], name: str) -> dict[str, object]:
    abilities = report["abilities"]
    assert isinstance(abilities, list)
    return next(ability for ability in abilities if ability["name"] == name)


def test_what_is_missing_is_said_with_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, {"numpy"}, providers=None)
    report = diagnosis.examine([FakeBuilder()], [])
    for name, extra in (
        ("export", "export"),
        ("detect, eval, bench on CPU", "cpu"),
        ("Detections.to_supervision", "draw"),
    ):
        ability = _ability(report, name)
        assert ability["available"] is False
        assert pip_install(extra) in str(ability["reason"])
    assert _ability(report, "build-engine (tensorrt)") == {
        "name": "build-engine (tensorrt)", "available": False, "reason": "no GPU.",
    }  # fmt: skip


def test_onnxruntime_gpu_serves_for_export_too(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch", "onnx", "onnxscript", "onnxruntime-gpu"}
    _install(monkeypatch, installed, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    report = diagnosis.examine([], [H200])
    assert _ability(report, "export")["available"] is True
    assert _ability(report, "detect, eval, bench on CUDA")["available"] is True
    assert "onnxruntime-gpu 1.0" in str(_ability(report, "export")["reason"])
    assert _ability(diagnosis.examine([], []), "detect, eval, bench on CUDA")["available"] is False
