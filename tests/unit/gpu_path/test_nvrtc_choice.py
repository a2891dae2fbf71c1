"""Which NVRTC is taken for a GPU and its driver, and what is said when none fits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from yolact_deploy.cuda import compile as nvrtc
from yolact_deploy.cuda.compile import Nvrtc, choose_nvrtc
from yolact_deploy.errors import DeviceError, EngineError, MissingDependencyError

NEW = Nvrtc("libnvrtc.so.13", (13, 0), 2, (75, 86, 90, 120))
OLD = Nvrtc("libnvrtc.so.12", (12, 9), 1, (50, 75, 86, 90))


def test_the_newest_that_the_driver_loads_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "installed", lambda: (NEW, OLD))
    assert choose_nvrtc("sm_90", (13, 1)) is NEW
    assert choose_nvrtc("sm_90", (12, 2)) is OLD
    assert choose_nvrtc("sm_90") is NEW
    assert choose_nvrtc("sm_50", (13, 1)) is OLD


def test_an_nvrtc_too_new_for_the_driver_is_refused_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "installed", lambda: (NEW,))
    with pytest.raises(DeviceError, match=r"NVRTC 13\.0 .* made for CUDA 12\.4.*pip install nvidia-cuda-nvrtc-cu12"):
        choose_nvrtc("sm_90", (12, 4))


def test_a_gpu_that_no_nvrtc_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "installed", lambda: (NEW,))
    with pytest.raises(DeviceError, match=r"sm_130, it knows sm_75, .*--upgrade"):
        choose_nvrtc("sm_130", (14, 0))
    with pytest.raises(DeviceError, match=r"sm_61.*too old"):
        choose_nvrtc("sm_61")


def test_no_nvrtc_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "installed", lambda: ())
    with pytest.raises(MissingDependencyError, match=r"pip install .*\[gpu\]"):
        choose_nvrtc("sm_90")


@pytest.mark.skipif(not nvrtc.installed(), reason="needs the wheel nvidia-cuda-nvrtc")
def test_source_that_does_not_compile_says_where() -> None:
    with pytest.raises(EngineError, match=r"(?s)could not compile .*--gpu-architecture=sm_90.*kernels\.cu\(2\): error"):
        choose_nvrtc("sm_90").compile("__global__ void f() {\n  no such thing;\n}", ["--gpu-architecture=sm_90"])


@pytest.mark.skipif(sys.platform == "win32", reason="a toolkit of Linux")
def test_the_toolkit_of_the_nvcc_on_the_path_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, compiler = tmp_path / "lib64" / "libnvrtc.so.13", tmp_path / "bin" / "nvcc"
    for file in (library, compiler):
        file.parent.mkdir()
        file.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    assert str(library) in list(nvrtc._candidates())
