"""The project's own proofs and figures on a GPU, in one command:
`python -m benchmarks.figures.gpu --out benchmarks/results/NAME.json`.

First `tests/gpu`: the kernels against the original's cases, the emulator and compute-sanitizer, the Detector against its CPU
path. Then the timings, only if nothing failed. Makes benchmarks/RESULTS.md from all files in benchmarks/results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks.figures.gpu_kernels import (
    CudaGraphTimer,
    copy_bandwidth,
    measure_frames,
    measure_kernels,
    measure_preprocess,
)
from benchmarks.figures.networks import TorchDeviceNetwork, golden_model
from benchmarks.figures.results_page import RESULTS, ROOT, write_pages
from benchmarks.machine import Watch, environment, read_gpus
from benchmarks.subjects import synthetic_image
from benchmarks.torch_peer import detect_and_assemble
from exporters.network.yolact import Yolact
from yolact_deploy.arrays import Image
from yolact_deploy.cuda.compile import warm
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.files import check_writable, write_json
from yolact_deploy.reference.images import preprocess
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.runtime.protocols import DeviceNetwork, HeadTensors

IMAGE_SIZES_HW = ((550, 550), (720, 1280), (1080, 1920))


def main() -> None:
    """Prove and measure on a GPU, and write the results. Raises SystemExit where there is none to use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--no-proofs", action="store_true", help="time without running tests/gpu first")
    parser.add_argument(
        "--no-sanitizer", action="store_true", help="prove without compute-sanitizer, which takes longest"
    )
    arguments = parser.parse_args()
    check_writable(arguments.out)
    try:
        driver = open_driver(arguments.device)
        report: dict[str, Any] = {
            "kind": "gpu",
            "environment": environment(),
            "gpu": describe_gpu(driver),
            "proofs": None if arguments.no_proofs else run_proofs(sanitizer=not arguments.no_sanitizer),
        }
        if report["proofs"] and not report["proofs"]["passed"]:
            raise SystemExit(f"nothing was proven: {'; '.join(report['proofs']['skipped_because'])}")
        if report["proofs"] and report["proofs"]["failed"]:
            raise SystemExit(
                f"{report['proofs']['failed']} proofs failed: no figure is written.\n{report['proofs']['tail']}"
            )
        watch = Watch()

        def keep(part: dict[str, Any]) -> None:
            report.update(part)
            write_json(arguments.out, report)

        failures = timings(driver, keep)
        keep({"watch": watch.report()})
    except YolactDeployError as exc:
        raise SystemExit(f"error: {exc}") from exc
    if arguments.out.parent == RESULTS:
        write_pages()
    print_summary(report)
    if failures:
        raise SystemExit("not measured:\n" + "\n".join(failures))


def describe_gpu(driver: Driver) -> dict[str, Any]:
    """The GPU and its driver, as the results name them."""
    device = driver.device
    readings = read_gpus()
    return {
        "name": device.name,
        "architecture": device.architecture,
        "cuda_driver": ".".join(map(str, device.driver_version)),
        "driver": readings[device.index].driver if device.index < len(readings) else None,
        "memory_bytes": device.memory_bytes,
        "multiprocessors": device.multiprocessors,
        "through": driver.name,
    }


def run_proofs(*, sanitizer: bool) -> dict[str, Any]:
    """{"passed", "failed", "skipped", "seconds", "skipped_because", "plans", "tail"} of tests/gpu; "plans":
    what each runtime that is here makes of the GPU. Raises SystemExit where they can't be run."""
    started = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", "tests/gpu"]
        command += [] if sanitizer else ["--deselect", "tests/gpu/test_sanitizer.py"]
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        if not results.is_file():
            raise SystemExit(f"tests/gpu could not be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        parsed = ElementTree.parse(results)
    cases = list(parsed.iter("testcase"))
    skipped = [case.find("skipped") for case in cases]
    reasons = sorted({found.get("message", "") for found in skipped if found is not None})
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    return {
        "passed": len(cases) - failed - sum(found is not None for found in skipped),
        "failed": failed,
        "skipped": sum(found is not None for found in skipped),
        "skipped_because": reasons,
        "seconds": perf_counter() - started,
        "plans": {found.get("name", ""): found.get("value", "") for found in parsed.iter("property")},
        "tail": done.stdout[-4000:] if failed else "",
    }


def timings(driver: Driver, keep: Callable[[dict[str, Any]], None]) -> list[str]:
    """Measure part by part; `keep` gets each when it is done. What failed, in words: one part must not cost the others."""
    model, image = golden_model()
    spec = model.spec

    def compiling() -> dict[str, Any]:
        (warmed,) = warm([specialize(spec)], [driver.device.architecture], driver_version=driver.device.driver_version)
        return {"compiler": warmed.compiler, "was_cached": warmed.was_cached, "seconds": warmed.seconds}

    def kernels() -> list[dict[str, Any]]:
        heads = heads_of(model, image, f"cuda:{driver.device.index}")
        return [
            {
                **measure_kernels(driver, spec, heads, image_hw),
                "torch": measure_torch(driver, heads, make_priors(spec), image_hw),
            }
            for image_hw in IMAGE_SIZES_HW
        ]

    def frames(half: bool) -> list[dict[str, Any]]:
        def open_network() -> DeviceNetwork:
            return TorchDeviceNetwork(golden_model()[0], driver, half=half)

        return [measure_frames(driver, open_network, synthetic_image(image_hw)) for image_hw in IMAGE_SIZES_HW]

    parts: dict[str, Callable[[], Any]] = {
        "compile": compiling,
        "copy_gb_per_s": lambda: copy_bandwidth(driver),
        "preprocess": lambda: [measure_preprocess(driver, spec, image_hw) for image_hw in IMAGE_SIZES_HW],
        "kernels": kernels,
        "frames_float32": lambda: frames(half=False),
        "frames_float16": lambda: frames(half=True),
    }
    failures = []
    for name, measure in parts.items():
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            keep({name: measure()})
        except Exception as exc:
            traceback.print_exc()
            failures.append(f"{name}: {type(exc).__name__}: {exc}")
        torch.cuda.empty_cache()
    return failures


def print_summary(report: dict[str, Any]) -> None:
    """The results as a page, in the terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    from benchmarks.figures.results_page import gpu_section

    Console().print(Markdown(gpu_section("this run", report)))


def heads_of(model: Yolact, image: Image, device: str) -> HeadTensors:
    """Heads of one image, on the host."""
    with torch.inference_mode():
        outputs = model.to(device)(torch.from_numpy(preprocess([image], model.spec)).to(device))
    return HeadTensors(*(output.float().cpu().numpy() for output in outputs))


def measure_torch(
    driver: Driver, heads: HeadTensors, priors: Any, image_hw: tuple[int, int], *, repeats: int = 10
) -> dict[str, float]:
    """{"detect_and_masks_us", "peak_bytes"} of the original's way, from device tensors to masks on the device."""
    device = f"cuda:{driver.device.index}"
    loc, conf, mask_coeff, proto = (torch.from_numpy(head[0]).to(device) for head in heads)
    on_device = torch.from_numpy(priors.copy()).to(device)
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def work(_: int) -> None:
        detect_and_assemble(loc, conf, mask_coeff, proto, on_device, image_hw)

    with torch.inference_mode(), torch.cuda.stream(stream), driver.current():
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        timer = CudaGraphTimer(driver, stream.cuda_stream, repeats, capture=False)  # its shapes depend on the data
        us = timer.each([work])
    return {"detect_and_masks_us": us, "peak_bytes": float(torch.cuda.max_memory_allocated(device) - before)}


if __name__ == "__main__":
    main()
