"""benchmarks/RESULTS.md from the files in benchmarks/results; nothing in it is written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from yolact_deploy.files import write_text

_MIB = 2**20
_HEADER = """# Measured

Made from the files in `results/`; do not edit. CPU: `python -m benchmarks.figures.cpu`; GPU: `python -m
benchmarks.figures.gpu`. Times are p50 (p90) in milliseconds.
"""
_GPU_NOTE = """
## GPU

Unmeasured: no file of a GPU machine is in `results/`.
"""


def write_page(results: Path, page: Path) -> None:
    reports = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(results.glob("*.json"))]
    sections = [_cpu_section(path, report) for path, report in reports if report["kind"] == "cpu"]
    gpus = [gpu_section(path.name, report) for path, report in reports if report["kind"] == "gpu"]
    write_text(page, "\n".join([_HEADER, *sections, *(gpus or [_GPU_NOTE])]))


def _cpu_section(path: Path, report: dict[str, Any]) -> str:
    environment = report["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    ap = report["shapes_ap"]
    rows = [
        ("end to end", report["end_to_end_ms"], report["torch_end_to_end_ms"], report["end_to_end_speedup"]),
        (
            "Detect + masks",
            report["detect_and_masks_ms"],
            report["torch_detect_and_masks_ms"],
            report["detect_and_masks_speedup"],
        ),
    ]
    lines = [
        f"## {environment['cpu']}, {report['threads']} threads ({path.name}, {environment['date'][:10]})",
        "",
        f"{environment['os']}; Python {environment['python']}; {packages}.",
        "",
        f"YOLACT-550 ResNet50, batch 1, 480x640 image to {report['detections']} full-size masks; PyTorch eager with the "
        "original's Detect and postprocess in torch, in turns with ours:",
        "",
        "| | yolact-deploy (onnxruntime) | PyTorch | speedup |",
        "|---|---|---|---|",
        *(f"| {name} | {_ms(ours)} | {_ms(peer)} | {ratio:.2f}x |" for name, ours, peer, ratio in rows),
        "",
        *_stage_lines(report.get("bench")),
        *_sweep_lines(report.get("sweep")),
        f"Shapes val, {ap['images']} images, AP of the exported ONNX (of the original): "
        f"box {ap['bbox']['AP']:.4f} ({ap['bbox']['original_AP']:.4f}), "
        f"mask {ap['segm']['AP']:.4f} ({ap['segm']['original_AP']:.4f}).",
        "",
        f"`yolact-deploy --help`: {report['help_cpu_ms']['p50']:.0f} ms of CPU time.",
    ]
    return "\n".join(lines)


def _stage_lines(bench: dict[str, Any] | None) -> list[str]:
    if bench is None:
        return []
    run = bench["runs"][0]
    stages = ", ".join(f"{stage} {_ms(times)}" for stage, times in run["stages_ms"].items())
    low, high = run["latency_ci_ms"]["p50"]
    return [
        f"Ours by stage, alone in the process: {stages}; end to end {_ms(run['latency_ms'])}, the median between "
        f"{_bound(low)} and {_bound(high)} at {100 * run['confidence']:.0f}%. Timing itself takes "
        f"{1e6 * bench['harness_overhead_ms']:.0f} ns per stage; peak memory "
        f"{run['peak_memory']['host_bytes'] / _MIB:.0f} MiB.",
        "",
        *(f"- {note}" for note in bench["notes"]),
        "",
    ]


def _sweep_lines(sweep: dict[str, Any] | None) -> list[str]:
    if sweep is None:
        return []
    batches = ", ".join(f"{point['batch']}: {point['throughput_fps']:.1f}" for point in sweep["batch"])
    lines = [
        f"Images per second by batch: {batches}.",
        "",
        "| image | detections | Detect | masks |",
        "|---|---|---|---|",
    ]
    for point in sweep["work"]:
        height, width = point["image_hw"]
        detect, masks = (_ms(point["stages_ms"][stage]) for stage in ("detect", "masks"))
        lines.append(f"| {width}x{height} | {point['detections']} | {detect} | {masks} |")
    return [*lines, ""]


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"


def _ms(times: dict[str, float]) -> str:
    return f"{times['p50']:.1f} ({times['p90']:.1f})"


_MB = 1e6


def gpu_section(title: str, report: dict[str, Any]) -> str:
    gpu, environment = report["gpu"], report["environment"]
    copy_rate = report.get("copy_gb_per_s", math.nan)
    driver = f"driver {gpu['driver']}, " if gpu["driver"] else ""
    lines = [
        f"## {gpu['name']} ({title}, {environment['date'][:10]})",
        "",
        f"{gpu['architecture']}, {driver}CUDA {gpu['cuda_driver']}, through {gpu['through']}; "
        f"a copy on the device moves {copy_rate:.0f} GB/s, read and written.",
        "",
        *_proof_lines(report["proofs"]),
        *_kernel_lines(report.get("kernels", []), copy_rate),
        *_preprocess_lines(report.get("preprocess", []), copy_rate),
        *_frame_lines([*report.get("frames_float32", ()), *report.get("frames_float16", ())]),
        *(f"- {note}" for note in report.get("watch", {}).get("gpu_notes", ())),
    ]
    return "\n".join(lines)


def _proof_lines(proofs: dict[str, Any] | None) -> list[str]:
    if proofs is None:
        return ["Timed without running `tests/gpu`.", ""]
    skipped = f" ({'; '.join(proofs['skipped_because'])})" if proofs["skipped"] else ""
    return [
        f"`tests/gpu`: {proofs['passed']} passed, {proofs['failed']} failed, {proofs['skipped']} skipped{skipped}.",
        "",
    ]


def _kernel_lines(measured: list[dict[str, Any]], copy_gb_per_s: float) -> list[str]:
    if not measured:
        return []
    lines = [
        "Head tensors on the device to detections in pinned memory and bit-packed masks on the device, batch 1, YOLACT-550 "
        "ResNet50, in a CUDA graph over inputs that no cache holds. Floor: the bytes at the copy's rate.",
        "",
        "| image | detections | graph, µs | seen by the host, µs | masks to the host, µs | torch, µs | torch / graph |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in measured:
        torch_us = one["torch"]["detect_and_masks_us"]
        lines.append(
            f"| {_size(one['image_hw'])} | {one['detections']} | {one['frame_us']:.1f} | {one['frame_call_us']:.1f} | "
            f"{one['mask_copy_us']:.1f} ({one['mask_copy_bytes'] / _MB:.1f} MB) | {torch_us:.0f} | "
            f"{torch_us / one['frame_us']:.0f}x |"
        )
    lines += ["", "| image | kernel | µs | MB | GB/s | floor, µs |", "|---|---|---|---|---|---|"]
    for one in measured:
        lines += [_kernel_row(_size(one["image_hw"]), row["kernel"], row, copy_gb_per_s) for row in one["kernels"]]
    return [*lines, ""]


def _preprocess_lines(measured: list[dict[str, Any]], copy_gb_per_s: float) -> list[str]:
    if not measured:
        return []
    rows = [
        _kernel_row(_size(one["image_hw"]), f"preprocess to {one['input_size']}²", one, copy_gb_per_s)
        for one in measured
    ]
    return ["| image | kernel | µs | MB | GB/s | floor, µs |", "|---|---|---|---|---|---|", *rows, ""]


def _frame_lines(frames: list[dict[str, Any]]) -> list[str]:
    if not frames:
        return []
    lines = [
        "Whole frames, image in host memory to detections and bit-packed masks in host memory, p50 (p90) in ms. Overhead: "
        "beyond the bare network and the copies. Images per second with two batches in flight.",
        "",
        "| network | image | frame | bare network | copies | overhead | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in frames:
        frame = one["frame_ms"]
        lines.append(
            f"| {one['network']} | {_size(one['image_hw'])} | {frame['p50']:.3f} ({frame['p90']:.3f}) | "
            f"{one['bare_network_ms']:.3f} | {one['floor_ms'] - one['bare_network_ms']:.3f} | {100 * one['overhead']:.0f}% | "
            f"{one['throughput_fps']:.0f} |"
        )
    return [*lines, ""]


def _kernel_row(image: str, kernel: str, row: dict[str, Any], copy_gb_per_s: float) -> str:
    floor_us = row["bytes"] / copy_gb_per_s / 1e3
    return (
        f"| {image} | {kernel} | {row['us']:.2f} | {row['bytes'] / _MB:.2f} | {row['gb_per_s']:.0f} | {floor_us:.2f} |"
    )


def _size(image_hw: list[int]) -> str:
    return f"{image_hw[1]}x{image_hw[0]}"
