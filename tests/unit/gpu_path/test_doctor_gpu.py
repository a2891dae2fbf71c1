"""`doctor` where there is a GPU (the stand-in's), and `doctor --warm` where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.emulator import standin
from tests.emulator.expectations import SMALL
from tests.goldens import SHAPES_SPEC
from yolact_deploy.cuda import compile as nvrtc

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not nvrtc.installed(), reason="needs the wheel nvidia-cuda-nvrtc")


def test_a_gpu_its_driver_compiler_and_kept_kernels_are_shown(tmp_path: Path) -> None:
    environment = standin.environment(cache_dir=tmp_path, specializations=[SMALL], devices=2, memory_mb=1024)
    cuda = doctor(environment)["cuda"]
    assert cuda["driver"] == "13.0"
    assert cuda["package"].startswith("cuda-bindings ")
    assert cuda["gpus"][1] == {
        "device": "cuda:1",
        "name": "Emulated GPU 1",
        "architecture": "sm_90",
        "memory_bytes": 1 << 30,
        "multiprocessors": 2,
    }
    assert cuda["nvrtc"]
    assert cuda["kernel_cache"]["path"] == str(tmp_path / "kernels")
    assert (cuda["kernel_cache"]["entries"], cuda["kernel_cache"]["writable"]) == (1, True)
    assert cuda["problem"] is None


def test_a_gpu_that_can_not_be_used_is_shown_with_the_reason(tmp_path: Path) -> None:
    report = doctor(standin.environment(cache_dir=tmp_path, compute_capability="70"))
    assert report["gpus"] == ["Emulated GPU 0"]
    assert "compute capability 7.0" in report["cuda"]["problem"]


@pytest.mark.slow
def test_warming_compiles_for_the_gpus_here(tmp_path: Path) -> None:
    environment = standin.environment(cache_dir=tmp_path, compute_capability="86", devices=2)
    report = doctor(environment, "--warm", str(SHAPES_SPEC))
    assert [(e["architecture"], e["nms"], e["was_cached"]) for e in report["warmed"]] == [
        ("sm_86", "fast", False),
        ("sm_86", "cross_class", False),
    ]
    assert report["cuda"]["kernel_cache"]["entries"] == 2


@pytest.mark.slow
def test_warming_for_targets_needs_no_gpu_and_fills_the_cache_once(tmp_path: Path) -> None:
    environment = {**os.environ, "YOLACT_DEPLOY_CACHE": str(tmp_path)}
    for was_cached in (False, True):
        warmed = doctor(environment, "--warm", str(SHAPES_SPEC), "--target", "sm89")["warmed"]
        assert [(e["architecture"], e["was_cached"]) for e in warmed] == [("sm_89", was_cached)] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "sm86"], "add --warm"),
        (["--warm", "--target", "sm61x"], "not a GPU architecture"),
        (["--warm", "--target", "sm35"], "can't compile for sm_35"),
        (["--warm"], "no GPU is visible here"),
    ],
)
def test_what_can_not_be_warmed_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    environment = standin.environment(cache_dir=tmp_path, devices=0)
    done = run(environment, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.slow
def test_a_cache_that_can_not_be_filled_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = run(
        {**os.environ, "YOLACT_DEPLOY_CACHE": str(tmp_path / "file")}, "--warm", str(SHAPES_SPEC), "--target", "sm86"
    )
    assert done.returncode == 2
    assert "can't be kept" in done.stderr


def doctor(environment: dict[str, str], *arguments: str) -> Any:
    done = run(environment, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from yolact_deploy.cli import main; main()", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
