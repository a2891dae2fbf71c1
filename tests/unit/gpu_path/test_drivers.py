"""Both drivers, unchanged, on the stand-in for libcuda: the claims are `driver_scenarios`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.emulator import driver_scenarios, standin
from tests.emulator.expectations import SMALL
from yolact_deploy.cuda import compile as nvrtc
from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers import opening as drivers
from yolact_deploy.cuda.drivers.bindings import bindings_fit, caller
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.cuda.drivers.libcuda import CudaContextState
from yolact_deploy.errors import DeviceError, MissingDependencyError

ROOT = Path(__file__).parents[3]
DRIVERS = ("cuda-bindings", "pycuda")
TURING = GpuDevice(0, "T4", (7, 5), driver_version=(12, 4), memory_bytes=1 << 34, multiprocessors=40)
ALONE = (driver_scenarios.FATAL, driver_scenarios.UNPLACED)  # claims in processes of their own

pytestmark = pytest.mark.skipif(not nvrtc.installed(), reason="needs the wheel nvidia-cuda-nvrtc")


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    together = tuple(claim for claim in driver_scenarios.SCENARIOS if claim not in ALONE)
    return {
        claim: outcome
        for claims in (together, *((claim,) for claim in ALONE))
        for claim, outcome in examine(claims, request.param, tmp_path_factory.mktemp("cache")).items()
    }


@pytest.mark.parametrize("outcomes", DRIVERS, indirect=True)
@pytest.mark.parametrize("claim", driver_scenarios.SCENARIOS)
def test_claim(claim: str, outcomes: dict[str, str]) -> None:
    assert outcomes[claim] == "holds"


@pytest.mark.parametrize("driver", DRIVERS)
def test_claims_hold_where_work_runs_at_once(driver: str, tmp_path: Path) -> None:
    claims = (
        "kernels_give_the_references_detections_and_masks",
        "copies_are_ordered_by_events_between_streams",
        "work_is_timed_behind_a_gate_that_opens_when_all_of_it_is_enqueued",
    )
    assert set(examine(claims, driver, tmp_path, eager=True).values()) == {"holds"}


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a GPU that there is not": (
        {"devices": 2},
        "open_driver(2)",
        "no cuda:2; there is cuda:0 (Emulated GPU 0), cuda:1",
    ),
    "no GPU": ({"devices": 0}, "open_driver()", "does not start: CUDA_ERROR_NO_DEVICE"),
    "a driver that does not start": ({"init_result": 999}, "open_driver()", "CUDA_ERROR_UNKNOWN"),
    "a GPU too old": ({"compute_capability": "70"}, "open_driver()", "compute capability 7.0, the kernels want 7.5"),
    "a negative index": ({}, "open_driver(-1)", "no cuda:-1"),
    "a package that there is not": ({}, "open_driver(prefer='nvcc')", "prefer is 'nvcc', want cuda-bindings or pycuda"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_is_refused_in_words(case: str, tmp_path: Path) -> None:
    options, call, said = REFUSALS[case]
    code = (
        "from yolact_deploy.cuda.drivers.opening import open_driver, visible_devices\n"
        "from yolact_deploy.errors import DeviceError\n"
        f"try: {call}\n"
        "except DeviceError as exc: print(exc)\n"
        "visible_devices()"
    )
    done = run(["-c", code], standin.environment(cache_dir=tmp_path, **options))
    assert said in done.stdout, done.stderr[-2000:]


def test_a_driver_older_than_the_package_is_refused(tmp_path: Path) -> None:
    environment = standin.environment(cache_dir=tmp_path, driver_version=(11, 8))
    code = "from yolact_deploy.cuda.drivers.opening import open_driver; open_driver()"
    said = run(["-c", code], environment).stderr
    assert "is made for CUDA 11.8" in said
    assert "cuda-bindings<12" in said


def test_packages_serve_drivers_of_their_own_cuda_and_newer() -> None:
    assert bindings_fit("12.9.1", (13, 0))
    assert bindings_fit("13.0.3", (13, 1))
    assert not bindings_fit("13.0.3", (12, 9))


def test_a_pycuda_that_can_not_be_loaded_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: GpuDevice) -> None:
        raise ImportError("undefined symbol: cuNew")

    monkeypatch.setattr(drivers, "check_gpu", lambda *_: ("pycuda", TURING))
    monkeypatch.setattr(drivers, "PycudaDriver", fail)
    with pytest.raises(
        DeviceError, match=r"pycuda is installed but can't be loaded: undefined symbol: cuNew.*build it again"
    ):
        drivers.open_driver()


def test_a_function_that_the_driver_lacks_is_said_with_its_remedy() -> None:
    def absent() -> None:
        raise RuntimeError('Function "cuNew" not found')

    with pytest.raises(DeviceError, match=r'"cuNew" not found.*CUDA 12\.4.*"cuda-bindings<13"'):
        caller(TURING, CudaContextState())("timing", absent)


def test_no_driver_library_is_said_and_shows_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libcuda, "NVIDIA_DRIVER", "libcuda-of-nobody.so")
    libcuda.load.cache_clear()
    try:
        with pytest.raises(DeviceError, match=r"no NVIDIA driver: libcuda-of-nobody\.so can't be loaded.*Install"):
            libcuda.devices()
        assert drivers.visible_devices() == ()
    finally:
        libcuda.load.cache_clear()


@pytest.mark.parametrize(("wanted", "extra"), [(None, "gpu"), ("cuda-bindings", "gpu"), ("pycuda", "pycuda")])
def test_no_package_names_the_extra(wanted: str | None, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_is_installed", lambda package: False)
    monkeypatch.delenv(drivers.DRIVER_VARIABLE, raising=False)
    with pytest.raises(MissingDependencyError, match=rf"pip install .*\[{extra}\]"):
        drivers.open_driver(prefer=wanted)


def test_cuda_bindings_are_preferred_and_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_is_installed", lambda package: True)
    monkeypatch.delenv(drivers.DRIVER_VARIABLE, raising=False)
    assert drivers.choose_package() == "cuda-bindings"
    assert drivers.choose_package("pycuda") == "pycuda"
    monkeypatch.setenv(drivers.DRIVER_VARIABLE, "pycuda")
    assert drivers.choose_package() == "pycuda"
    monkeypatch.setenv(drivers.DRIVER_VARIABLE, "opencl")
    with pytest.raises(DeviceError, match="YOLACT_DEPLOY_CUDA_DRIVER is 'opencl'"):
        drivers.choose_package()


def test_pycuda_serves_a_driver_that_is_too_old_for_cuda_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_is_installed", lambda package: True)
    monkeypatch.setattr(drivers, "bindings_version", lambda: "13.0.3")
    monkeypatch.delenv(drivers.DRIVER_VARIABLE, raising=False)
    assert drivers.choose_package(driver_version=(13, 0)) == "cuda-bindings"
    assert drivers.choose_package(driver_version=(12, 4)) == "pycuda"
    assert drivers.choose_package("cuda-bindings", (12, 4)) == "cuda-bindings"  # which check_gpu refuses


def examine(claims: tuple[str, ...], driver: str, cache_dir: Path, *, eager: bool = False) -> dict[str, str]:
    environment = standin.environment(
        cache_dir=cache_dir,
        specializations=[] if driver_scenarios.UNPLACED in claims else [SMALL],
        driver=standin.installed_driver(driver),
        devices=2,
        memory_mb=64,
        eager=eager,
    )
    done = run(["-m", "tests.emulator.driver_scenarios", *claims], environment)
    assert done.stderr == ""
    assert done.returncode == 0
    found: dict[str, str] = json.loads(done.stdout)
    return found


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
