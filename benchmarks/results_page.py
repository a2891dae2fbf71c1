"""benchmarks/RESULTS.md from the files in benchmarks/results; nothing in it is written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results_gpu import gpu_section
from yolact_deploy.files import write_text

_MIB = 2**20
_HEADER = """# Measured

Made from the files in `results/`; do not edit. CPU: `python -m benchmarks.cpu`; GPU: `python -m
benchmarks.gpu`. Times are p50 (p90) in milliseconds.
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
