"""Benchmarks as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.text import Text

from yolact_deploy.reports.tables import MIB, Table, grid
from yolact_deploy.text import counted

_COLUMNS = ("p50", "p90", "p95", "p99", "mean", "max")
_OTHER_WHOLES = {"call_ms": "masks packed", "staged_ms": "by stage, no graph", "device_ms": "stages on the GPU"}
_VERDICT_STYLES = {
    "passed": "green", "regressed": "red", "faster": "green", "slower": "red", "inconclusive": "yellow",
}  # fmt: skip


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


def shown_ms(value: float) -> str:
    """Milliseconds with two decimals; with three below 1, where kernels of a GPU are."""
    return f"{value:.{2 if value >= 1 else 3}f}"


def _latency_table(run: dict[str, Any], report: dict[str, Any]) -> Table:
    """Milliseconds per batch, from images in host memory to full-size masks in host memory. On a GPU, where the stages are
    parts of another call than that, what else was timed stands above them."""
    environment, options = report["environment"], report["options"]
    role = " (the baseline's)" if run.get("role") == "baseline" else ""
    table = grid(f"latency of {run['artifact']}{role}, ms per batch of {run['batch']}", "stage", *_right(_COLUMNS))
    wholes = {"end to end": run["latency_ms"]}
    wholes |= {name: run[key] for key, name in _OTHER_WHOLES.items() if key in run}
    for number, (name, times) in enumerate(wholes.items(), start=1):
        values = (shown_ms(times[column]) for column in _COLUMNS)
        table.add_row(name, *values, style="bold" if number == 1 else "")
    for stage, times in run["stages_ms"].items():
        table.add_row(stage, *(shown_ms(times[column]) for column in _COLUMNS))
    low, high = run["latency_ci_ms"]["p50"]
    overhead_ns = 1e6 * run.get("harness_overhead_ms", report["harness_overhead_ms"])
    table.remarks.extend(
        (
            f"p50 between {shown_number(low)} and {shown_number(high)} ({100 * run['confidence']:.0f}%), varying by "
            f"{100 * run['variation']:.1f}%; {run['throughput_fps']:.1f} images per second"
            f"{_streamed(run.get('stream'))}; peak memory {_memory(run['peak_memory'])}",
            f"{run['backend']}, {run['precision'] or 'unknown precision'}, {options['threads']} threads; "
            f"{environment['cpu']}, {environment['cores']} cores; {run['latency_ms']['n']} iterations after "
            f"{options['warmup']}; {_listed_sizes(options['image_sizes_hw'])}",
            f"clock: {run['clock']}; transfers {run['transfers']}; {_graphs(run)}; waiting: {run['wait']}; timing itself takes "
            f"{overhead_ns:.0f} ns per stage",
        )
    )
    return table


def _streamed(stream: dict[str, Any] | None) -> str:
    if stream is None:
        return ""
    streams = counted(stream["streams"], "stream")
    rate = f"{stream['throughput_fps']:.1f} through {streams}"
    return f" one call after another, {rate} with {stream['in_flight']} batches in flight"


def _memory(peak: dict[str, Any]) -> str:
    host = f"{peak['host_bytes'] / MIB:.0f} MiB"
    if "device_bytes" not in peak:
        return host
    device = "unmeasured" if peak["device_bytes"] is None else f"{peak['device_bytes'] / MIB:.0f} MiB"
    return f"{host} on the host, {device} on the GPU"


def _graphs(run: dict[str, Any]) -> str:
    if not run["graph_stages"]:
        return "no CUDA graph"
    left_out = ", ".join(stage for stage in run["stages_ms"] if stage not in (*run["graph_stages"], "host"))
    return f"CUDA graph of all but {left_out}" if left_out else "CUDA graph"


def _batch_table(swept: dict[str, Any]) -> Table:
    stages = list(swept["batch"][0]["stages_ms"]) if swept["batch"] else []
    table = grid(f"{swept['artifact']}: batch size, p50 in ms per batch", "batch", ">all", *_right(stages), ">images/s")
    for point in swept["batch"]:
        values = (shown_ms(point["stages_ms"][stage]["p50"]) for stage in stages)
        latency = f"{point['latency_ms']['p50']:.2f}"
        table.add_row(str(point["batch"]), latency, *values, f"{point['throughput_fps']:.1f}")
    table.remarks.extend(swept["notes"])
    return table


def _work_table(swept: dict[str, Any]) -> Table:
    """On a GPU with the whole, network included."""
    points = swept["work"]
    stages = list(points[0]["stages_ms"]) if points else []
    wholes = ["all"] if points and "latency_ms" in points[0] else []
    title = f"{swept['artifact']}: image size and detections, p50 in ms without the network"
    table = grid(title, "image", ">detections", *_right([*wholes, *stages]))
    for point in points:
        height, width = point["image_hw"]
        times = [*([point["latency_ms"]] if wholes else []), *(point["stages_ms"][stage] for stage in stages)]
        values = (shown_ms(each["p50"]) for each in times)
        table.add_row(f"{width}x{height}", str(point["detections"]), *values)
    if wholes:
        table.remarks.append("all: end to end, the network included.")
    return table


def _layers_table(layers: dict[str, Any]) -> Table:
    table = grid(f"{layers['artifact']}: the network by module, ms per batch", "module", ">nodes", ">p50", ">share")
    for row in layers["modules"]:
        table.add_row(row["module"], str(row["nodes"]), f"{row['ms']:.3f}", f"{100 * row['share']:.1f}%")
    table.remarks.append(
        f"{layers['network_ms']:.2f} ms in all, by {layers['profiler']}'s profiler over {layers['runs']} runs."
    )
    return table


def _peers_table(peers: dict[str, Any]) -> Table:
    on_gpu = any(row["clock"] != "host" for row in peers["rows"])
    table = grid(
        f"peers of {peers['artifact']}, p50 (p90) in ms",
        "what",
        "who",
        ">time",
        ">ours",
        ">ratio",
        ">95% CI",
        "verdict",
        *(["clock"] if on_gpu else []),
    )
    for row in peers["rows"]:
        theirs, ours = (
            f"{shown_ms(row[side]['p50'])} ({shown_ms(row[side]['p90'])})" for side in ("peer_ms", "ours_ms")
        )
        low, high = row["ratio_ci"]
        table.add_row(
            row["what"],
            row["peer"],
            theirs,
            ours,
            f"{row['ratio']:.2f}x",
            f"{shown_number(low)}-{shown_number(high)}",
            Text(row["verdict"], _VERDICT_STYLES[row["verdict"]]),
            *([row["clock"]] if on_gpu else []),
        )
    table.remarks.extend(("ratio: the peer's p50 over ours; verdict: on ours.", *peers["notes"]))
    return table


def _scenario_table(scenario: dict[str, Any]) -> Table:
    table = grid(f"LoadGen {scenario['scenario']} of {scenario['artifact']}", "figure", ">value")
    for name, value in scenario["figures"].items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    table.remarks.append(scenario["note"])
    return table


def shown_number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits, "?" for none."""
    return "?" if value is None else f"{value:.{digits}f}"


def _gate_table(gate: dict[str, Any]) -> Table:
    title = f"against {gate['baseline']}, at most {100 * gate['max_regression']:g}% slower"
    table = grid(title, "artifact", ">new / old", ">99% between", "verdict")
    for found in gate["judgements"]:
        low, high = found["interval"]
        table.add_row(
            found["artifact"],
            f"{found['ratio']:.3f}",
            f"{shown_number(low, 3)} and {shown_number(high, 3)}",
            Text(f"{found['verdict']} ({found['method']}): {found['reason']}", _VERDICT_STYLES[found["verdict"]]),
        )
    if gate["attempts"] > 1:
        table.remarks.append(f"measured {gate['attempts']} times: a regression must show every time.")
    return table


def _right(columns: Iterable[str]) -> list[str]:
    return [f">{column}" for column in columns]


def _listed_sizes(sizes_hw: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{width}x{height}" for height, width in sizes_hw[:4])
    return f"images of {shown}{', ...' if len(sizes_hw) > 4 else ''}"
