"""benchmarks/RESULTS.md and the figures of README.md from the files in benchmarks/results; nothing is written by hand.

`python -m benchmarks.figures.results_page` makes both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.figures.gpu_page import gpu_section
from yolact_deploy.files import write_text
from yolact_deploy.reports.bench import shown_number

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "benchmarks" / "RESULTS.md"
README = ROOT / "README.md"
# Between these lines, README.md is generated.
BEGIN, END = "<!-- figures: made by `make readme` from benchmarks/results -->\n", "<!-- end of the figures -->\n"
_COUNTED = (
    "blocks",
    "blocks_without_work",
    "bytes_read",
    "bytes_written",
    "barriers",
    "longest_thread_steps",
    "steps",
)
_MIB = 2**20
_HEADER = """# Measured

Made from the files in `results/`; do not edit. CPU: `python -m benchmarks.figures.cpu` and `python -m
benchmarks.figures.side_by_side`; GPU: `python -m benchmarks.figures.gpu`. Times are p50 (p90) in milliseconds.
"""
_GPU_NOTE = """
## GPU

Unmeasured: no file of a GPU machine is in `results/`.
"""


def write_pages() -> None:
    """Both, where they are. Raises OutputError."""
    write_text(PAGE, render_page(RESULTS))
    write_text(README, with_figures(README.read_text(encoding="utf-8"), RESULTS))


def render_page(results: Path) -> str:
    """RESULTS.md from the files of a folder."""
    reports = _read(results)
    sections = [_cpu_section(path, report) for path, report in reports if report["kind"] == "cpu"]
    gpus = [gpu_section(path.name, report) for path, report in reports if report["kind"] == "gpu"]
    costs = [_costs_section(report) for _, report in reports if report["kind"] == "kernel-costs"]
    sides = [_side_section(path, report) for path, report in reports if report["kind"] == "side-by-side"]
    return "\n".join([_HEADER, *sections, *sides, *costs, *(gpus or [_GPU_NOTE])])


def with_figures(readme: str, results: Path) -> str:
    """README.md with its figures from the files of a folder: of the first CPU there."""
    reports = [report for _, report in _read(results)]
    cpu = next(report for report in reports if report["kind"] == "cpu")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    side = next((report for report in reports if report["kind"] == "side-by-side"), None)
    measured_on_gpu = any(report["kind"] == "gpu" for report in reports)
    return f"{before}{BEGIN}\n{_readme_figures(cpu, side, measured_on_gpu)}\n{END}{after}"


def _read(results: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(results.glob("*.json"))]


def _readme_figures(cpu: dict[str, Any], side: dict[str, Any] | None, measured_on_gpu: bool) -> str:
    environment, ap = cpu["environment"], cpu["shapes_ap"]
    rows = (
        (
            f"image to {cpu['detections']} full-size masks, ResNet50-550, CPU, {cpu['threads']} threads",
            "end_to_end",
            0,
            2,
        ),
        ("of that, after the network: FastNMS and masks", "detect_and_masks", 1, 1),
    )
    precisions = (
        ("the original", "original_AP"),
        ("ONNX, fp32", "AP"),
        ("ONNX, FP16", "fp16_AP"),
        (f"ONNX, INT8 ({ap['calibrator']}, {ap['calibration_images']} images)", "int8_AP"),
    )
    gpu = "Of a GPU: there as well" if measured_on_gpu else "GPU figures: unmeasured"
    lines = [
        "| | yolact-deploy | PyTorch eager, original's Detect and postprocess | |",
        "|---|---|---|---|",
        *(
            f"| {name} | {cpu[f'{key}_ms']['p50']:.{digits}f} ms | {cpu[f'torch_{key}_ms']['p50']:.{digits}f} ms | "
            f"{cpu[f'{key}_speedup']:.{ratio_digits}f}x |"
            for name, key, digits, ratio_digits in rows
        ),
        "",
        *([] if side is None else [*_side_table(side), "", *_side_origin(side)]),
        f"| shapes val, {ap['images']} images, AP | box | mask |",
        "|---|---|---|",
        *(f"| {name} | {100 * ap['bbox'][key]:.2f} | {100 * ap['segm'][key]:.2f} |" for name, key in precisions),
        "",
        "From [benchmarks/RESULTS.md](benchmarks/RESULTS.md) (`make figures`; median, 480x640 image, "
        f"{environment['cpu']}, {environment['date'][:10]}).",
        f"{gpu}.",
        "",
    ]
    return "\n".join(lines)


def _side_section(path: Path, report: dict[str, Any]) -> str:
    environment = report["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines = [
        f"## Side by side: {environment['cpu']}, {report['threads']} threads ({path.name}, {environment['date'][:10]})",
        "",
        f"{environment['os']}; Python {environment['python']}; {packages}.",
        "",
        "YOLACT-550 ResNet50, one 480x640 image to full-size masks, all in turns in one run. AP is of the same runtime and "
        "precision on the bundled model, shapes val. *NumPy*: the runtime with its own defaults, and the original's Detect "
        "and postprocess ported to NumPy and OpenCV. OpenVINO's own default computes float32 in bfloat16 where the CPU can.",
        "",
        *_side_table(report),
        "",
        "| images per second | loop of calls | `stream()` | |",
        "|---|---|---|---|",
        *(
            f"| {name} | {fps['loop_fps']:.2f} | {fps['stream_fps']:.2f} | {fps['stream_fps'] / fps['loop_fps']:.2f}x |"
            for name, fps in report["stream"].items()
        ),
        "",
        *(f"- {note}" for note in report["notes"]),
        "",
    ]
    return "\n".join(lines)


def _side_origin(report: dict[str, Any]) -> list[str]:
    """That its times are of another run than those around it, and what was said of that run."""
    return [
        "This table is a run of its own (`python -m benchmarks.figures.side_by_side`): compare its times with each other, not "
        f"with those above. {' '.join(note[:1].upper() + note[1:] for note in report['notes'])}".rstrip(),
        "",
    ]


def _side_table(report: dict[str, Any]) -> list[str]:
    def points(ap: float | None) -> str:
        return "" if ap is None else f"{100 * ap:.2f}"

    return [
        "| image to masks, in turns | p50 | over eager | box AP | mask AP |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['ms']['p50']:.0f} ms | {row['over_eager']:.2f}x | {points(row['box_ap'])} | "
            f"{points(row['mask_ap'])} |"
            for row in report["rows"]
        ),
    ]


def _costs_section(report: dict[str, Any]) -> str:
    lines = [
        "## The kernels on the emulator",
        "",
        f"Counts, no times (`make kernel-costs`), for a GPU of {report['multiprocessors']} multiprocessors: YOLACT-550 ResNet50 "
        "with the recorded weights, from heads to masks as bits, and from those to run lengths (rle). A step is a basic block "
        "that a thread enters.",
        "",
        "| scene | detections | kernel | blocks | without work | bytes read | bytes written | barriers | longest | steps |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {scene} | {costs['detections']} | `{kernel}` | "
            + " | ".join(f"{counted[name]:,}" for name in _COUNTED)
            + " |"
            for scene, costs in report["scenes"].items()
            for kernel, counted in costs["kernels"].items()
        ),
        "",
        "Bytes of masks to the host: "
        + ", ".join(f"{costs['mask_bytes_to_host']:,} ({scene})" for scene, costs in report["scenes"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def _cpu_section(path: Path, report: dict[str, Any]) -> str:
    environment = report["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
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
        *_ap_lines(report["shapes_ap"]),
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
        f"{shown_number(low, 1)} and {shown_number(high, 1)} at {100 * run['confidence']:.0f}%. Timing itself takes "
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


def _ap_lines(ap: dict[str, Any]) -> list[str]:
    names = ("original_AP", "AP", "fp16_AP", "int8_AP")
    return [
        f"Shapes val, {ap['images']} images, {ap['date'][:10]}; INT8 calibrated on {ap['calibration_images']} images "
        f"({ap['calibrator']}):",
        "",
        "| AP | original | fp32 | FP16 | INT8 |",
        "|---|---|---|---|---|",
        *(
            f"| {title} | {' | '.join(f'{ap[kind][name]:.4f}' for name in names)} |"
            for title, kind in (("box", "bbox"), ("mask", "segm"))
        ),
        "",
    ]


def _ms(times: dict[str, float]) -> str:
    return f"{times['p50']:.1f} ({times['p90']:.1f})"


if __name__ == "__main__":
    write_pages()
