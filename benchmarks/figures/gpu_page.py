"""One GPU's part of benchmarks/RESULTS.md, from the report of a visit; with nothing but Python, as the visit prints it too."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

_MB = 1e6
_TABLES: tuple[str, ...] = ("memcheck", "racecheck", "initcheck", "synccheck")
_SHOWN_FAILURES = 10


def gpu_section(title: str, report: Mapping[str, Any]) -> str:
    """Markdown; of what is not in the report it says nothing but which parts did not end well."""
    gpu, environment = report.get("gpu", {}), report.get("environment", {})
    rate = report.get("copy_gb_per_s")
    driver = f"driver {gpu['driver']}, " if gpu.get("driver") else ""
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    lines = [
        f"## {gpu.get('name', 'a GPU')} ({title}, {environment.get('date', '')[:10]})",
        "",
        *(["A rehearsal: nothing below was measured on a GPU.", ""] if report.get("kind") != "gpu" else []),
    ]
    if gpu:
        lines += [
            f"{gpu['architecture']}, {gpu['multiprocessors']} multiprocessors, {driver}CUDA {gpu['cuda_driver']}, through "
            f"{gpu['through']}; {packages}.",
            "",
        ]
    if rate is not None:
        lines += [f"A copy on the device moves {rate:.0f} GB/s, read and written.", ""]
    sections: tuple[Callable[[Mapping[str, Any]], list[str]], ...] = (
        _part_lines,
        _proof_lines,
        _scene_lines,
        _kernel_lines,
        _preprocess_lines,
        _peer_lines,
        _frame_lines,
    )
    return "\n".join([*lines, *(line for section in sections for line in section(report))])


def _part_lines(report: Mapping[str, Any]) -> list[str]:
    parts = report.get("parts", {})
    bad = [f"{name} ({part['state']})" for name, part in parts.items() if part["state"] != "done"]
    lines = [f"Parts of the visit that did not end well: {'; '.join(bad)}.", ""] if bad else []
    for row in report.get("not_measured", []):
        told = ", ".join(str(value) for name, value in row.items() if name != "why_not")
        lines += [f"- not measured: {told}: {row['why_not']}"]
    for table in ("preprocess", "kernels"):
        for row in report.get(table, []):
            scene = f"{row['scene']}, " if "scene" in row else ""
            lines += [f"- {table}, {scene}{_size(row['image_hw'])}: {note}" for note in row.get("notes", [])]
    return [*lines, ""] if lines else []


def _proof_lines(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for name in ("smoke", "checks", "detector", *_TABLES):
        found = report.get(name)
        if found is None:
            continue
        claims = found.get("claims", {})
        failed = {claim: why for claim, why in claims.items() if why != "holds"}
        told = f"{len(claims) - len(failed)} of {len(claims)} claims hold"
        rows.append(f"- {name}: {told}{'; ' + found['said'] if found.get('said') else ''}")
        rows += [f"  - {claim}: {why.splitlines()[0]}" for claim, why in list(failed.items())[:_SHOWN_FAILURES]]
    return [*rows, ""] if rows else []


def _scene_lines(report: Mapping[str, Any]) -> list[str]:
    rows = report.get("kernels", [])
    if not rows:
        return []
    eager = {
        (row["scene"], row["size"]): row["us"]
        for row in report.get("peers", [])
        if row["peer"].startswith("the original's") and row["peer"].endswith("eager") and "us" in row
    }
    lines = [
        "Head tensors on the device to detections in pinned memory and bit-packed masks on the device, batch 1, YOLACT-550 "
        "ResNet50, as a CUDA graph; cold: over copies that hold more than twice the L2 cache. Torch: the original's Detect and "
        "postprocess in PyTorch eager, over the cold graph.",
        "",
        "| image | scene | candidates | detections | cold, µs | warm, µs | seen by the host, µs | masks to the host, µs | "
        "SM, MHz | torch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        torch_us = eager.get((row["scene"], row["size"]))
        ratio = "" if torch_us is None else f"{torch_us / row['cold_us']:.0f}x"
        lines.append(
            f"| {_size(row['image_hw'])} | {row['scene']} | {row['candidates']} | {row['detections']} | {row['cold_us']:.1f} | "
            f"{row['warm_us']:.1f} | {row['call_us']:.1f} | {row['mask_copy_us']:.1f} ({row['mask_copy_bytes'] / _MB:.1f} MB) | "
            f"{_mhz(row)} | {ratio} |"
        )
    return [*lines, ""]


def _kernel_lines(report: Mapping[str, Any]) -> list[str]:
    rows = report.get("kernels", [])
    if not rows:
        return []
    lines = ["| image | scene | kernel | blocks | cold, µs | warm, µs |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines += [
            f"| {_size(row['image_hw'])} | {row['scene']} | `{kernel['kernel']}` | {kernel['blocks']:,} | "
            f"{kernel['cold_us']:.2f} | {kernel['warm_us']:.2f} |"
            for kernel in row["kernels"]
        ]
    return [*lines, ""]


def _preprocess_lines(report: Mapping[str, Any]) -> list[str]:
    rows = report.get("preprocess", [])
    if not rows:
        return []
    lines = [
        "| preprocessing | cold, µs | warm, µs | MB at least | GB/s, cold | SM, MHz |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {_size(row['image_hw'])} to {row['input_size']}² | {row['cold_us']:.2f} | {row['warm_us']:.2f} | "
        f"{row['least_bytes'] / _MB:.2f} | {row['least_bytes'] / row['cold_us'] / 1e3:.0f} | {_mhz(row)} |"
        for row in rows
    ]
    return [*lines, ""]


def _peer_lines(report: Mapping[str, Any]) -> list[str]:
    rows = report.get("peers", [])
    if not rows:
        return []
    lines = ["| peer, PyTorch on the same GPU | scene | image | µs | timed as |", "|---|---|---|---|---|"]
    for row in rows:
        scene, image = row.get("scene", ""), _size(row["image_hw"]) if "image_hw" in row else ""
        if "us" not in row:
            lines.append(f"| {row['peer']} | {scene} | {image} | | not: {row['why_not'].splitlines()[0][:120]} |")
        else:
            lines.append(f"| {row['peer']} | {scene} | {image} | {row['us']:.0f} | {row['method']} |")
    return [*lines, ""]


def _frame_lines(report: Mapping[str, Any]) -> list[str]:
    rows = report.get("frames", [])
    if not rows:
        return []
    lines = [
        "Whole frames, image in host memory to detections and bit-packed masks in host memory, p50 (p90) in ms. Overhead: "
        "beyond the bare network and the copies. Images per second with two batches in flight.",
        "",
        "| network | image | detections | frame | bare network | copies | overhead | images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        frame = row["frame_ms"]
        lines.append(
            f"| {row['network']}, {row['precision']} | {_size(row['image_hw'])} | {row['detections']} | {frame['p50']:.3f} "
            f"({frame['p90']:.3f}) | {row['bare_network_ms']:.3f} | {row['floor_ms'] - row['bare_network_ms']:.3f} | "
            f"{100 * row['overhead']:.0f}% | {row['throughput_fps']:.0f} |"
        )
    return [*lines, ""]


def _mhz(row: Mapping[str, Any]) -> str:
    return f"{statistics.median(row['sm_mhz']):.0f}" if row.get("sm_mhz") else "not told"


def _size(image_hw: list[int]) -> str:
    return f"{image_hw[1]}x{image_hw[0]}"
