"""Which builder is found, which is chosen, and for which GPUs it builds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engines.adapters import (
    Adapter,
    RuntimeInfo,
    TensorRt,
    TensorRtRtx,
    available_runtimes,
    choose_runtime,
    parse_targets,
)
from engines.messages import LogRecord
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.errors import BuildRequestError, EngineError, MissingDependencyError, pip_install


def _gpu(name: str, *compute_capability: int) -> GpuDevice:
    major, minor = compute_capability
    return GpuDevice(0, name, (major, minor), driver_version=(13, 0), memory_bytes=1 << 34, multiprocessors=64)


ADA = _gpu("NVIDIA L4", 8, 9)
HOPPER = _gpu("NVIDIA H100", 9, 0)
TURING = _gpu("NVIDIA T4", 7, 5)

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put modules in the place of both builders (None: not installed), and GPUs in the place of this machine's."""

    def replace(
        *, tensorrt: ModuleType | None = None, tensorrt_rtx: ModuleType | None = None, gpus: tuple[GpuDevice, ...] = ()
    ) -> None:
        for name, module in (("tensorrt", tensorrt), ("tensorrt_rtx", tensorrt_rtx)):
            if module is None:
                monkeypatch.delitem(sys.modules, name, raising=False)
            else:
                monkeypatch.setitem(sys.modules, name, module)
        absent = {name for name, module in (("tensorrt", tensorrt), ("tensorrt_rtx", tensorrt_rtx)) if module is None}

        def find(name: str) -> ModuleType:
            if name in absent:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return import_module(name)

        monkeypatch.setattr("engines.adapters.import_module", find)
        monkeypatch.setattr("engines.adapters.visible_devices", lambda: gpus)
        monkeypatch.setattr("engines.adapters.has_nvidia_driver", lambda: True)

    return replace


def _module(name: str, version: str | None, *, has_builder: bool = True, targets: tuple[str, ...] = ()) -> ModuleType:
    module = ModuleType(name)
    if version is not None:
        module.__dict__["__version__"] = version
    if has_builder:
        module.__dict__["Builder"] = object
    members = {"NONE": 0, "CURRENT": 1, **{target.upper(): i for i, target in enumerate(targets)}}
    module.__dict__["ComputeCapability"] = type("ComputeCapability", (), {"__members__": members})
    return module


def test_auto_takes_tensorrt_where_there_is_a_gpu(install: Install) -> None:
    install(tensorrt=_module("tensorrt", "10.9.0"), tensorrt_rtx=_module("tensorrt_rtx", "1.7.1"), gpus=(ADA,))
    adapter, why = choose_runtime("auto")
    assert (adapter.name, adapter.version) == ("tensorrt", "10.9.0")
    assert why == "built with TensorRT 10.9.0."


def test_auto_takes_tensorrt_rtx_without_a_gpu_and_says_why(install: Install) -> None:
    install(tensorrt=_module("tensorrt", "10.9.0"), tensorrt_rtx=_module("tensorrt_rtx", "1.7.1"))
    adapter, why = choose_runtime("auto")
    assert adapter.name == "tensorrt-rtx"
    assert "TensorRT was passed over: no NVIDIA GPU and driver is visible" in why


def test_a_runtime_asked_for_is_not_replaced_by_the_other(install: Install) -> None:
    install(tensorrt=_module("tensorrt", "10.9.0"), tensorrt_rtx=_module("tensorrt_rtx", "1.7.1"))
    with pytest.raises(EngineError, match="with TensorRT here: no NVIDIA GPU and driver is visible"):
        choose_runtime("tensorrt")


@pytest.mark.parametrize(
    ("name", "gpus", "extra"),
    [
        ("tensorrt", (), "gpu"),
        ("tensorrt-rtx", (ADA,), "rtx"),
        ("auto", (ADA,), "gpu"),
        ("auto", (), "rtx"),
    ],
)
def test_missing_runtime_gives_the_pip_install_that_helps_here(
    name: str, gpus: tuple[GpuDevice, ...], extra: str, install: Install
) -> None:
    install(gpus=gpus)
    with pytest.raises(MissingDependencyError) as caught:
        choose_runtime(name)
    assert pip_install(extra) in str(caught.value)


def test_unknown_runtime_names_the_known_ones() -> None:
    with pytest.raises(BuildRequestError, match="'onnxruntime'; choose auto, tensorrt or tensorrt-rtx"):
        choose_runtime("onnxruntime")


@pytest.mark.parametrize(
    ("module", "gpus", "reason"),
    [
        (_module("tensorrt", "8.6.1"), (ADA,), "8.6.1 is too old: 10.0 or newer"),
        (_module("tensorrt", "10.2.0"), (ADA,), "10.2.0 is known to build wrong plans"),
        (_module("tensorrt", "10.2.0.post1"), (ADA,), "10.2.0 is known to build wrong plans"),
        (_module("tensorrt", "11.4.0.106"), (), "no NVIDIA GPU"),
        (_module("tensorrt", "11.4.0.106", has_builder=False), (ADA,), "installed without its libraries"),
        (_module("tensorrt", None), (ADA,), "installed without its libraries"),
    ],
)
def test_tensorrt_that_can_not_build_says_why(
    module: ModuleType, gpus: tuple[GpuDevice, ...], reason: str, install: Install
) -> None:
    install(tensorrt=module, gpus=gpus)
    info = available_runtimes()[0]
    assert (info.name, info.usable, info.installed) == ("tensorrt", False, True)
    assert reason in info.reason


def test_tensorrt_whose_libraries_do_not_load_says_so(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()

    def fail(name: str) -> ModuleType:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("engines.adapters.import_module", fail)
    info = available_runtimes()[0]
    assert not info.usable
    assert "libraries can't be loaded: libnvinfer.so.10" in info.reason


def test_without_a_driver_nobody_is_told_to_install_what_needs_a_gpu(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setattr("engines.adapters.has_nvidia_driver", lambda: False)
    tensorrt, tensorrt_rtx = available_runtimes()
    assert tensorrt.reason.startswith("no NVIDIA GPU and driver is visible")
    assert "pip" not in tensorrt.reason
    assert pip_install("rtx") in tensorrt_rtx.reason  # it builds anywhere
    with pytest.raises(EngineError, match=r"here: no NVIDIA GPU.* --runtime tensorrt-rtx") as caught:
        choose_runtime("tensorrt")
    assert "pip" not in str(caught.value)


def test_both_runtimes_are_listed_when_neither_is_installed(install: Install) -> None:
    install()
    assert available_runtimes() == [
        RuntimeInfo("tensorrt", None, False, f"not installed: {pip_install('gpu')}.", installed=False),
        RuntimeInfo("tensorrt-rtx", None, False, f"not installed: {pip_install('rtx')}.", installed=False),
    ]


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        (["sm86"], ("sm86",)),
        (["86", "8.9"], ("sm86", "sm89")),
        (["SM_120,8.6"], ("sm86", "sm120")),
        (["12.0", " sm75 "], ("sm75", "sm120")),
        (["86", "8.6", "sm86"], ("sm86",)),
        ([], ()),
    ],
)
def test_targets_in_every_spelling(written: list[str], parsed: tuple[str, ...]) -> None:
    assert parse_targets(written) == parsed


@pytest.mark.parametrize("written", ["ampere", "sm", "8", "8.6.1", "", "sm86x", "-86"])
def test_what_is_no_architecture_is_refused(written: str) -> None:
    with pytest.raises(BuildRequestError, match=r"is not a GPU architecture; write it as sm86, 86 or 8\.6"):
        parse_targets([written])


def _rtx() -> TensorRtRtx:
    module = _module("tensorrt_rtx", "1.7.1", targets=("sm120", "sm75", "sm86", "sm89"))
    return TensorRtRtx(trt=module, version="1.7.1")


def test_rtx_default_is_every_architecture_since_ampere(install: Install) -> None:
    install(gpus=(ADA,))
    targets, notes = _rtx().resolve_targets(())
    assert targets == ("sm86", "sm89", "sm120")
    assert len(notes) == 1


def test_rtx_default_on_a_turing_machine_is_that_gpu_alone(install: Install) -> None:
    install(gpus=(TURING,))
    assert _rtx().resolve_targets(()) == (
        ("sm75",),
        ["no target given: built for this machine's NVIDIA T4 (sm75)."],
    )


def test_rtx_warns_that_a_plan_will_not_run_on_this_gpu(install: Install) -> None:
    install(gpus=(HOPPER,))
    targets, notes = _rtx().resolve_targets(("sm86",))
    assert targets == ("sm86",)
    assert notes == ["this machine's NVIDIA H100 (sm90) is not among the plan's targets: the plan will not run on it."]


def test_rtx_notes_that_turing_slows_the_others(install: Install) -> None:
    install()
    assert "sm75 together with newer targets" in _rtx().resolve_targets(("86", "75"))[1][0]


def test_tensorrt_takes_no_targets_and_records_its_gpu(install: Install) -> None:
    install(gpus=(ADA,))
    adapter = TensorRt(trt=None, version="10.9.0")
    assert adapter.resolve_targets(()) == (("sm89",), [])
    with pytest.raises(BuildRequestError, match=r"takes no target, found sm86\..*tensorrt-rtx"):
        adapter.resolve_targets(("sm86",))


class FakeConfig:
    """The builder's timing cache calls: bytes that begin with "good" are accepted, others give an empty cache."""

    def __init__(self, log: list[LogRecord]) -> None:
        self.log = log
        self.cache = b""

    def create_timing_cache(self, data: bytes) -> Any:
        usable = data if data.startswith(b"good") else b""
        if data and not usable:
            self.log.append(LogRecord(False, "Failed to deserialize timing cache. Returning an empty timing cache."))
        return type("Cache", (), {"data": usable, "serialize": lambda self: self.data + b"+timed"})()

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return self.cache


def test_timing_cache_is_read_and_written_back(tmp_path: Path) -> None:
    path, log = tmp_path / "timing.cache", list[LogRecord]()
    adapter, config = TensorRt(trt=None, version="10.9.0"), FakeConfig(log)
    path.write_bytes(b"good")
    assert adapter.load_timing_cache(config, path, log) == []
    assert adapter.save_timing_cache(config, path) == []
    assert path.read_bytes() == b"good+timed"


def test_timing_cache_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    path, log = tmp_path / "timing.cache", list[LogRecord]()
    adapter, config = TensorRt(trt=None, version="10.9.0"), FakeConfig(log)
    assert adapter.load_timing_cache(config, path, log) == []
    assert adapter.save_timing_cache(config, path) == []
    assert path.read_bytes() == b"+timed"


def test_damaged_timing_cache_is_ignored_with_a_note_and_replaced(tmp_path: Path) -> None:
    path, log = tmp_path / "timing.cache", list[LogRecord]()
    adapter, config = TensorRt(trt=None, version="10.9.0"), FakeConfig(log)
    path.write_bytes(b"garbage")
    notes = adapter.load_timing_cache(config, path, log)
    assert notes == ["the timing cache timing.cache was ignored: it is damaged, or of another TensorRT version or GPU."]
    assert log == [], "said in the note, so not again among the warnings"
    adapter.save_timing_cache(config, path)
    assert path.read_bytes() == b"+timed"


def test_timing_cache_that_can_not_be_kept_is_a_note_not_an_error(tmp_path: Path) -> None:
    log = list[LogRecord]()
    adapter, config = TensorRt(trt=None, version="10.9.0"), FakeConfig(log)
    path = tmp_path / "gone" / "timing.cache"
    adapter.load_timing_cache(config, path, log)
    assert "the timing cache was not kept" in adapter.save_timing_cache(config, path)[0]


def test_float32_layers_are_rounded_to_tf32_only_where_that_was_asked_for() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)  # unless it is told otherwise
    for allowed in (False, True):
        TensorRtRtx(trt, trt.__version__).set_tf32(config, allowed=allowed)
        assert config.get_flag(trt.BuilderFlag.TF32) is allowed


@pytest.mark.parametrize("adapter", [TensorRt(trt=None, version="10.9.0"), TensorRtRtx(trt=None, version="1.7.1")])
def test_tf32_is_refused_for_gpus_that_have_none(adapter: Adapter) -> None:
    assert adapter.check_precision("tf32", ("sm80", "sm120")) == []
    assert adapter.check_precision("fp32", ("sm75",)) == []
    with pytest.raises(BuildRequestError, match=r"tf32 takes a GPU since Ampere \(sm80\), and sm75 is older"):
        adapter.check_precision("tf32", ("sm75", "sm86"))


def test_an_int8_plan_of_rtx_says_that_its_speed_is_unmeasured() -> None:
    (note,) = TensorRtRtx(trt=None, version="1.7.1").check_precision("int8", ("sm86",))
    assert "weight-only" in note
    assert "unmeasured" in note
    assert TensorRt(trt=None, version="10.9.0").check_precision("int8", ("sm86",)) == []


def test_the_current_gpu_is_a_target_that_needs_no_name_of_rtx(install: Install) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    install(gpus=(HOPPER,))
    adapter = TensorRtRtx(trt, trt.__version__)
    assert "sm90" not in adapter.valid_targets
    targets, notes = adapter.resolve_targets(("Current",))
    assert (targets, notes) == (("sm90",), ["built for this machine's NVIDIA H100 (sm90) alone."])
    config = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_builder_config()
    adapter.set_targets(config, targets)
    assert config.get_compute_capability(0) == trt.ComputeCapability.CURRENT
    adapter.set_targets(config, ("sm86",))
    assert config.get_compute_capability(0) == trt.ComputeCapability.SM86


def test_without_a_gpu_the_current_one_is_refused_before_the_build(install: Install) -> None:
    install()
    with pytest.raises(BuildRequestError, match=r"none is visible here\. Name the GPUs"):
        _rtx().resolve_targets(("current",))
    with pytest.raises(BuildRequestError, match="'current' is not a GPU architecture"):
        _rtx().resolve_targets(("sm86,current",))
