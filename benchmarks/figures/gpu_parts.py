"""The measuring parts of a visit to a GPU machine, each run by `benchmarks.figures.gpu` in a process of its own."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.figures.gpu_kernels import Settings, batches_of, measure_kernels, measure_preprocess
from benchmarks.figures.gpu_report import Visit, run_part
from benchmarks.figures.gpu_timing import SmClock, copy_bandwidth, device_attribute, l2_bytes
from benchmarks.figures.scenes import scenes
from benchmarks.machine import environment
from yolact_deploy.arrays import Image
from yolact_deploy.cuda import compile as kernels_compile
from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.cuda.launches import ARGUMENTS
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

_THIS = "benchmarks.figures.gpu_parts"
SIZES_HW: Mapping[str, tuple[int, int]] = {
    "550": (550, 550),
    "1080p": (1080, 1920),
    "720p": (720, 1280),
    "4K": (2160, 3840),
}
TOLD_SCENES = ("recorded", "100 full")  # the first to be measured, at every size
_REHEARSED_HW = {"small": (48, 64)}
_WHY_CHARACTERS = 500
_TOOLS = ("nvidia-smi", "nvcc", "ncu", "compute-sanitizer", "g++", "cuobjdump")
_CUDA_BIN = "/usr/local/cuda/bin"
_TOOL_SECONDS = 10
_SHARED_BYTES_OPT_IN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
_FUNCTION_ATTRIBUTES = {"max_threads": 0, "shared_bytes": 1, "local_bytes": 3, "registers": 4}  # CUfunction_attribute
_SHORT_SPIN_S = 0.1  # of a GPU that has just been busy
_REHEARSAL = Settings(copies=2, repeats=1, replays=1, spin_s=0.0)
_NCU_METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__shared_mem_per_block",
    "smsp__sass_inst_executed_op_local.sum",
)
_NCU_SCENES = {"550": ("recorded", "550"), "1080p": ("recorded", "1080p"), "1080p 100 full": ("100 full", "1080p")}
_NCU_REHEARSAL = {"small": ("recorded", "small")}
_NCU_FRAMES = 2  # the first is for warmth


def probe(visit: Visit) -> None:
    """What is there: tools, packages, the GPU, a compiler that makes kernels which it loads."""
    visit.report.keep("environment", environment())
    visit.report.keep("tools", {name: _first_line(name) for name in _TOOLS})
    driver = open_driver(visit.device)
    visit.report.keep("gpu", describe_gpu(driver))
    spec = published_golden_spec()
    found = [f"{nvrtc.name} {nvrtc.path}" for nvrtc in kernels_compile.installed()]
    visit.report.keep("nvrtc", found)
    started = perf_counter()
    specialization, device = specialize(spec), driver.device
    image = kernels_compile.compiled_kernels(specialization, device.architecture, driver_version=device.driver_version)
    seconds = perf_counter() - started
    visit.report.keep("compile", {"seconds": seconds, "cubin_bytes": len(image), "kernels": _resources(driver, image)})
    nbytes = 1 << (16 if visit.rehearsal else 30)
    visit.report.keep("copy_gb_per_s", copy_bandwidth(driver, nbytes=nbytes, repeats=2 if visit.rehearsal else 20))
    visit.report.keep("torch", describe_torch())


def _resources(driver: Driver, image: bytes) -> dict[str, dict[str, int]]:
    """What a block of each kernel takes; a local byte is a spilled one."""
    found: dict[str, dict[str, int]] = {}
    with driver.current():
        module = driver.load_module(image)
        for name in ARGUMENTS:
            function, value = ctypes.c_void_p(driver.get_function(module, name)), ctypes.c_int()
            found[name] = {}
            for resource, attribute in _FUNCTION_ATTRIBUTES.items():
                with contextlib.suppress(AttributeError):  # a stand-in for a driver
                    get = libcuda.load().cuFuncGetAttribute
                    if get(ctypes.byref(value), ctypes.c_int(attribute), function) == 0:
                        found[name][resource] = value.value
        driver.unload_module(module)
    return found


def describe_gpu(driver: Driver) -> dict[str, Any]:
    """The GPU and its driver, as the results name them."""
    device = driver.device
    with driver.current():
        free_bytes, _ = driver.memory_info()
    return {
        "name": device.name,
        "architecture": device.architecture,
        "cuda_driver": ".".join(map(str, device.driver_version)),
        "driver": _asked_of_smi("driver_version", device.index),
        "memory_bytes": device.memory_bytes,
        "free_bytes": free_bytes,
        "multiprocessors": device.multiprocessors,
        "l2_bytes": l2_bytes(device.index),
        "shared_bytes_opt_in": device_attribute(device.index, _SHARED_BYTES_OPT_IN),
        "idle_sm_mhz": SmClock(device.index)(),
        "through": driver.name,
    }


def describe_torch() -> dict[str, Any]:
    """PyTorch, and whether it sees the GPU."""
    import torch

    seen = torch.cuda.is_available()
    return {"version": torch.__version__, "cuda": torch.version.cuda, "sees_a_gpu": seen}


class Rows:
    """Tables of a report, empty at first. A row that can't be measured is told in "not_measured", and costs no other."""

    def __init__(self, visit: Visit, *tables: str) -> None:
        self._report = visit.report
        self._failed = 0
        missing = [row for row in self._report.read().get("not_measured", []) if row["table"] not in tables]
        for name, rows in {**{table: [] for table in tables}, "not_measured": missing}.items():
            self._report.keep(name, rows)

    def add(self, table: str, told: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row."""
        try:
            row = measure()
        except Exception as exc:  # PyTorch's errors and ours share no base
            traceback.print_exc()
            self._failed += 1
            why = " ".join(f"{type(exc).__name__}: {exc}".split())[:_WHY_CHARACTERS]
            self._report.add("not_measured", {"table": table, **told, "why_not": why})
        else:
            self._report.add(table, {**told, **row})

    def end(self) -> None:
        """Raises SystemExit where a row is missing."""
        if self._failed:
            raise SystemExit(f"{self._failed} rows were not measured")


def kernels(visit: Visit) -> None:
    """Preprocessing, then decode to masks at every size in every scene."""
    driver = open_driver(visit.device)
    spec, heads = kept_heads(visit)
    settings, short = Settings(), Settings(spin_s=_SHORT_SPIN_S)
    sizes: Mapping[str, tuple[int, int]] = SIZES_HW
    if visit.rehearsal:
        settings, short, sizes = _REHEARSAL, _REHEARSAL, _REHEARSED_HW
    tables = Rows(visit, "preprocess", "kernels")
    made = scenes(spec, heads)
    others = [] if visit.rehearsal else [name for name in made if name not in TOLD_SCENES]
    for number, (size, image_hw) in enumerate(sizes.items()):
        chosen = short if number else settings
        tables.add("preprocess", {"size": size}, partial(measure_preprocess, driver, spec, image_hw, chosen))
    for names in (TOLD_SCENES[:1] if visit.rehearsal else TOLD_SCENES, others):
        for size, image_hw in sizes.items():
            for scene in names:
                measure = partial(measure_kernels, driver, spec, made[scene](), image_hw, short)
                tables.add("kernels", {"scene": scene, "size": size}, measure)
    tables.end()


def peers(visit: Visit) -> None:
    """Others' ways on the same GPU."""
    from benchmarks.figures import gpu_peers

    spec, heads = kept_heads(visit)
    gpu_peers.measure(visit, spec, scenes(spec, heads), _REHEARSED_HW if visit.rehearsal else SIZES_HW)


def frames(visit: Visit) -> None:
    """Whole frames around PyTorch's network, beside that network alone."""
    import torch

    from benchmarks.figures.gpu_frames import measure_frames
    from benchmarks.figures.networks import HostNetwork, TorchDeviceNetwork, golden_model

    driver = open_driver(visit.device)
    model, photo = golden_model()
    tables = Rows(visit, "frames")
    sizes = _REHEARSED_HW if visit.rehearsal else SIZES_HW
    for name in ("float32", "float16", "float32 with TF32"):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name.endswith("TF32")
        torch.backends.cudnn.benchmark = True
        for size, image_hw in sizes.items():

            def open_network(half: bool = name == "float16") -> Any:
                if visit.torch_device == "cpu":
                    return HostNetwork(model, driver)
                return TorchDeviceNetwork(golden_model()[0], driver, half=half)

            repeats = 1 if visit.rehearsal else 100
            image = enlarged(photo, image_hw)
            spin_s = 0.0 if visit.rehearsal else 0.5
            measure = partial(measure_frames, driver, open_network, image, repeats=repeats, spin_s=spin_s)
            tables.add("frames", {"precision": name, "size": size}, measure)
        if visit.rehearsal:
            break
    tables.end()


def ncu(visit: Visit) -> None:
    """What the hardware counts of each kernel, in the recorded scene at two sizes and a crowded one at 1080p."""
    tool = find_tool("ncu")
    if tool is None:
        visit.report.keep("ncu", {"why_not": "ncu is not installed"})
        return
    kept_heads(visit)  # made where nobody watches
    found: dict[str, Any] = {}
    for name, (scene, size) in (_NCU_REHEARSAL if visit.rehearsal else _NCU_SCENES).items():
        command = [tool, "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(_NCU_METRICS)]
        command += [sys.executable, "-m", _THIS, "ncu-target", *visit.arguments(visit.seconds_left)]
        environment = {**os.environ, "FIGURES_SCENE": scene, "FIGURES_SIZE": size}
        left = max(visit.seconds_left, 1)
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=left)
        if done.returncode != 0 or "ERR_NVGPUCTRPERM" in done.stdout + done.stderr:
            visit.report.keep("ncu", {**found, "why_not": (done.stdout + done.stderr)[-1500:]})
            return
        found[name] = list(_ncu_rows(done.stdout))
        visit.report.keep("ncu", found)


def ncu_target(visit: Visit) -> None:
    """Frames for ncu to look at: no other kernel runs in this process."""
    driver = open_driver(visit.device)
    spec, heads = kept_heads(visit)
    size = {**SIZES_HW, **_REHEARSED_HW}[os.environ["FIGURES_SIZE"]]
    heads = scenes(spec, heads)[os.environ["FIGURES_SCENE"]]()
    with batches_of(driver, spec, heads, size, _NCU_FRAMES):
        pass  # each has run


def _ncu_rows(printed: str) -> Iterator[dict[str, str]]:
    """Of ncu's CSV, which begins somewhere below its own talk, whose first row has the units."""
    lines = printed.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    reader = csv.DictReader(io.StringIO("\n".join(lines[start:])))
    wanted = {"Kernel Name", "Grid Size", "Block Size", *_NCU_METRICS}
    for row in reader:
        if row["Kernel Name"]:  # not of the units
            yield {name: value for name, value in row.items() if name in wanted and value}


def kept_heads(visit: Visit) -> tuple[ModelSpec, HeadTensors]:
    """Heads of the recorded scene: made by PyTorch on the CPU by the first part that needs them, for all others."""
    path = visit.heads_file
    if not path.is_file():
        from benchmarks.figures.networks import recorded_heads

        spec, heads = recorded_heads()
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **heads._asdict())
        partial.replace(path)
        return spec, heads
    with np.load(path) as kept:
        return published_golden_spec(), HeadTensors(*(kept[name] for name in HeadTensors._fields))


def published_golden_spec() -> ModelSpec:
    """Of the recorded network."""
    from exporters.checkpoints.configs import published_spec

    return published_spec("yolact_resnet50")


def enlarged(image: Image, image_hw: tuple[int, int]) -> Image:
    """The image at another size: of every pixel the nearest."""
    rows, columns = (np.arange(to) * source // to for to, source in zip(image_hw, image.shape, strict=False))
    return np.ascontiguousarray(image[rows][:, columns])


def find_tool(name: str) -> str | None:
    """On the path, or where CUDA's toolkit has it."""
    return shutil.which(name) or shutil.which(name, path=_CUDA_BIN)


def _first_line(name: str) -> str | None:
    """Path and version of a tool; None where it is not installed."""
    path = find_tool(name)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], check=False, capture_output=True, text=True, timeout=_TOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{path}: {exc}"
    lines = [line for line in done.stdout.splitlines() if any(letter.isdigit() for letter in line)]
    return f"{path}: {lines[-1].strip() if lines else ''}"


def _asked_of_smi(query: str, index: int) -> str | None:
    path = find_tool("nvidia-smi")
    if path is None:
        return None
    try:
        command = [path, f"--query-gpu={query}", "--format=csv,noheader"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split("\n")
    return lines[index].strip() or None if done.returncode == 0 and index < len(lines) else None


PARTS: Mapping[str, Callable[[Visit], None]] = {
    "probe": probe,
    "kernels": kernels,
    "peers": peers,
    "frames": frames,
    "ncu": ncu,
    "ncu-target": ncu_target,
}

if __name__ == "__main__":
    run_part(dict(PARTS))
