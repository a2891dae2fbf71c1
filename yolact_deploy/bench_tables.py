"""Benchmarks as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

_STAGES = ("preprocess", "network", "detect", "masks")
_COLUMNS = ("p50", "p90", "p95", "p99", "mean", "max")
_MIB = 2**20
_VERDICT_STYLES = {"passed": "green", "regressed": "red", "inconclusive": "yellow"}


def bench_tables(report: dict[str, Any]) -> Iterator[Table]:
    """Latency per artifact, then what else was measured."""
    for run in report["runs"]:
        yield _latency_table(run, report)
    for swept in report.get("sweep", ()):
        yield _batch_table(swept)
        yield _work_table(swept)
    for layers in report.get("layers", ()):
        yield _layers_table(layers)
    if "peers" in report:
        yield _peers_table(report["peers"])
    for scenario in report.get("scenarios", ()):
        yield _scenario_table(scenario)
    if "gate" in report:
        yield _gate_table(report["gate"])


def _latency_table(run: dict[str, Any], report: dict[str, Any]) -> Table:
    """Milliseconds per batch, from images in host memory to full-size masks in host memory."""
    environment, options = report["environment"], report["options"]
    role = " (the baseline's)" if run.get("role") == "baseline" else ""
    table = _table(f"latency of {run['artifact']}{role}, ms per batch of {run['batch']}", "stage", *_COLUMNS)
    for stage, times in {"end to end": run["latency_ms"], **run["stages_ms"]}.items():
        whole = stage == "end to end"
        values = (f"{times[column]:.2f}" for column in _COLUMNS)
        table.add_row(stage, *values, style="bold" if whole else None, end_section=whole)
    low, high = run["latency_ci_ms"]["p50"]
    table.caption = (
        f"p50 between {_bound(low)} and {_bound(high)} ({100 * run['confidence']:.0f}%), varying by "
        f"{100 * run['variation']:.1f}%; {run['throughput_fps']:.1f} images per second; peak memory "
        f"{run['peak_memory']['host_bytes'] / _MIB:.0f} MiB; {run['backend']}, {run['precision'] or 'unknown precision'}, "
        f"{options['threads']} threads; {environment['cpu']}, {environment['cores']} cores; "
        f"{run['latency_ms']['n']} iterations after {options['warmup']}; {_listed_sizes(options['image_sizes_hw'])}; "
        f"no transfers, no CUDA graph; timing itself takes {1e6 * report['harness_overhead_ms']:.0f} ns per stage"
    )
    return table


def _batch_table(swept: dict[str, Any]) -> Table:
    table = _table(f"{swept['artifact']}: batch size, p50 in ms per batch", "batch", "all", *_STAGES, "images/s")
    for point in swept["batch"]:
        stages = (f"{point['stages_ms'][stage]['p50']:.2f}" for stage in _STAGES)
        latency = f"{point['latency_ms']['p50']:.2f}"
        table.add_row(str(point["batch"]), latency, *stages, f"{point['throughput_fps']:.1f}")
    table.caption = " ".join(swept["notes"])
    return table


def _work_table(swept: dict[str, Any]) -> Table:
    stages = ("preprocess", "detect", "masks")
    title = f"{swept['artifact']}: image size and detections, p50 in ms without the network"
    table = _table(title, "image", "detections", *stages)
    for point in swept["work"]:
        height, width = point["image_hw"]
        values = (f"{point['stages_ms'][stage]['p50']:.2f}" for stage in stages)
        table.add_row(f"{width}x{height}", str(point["detections"]), *values)
    return table


def _layers_table(layers: dict[str, Any]) -> Table:
    table = _table(f"{layers['artifact']}: the network by module, ms per batch", "module", "nodes", "p50", "share")
    for row in layers["modules"]:
        table.add_row(row["module"], str(row["nodes"]), f"{row['ms']:.3f}", f"{100 * row['share']:.1f}%")
    table.caption = f"{layers['network_ms']:.2f} ms in all, by the engine's own profiler over {layers['runs']} runs."
    return table


def _peers_table(peers: dict[str, Any]) -> Table:
    table = _table(f"peers of {peers['artifact']}, p50 (p90) in ms", "what", "who", "time", "ours", "ratio")
    for row in peers["rows"]:
        theirs, ours = (f"{row[side]['p50']:.2f} ({row[side]['p90']:.2f})" for side in ("peer_ms", "ours_ms"))
        table.add_row(row["what"], escape(row["peer"]), theirs, ours, f"{row['ratio']:.2f}x")
    table.caption = " ".join(("ratio: the peer's p50 over ours.", *peers["notes"]))
    return table


def _scenario_table(scenario: dict[str, Any]) -> Table:
    table = _table(f"LoadGen {scenario['scenario']} of {scenario['artifact']}", "figure", "value")
    for name, value in scenario["figures"].items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    table.caption = scenario["note"]
    return table


def _gate_table(gate: dict[str, Any]) -> Table:
    title = f"against {gate['baseline']}, at most {100 * gate['max_regression']:g}% slower"
    table = _table(title, "artifact", "new / old", "99% between", "verdict")
    for found in gate["judgements"]:
        low, high = found["interval"]
        style = _VERDICT_STYLES[found["verdict"]]
        table.add_row(
            escape(found["artifact"]),
            f"{found['ratio']:.3f}",
            f"{_bound(low, 3)} and {_bound(high, 3)}",
            f"[{style}]{found['verdict']}[/] ({found['method']}): {found['reason']}",
        )
    if gate["attempts"] > 1:
        table.caption = f"measured {gate['attempts']} times: a regression must show every time."
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="left" if column in ("verdict", "who") else "right", overflow="fold")
    return table


def _bound(value: float | None, digits: int = 2) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _listed_sizes(sizes_hw: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{width}x{height}" for height, width in sizes_hw[:4])
    return f"images of {shown}{', ...' if len(sizes_hw) > 4 else ''}"
