"""The part of RESULTS.md that tells of one GPU."""

from __future__ import annotations

import math
from typing import Any

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
