"""What the stand-ins for TensorRT offer, held against the real packages: what runs over them calls nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.emulator.driver import EmulatedDriver
from tests.unit.engines.tensorrt_bindings import installed_tensorrt_api
from tests.unit.runtime.fake_tensorrt import make_tensorrt
from yolact_deploy.runtime.tensorrt.network import make_profiler

Api = dict[str, list[str]]  # class -> its attributes

_RECORDED: dict[str, Api] = json.loads(Path(__file__).with_name("runtime_api.json").read_text())
_OLDEST = {"tensorrt 10.3.0", "tensorrt-rtx 1.4.0.76"}


def _offered(module: ModuleType) -> Api:
    """Public attributes of a module's classes, those that instances get when they are made included."""
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    classes["Severity"] = module.ILogger.Severity
    offered = {name: {key for key in vars(cls) if not key.startswith("_")} for name, cls in classes.items()}
    if "IRuntimeConfig" in classes:
        offered["IRuntimeConfig"] |= {key for key in vars(classes["IRuntimeConfig"]()) if not key.startswith("_")}
    return {name: sorted(attributes) for name, attributes in offered.items()}


def _missing(offered: Api, real: Api) -> list[str]:
    return [
        f"{name}.{attribute}"
        for name, attributes in offered.items()
        for attribute in attributes
        if attribute not in real.get(name, ())
    ]


@pytest.fixture
def tensorrt() -> Api:
    return _offered(make_tensorrt(EmulatedDriver())[0])


@pytest.fixture
def tensorrt_rtx() -> Api:
    return _offered(make_tensorrt(EmulatedDriver(), rtx=True)[0])


@pytest.mark.parametrize("package", sorted(_RECORDED))
def test_every_release_has_what_plans_are_run_with(package: str, tensorrt: Api, tensorrt_rtx: Api) -> None:
    assert _missing(tensorrt, _RECORDED[package]) == []
    if package.startswith("tensorrt-rtx"):
        assert _missing(tensorrt_rtx, _RECORDED[package]) == []


def test_the_installed_tensorrt_bindings_have_what_plans_are_run_with(tensorrt: Api, tmp_path: Path) -> None:
    assert _missing(tensorrt, installed_tensorrt_api(tmp_path)) == []


def test_the_installed_tensorrt_rtx_has_what_plans_are_run_with(tensorrt_rtx: Api) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    classes = {name: dir(value) for name, value in vars(trt).items() if isinstance(value, type)}
    assert _missing(tensorrt_rtx, {**classes, "Severity": dir(trt.ILogger.Severity)}) == []


def test_a_profiler_is_one_of_the_installed_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    told: list[tuple[str, float]] = []
    profiler = make_profiler(trt, lambda name, ms: told.append((name, ms)))
    assert isinstance(profiler, trt.IProfiler)
    profiler.report_layer_time("a/Conv", 0.5)
    assert told == [("a/Conv", 0.5)]


def test_the_comparison_sees_what_only_one_of_them_has(tensorrt: Api, tensorrt_rtx: Api) -> None:
    assert set(_RECORDED) > _OLDEST
    assert {"execute_async_v3", "set_device_memory", "set_input_shape"} <= set(tensorrt["IExecutionContext"])
    missing = _missing(tensorrt_rtx, _RECORDED["tensorrt 11.4.0.106"])
    assert {"IExecutionContext.is_stream_capturable", "IRuntimeConfig.set_runtime_cache"} <= set(missing)
