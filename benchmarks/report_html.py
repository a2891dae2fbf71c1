"""A benchmark as one HTML file: no scripts, no network; made from the report's JSON alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks import charts
from yolact_deploy.files import write_text
from yolact_deploy.reports import page
from yolact_deploy.reports.bench import shown_ms, shown_number
from yolact_deploy.reports.page import escaped, table_of
from yolact_deploy.text import counted

_COLUMNS = ("p50", "p90", "p95", "p99", "mean", "max")
_OTHER_WHOLES = {
    "call_ms": "a call, masks packed",
    "staged_ms": "a call by stage, no graph",
    "device_ms": "its stages on the GPU",
}
_OPTIONS = {
    "clock": "clock", "transfers": "transfers", "cuda_graph": "CUDA graph", "wait": "waiting", "precision": "precision",
    "threads": "threads",
}  # fmt: skip
_MARKS = ("p50", "p90", "p99")
_MIB = 2**20
_TONES = {"passed": "better", "faster": "better", "regressed": "worse", "slower": "worse", "inconclusive": "soft"}
_WORDS = ("peer", "why")  # columns of text


def write_report(report: dict[str, Any], target: str | os.PathLike[str]) -> None:
    """Write the page of a report with its raw samples. Raises OutputError."""
    write_text(target, render_report(report))


def render_report(report: dict[str, Any]) -> str:
    """The whole page, in one string of HTML that needs nothing from elsewhere."""
    names = ", ".join(Path(run["artifact"]).name for run in report["runs"])
    body = [
        _header(report, names),
        _figures(report),
        _gate(report.get("gate")),
        _distributions(report),
        _stages(report),
        _latency_table(report),
        *(_sweep(swept) for swept in report.get("sweep", ())),
        *(_layers(layers) for layers in report.get("layers", ())),
        _peers(report.get("peers")),
        *(_scenario(scenario) for scenario in report.get("scenarios", ())),
        page.notes_of("What to know of these figures", report["notes"]),
        _environment(report),
    ]
    return page.document(f"{names} benchmarked", STYLE, body)


def _header(report: dict[str, Any], names: str) -> str:
    environment, options = report["environment"], report["options"]
    gpus = ", ".join(environment["gpus"]) if any(run["cuda_graph"] is not None for run in report["runs"]) else ""
    return (
        f'<header>\n<p class="eyebrow">yolact-deploy bench</p>\n<h1>{escaped(names)}</h1>\n'
        f'<p class="lead">Images in host memory to full-size masks in host memory, batch {options["batch"]}, on '
        f"{escaped(f'{gpus}, beside ' if gpus else '')}"
        f"{escaped(environment['cpu'])}, {environment['cores']} cores, {options['threads']} threads, "
        f"{escaped(environment['date'][:10])}.</p>\n</header>"
    )


def _figures(report: dict[str, Any]) -> str:
    return "\n".join(map(_run_figures, report["runs"]))


def _run_figures(run: dict[str, Any]) -> str:
    low, high = run["latency_ci_ms"]["p50"]
    between = f"{100 * run['confidence']:.0f}% between {shown_number(low)} and {shown_number(high)}"
    cells = [
        (f"{_label(run)}: p50", f"{run['latency_ms']['p50']:.2f} ms", between),
        ("p99", f"{run['latency_ms']['p99']:.2f} ms", f"varying by {100 * run['variation']:.1f}%"),
        ("throughput", f"{run['throughput_fps']:.1f}", "images per second, one call after another"),
        ("peak memory", f"{run['peak_memory']['host_bytes'] / _MIB:.0f} MiB", "of the process, on the host"),
    ]
    if "stream" in run:
        streamed = run["stream"]
        hint = f"images per second, {streamed['in_flight']} batches in flight"
        cells.insert(
            3,
            (
                counted(streamed["streams"], "stream"),
                shown_number(streamed["throughput_fps"], 1),
                hint,
            ),
        )
    if run["peak_memory"].get("device_bytes") is not None:
        cells.append(("GPU memory", f"{run['peak_memory']['device_bytes'] / _MIB:.0f} MiB", "of one Detector"))
    return page.figures((escaped(name), escaped(value), escaped(hint)) for name, value, hint in cells)


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    rows = []
    for found in gate["judgements"]:
        low, high = found["interval"]
        rows.append(
            f"<tr><th scope=row>{escaped(Path(found['artifact']).name)}</th><td>{found['ratio']:.3f}</td>"
            f"<td>{shown_number(low, 3)} to {shown_number(high, 3)}</td><td>{escaped(found['method'])}</td>"
            f'<td class="{_TONES[found["verdict"]]}">{found["verdict"]}</td>'
            f'<td class="words">{escaped(found["reason"])}</td></tr>'
        )
    head = _head_of("artifact", "new / old p50", "99% interval", "method", "verdict", "why")
    hint = (
        f"At most {100 * gate['max_regression']:g}% slower than {gate['baseline']}; measured {gate['attempts']} times."
    )
    return section("Against the baseline", table_of(head, rows), hint)


def _distributions(report: dict[str, Any]) -> str:
    rows = []
    for run in report["runs"]:
        marks = {name: run["latency_ms"][name] for name in _MARKS}
        rows.append((_label(run), run["samples_ms"]["latency"], marks))
    return section("Latency", chart_card(charts.distributions(rows, "ms")), "End to end, every iteration counted.")


def _stages(report: dict[str, Any]) -> str:
    rows = [(_label(run), {stage: times["p50"] for stage, times in run["stages_ms"].items()}) for run in report["runs"]]
    shares = ", ".join(f"{run['stages_share']:.3f}" for run in report["runs"])
    hint = (
        f"Medians. Timing itself takes {1e6 * report['harness_overhead_ms']:.0f} ns per stage on the host. The stages' sum is "
        f"{shares} of the median of the whole that they are parts of."
    )
    if any("staged_ms" in run for run in report["runs"]):
        hint += (
            " On a GPU that is a call without CUDA graphs, marked by events of the device; host is what they do not account for: "
            "launching, waiting, unpacking masks."
        )
    return section("Where the time goes", chart_card(charts.stacked_bars(rows, "ms")), hint)


def _latency_table(report: dict[str, Any]) -> str:
    sections = []
    for run in report["runs"]:
        intervals = {"end to end": run["latency_ci_ms"], **run["stages_ci_ms"]}
        wholes = {name: run[key] for key, name in _OTHER_WHOLES.items() if key in run}
        rows = []
        for stage, times in {"end to end": run["latency_ms"], **wholes, **run["stages_ms"]}.items():
            values = "".join(f"<td>{shown_ms(times[column])}</td>" for column in _COLUMNS)
            total = ' class="total"' if stage == "end to end" else ""
            low, high = intervals.get(stage, {"p50": (None, None)})["p50"]
            interval = f"{shown_number(low)} to {shown_number(high)}" if stage in intervals else ""
            rows.append(f'<tr{total}><th scope=row>{escaped(stage)}</th>{values}<td class="soft">{interval}</td></tr>')
        head = _head_of("ms per batch", *_COLUMNS, f"p50, {100 * run['confidence']:.0f}%")
        hint = (
            f"{run['latency_ms']['n']} iterations; {run['backend']}, {run['precision'] or 'precision unknown'}. Clock: "
            f"{run['clock']}. Transfers {run['transfers']}. CUDA graph: {', '.join(run['graph_stages']) or 'none'}. Waiting: "
            f"{run['wait']}."
        )
        sections.append(section(f"Percentiles of {_label(run)}", table_of(head, rows), hint))
    return "\n".join(sections)


def _sweep(swept: dict[str, Any]) -> str:
    drawn = []
    if swept["batch"]:
        per_image = [(point["batch"], point["latency_ms"]["p50"] / point["batch"]) for point in swept["batch"]]
        drawn.append(charts.lines([("end to end", per_image)], "images per batch", "ms per image, p50"))
    by_size: dict[str, list[tuple[float, float]]] = {}
    for point in swept["work"]:
        height, width = point["image_hw"]
        stages = point["stages_ms"]
        cost = sum(stages[stage]["p50"] for stage in stages if stage != "preprocess" and stage != "host_to_device")
        by_size.setdefault(f"{width}x{height}", []).append((point["detections"], cost))
    if by_size:
        on_gpu = "latency_ms" in swept["work"][0]
        label = "ms after the network, p50" if on_gpu else "ms of Detect and masks, p50"
        drawn.append(charts.lines(list(by_size.items()), "detections", label))
    rows = [
        f"<tr><th scope=row>{point['image_hw'][1]} &times; {point['image_hw'][0]}</th><td>{point['detections']}</td>"
        + "".join(f"<td>{shown_ms(times['p50'])}</td>" for times in _work_times(point).values())
        + "</tr>"
        for point in swept["work"]
    ]
    table = table_of(_head_of("image", "detections", *_work_times(swept["work"][0])), rows) if rows else ""
    hint = " ".join(("Medians in ms; objects are planted in the head tensors.", *swept["notes"]))
    grid = f'<div class="charts">{"".join(map(chart_card, drawn))}</div>'
    return section(f"How cost grows: {Path(swept['artifact']).name}", grid + table, hint)


def _work_times(point: dict[str, Any]) -> dict[str, dict[str, float]]:
    """On a GPU with the whole, network included."""
    whole = {"end to end": point["latency_ms"]} if "latency_ms" in point else {}
    return {**whole, **point["stages_ms"]}


def _layers(layers: dict[str, Any]) -> str:
    rows = [
        f"<tr><th scope=row>{escaped(row['module'])}</th><td>{row['nodes']}</td><td>{row['ms']:.3f}</td>"
        f"<td>{100 * row['share']:.1f}%</td></tr>"
        for row in layers["modules"]
    ]
    bars = [(row["module"], {"p50": row["ms"]}) for row in layers["modules"]]
    hint = f"Medians in ms of {layers['runs']} runs, by {layers['profiler']}'s profiler; {layers['network_ms']:.2f} ms in all."
    table = table_of(_head_of("module", "nodes", "ms", "share"), rows)
    return section(
        f"The network by module: {Path(layers['artifact']).name}",
        chart_card(charts.stacked_bars(bars, "ms")) + table,
        hint,
    )


def _peers(peers: dict[str, Any] | None) -> str:
    if peers is None:
        return ""
    bars: dict[str, dict[str, float]] = {}
    rows = []
    for row in peers["rows"]:
        bars.setdefault(f"{row['what']}, ours", {"p50": row["ours_ms"]["p50"]})
        bars[f"{row['what']}, {row['peer']}"] = {"p50": row["peer_ms"]["p50"]}
        times = "".join(
            f"<td>{shown_ms(row[side]['p50'])}</td><td class=soft>{shown_ms(row[side]['p90'])}</td>"
            for side in ("peer_ms", "ours_ms")
        )
        low, high = row["ratio_ci"]
        rows.append(
            f"<tr><th scope=row>{escaped(row['what'])}</th><td class=words>{escaped(row['peer'])}</td>{times}"
            f"<td>{row['ratio']:.2f}&times;</td><td class=soft>{shown_number(low)} to {shown_number(high)}</td>"
            f'<td class="{_TONES[row["verdict"]]}">{row["verdict"]}</td><td class=soft>{row["clock"]}</td></tr>'
        )
    head = _head_of("what", "peer", "peer p50", "p90", "ours p50", "p90", "peer / ours", "95%", "ours is", "clock")
    hint = " ".join((f"In turns, on one image with {peers['detections']} detections; ms.", *peers["notes"]))
    chart = chart_card(charts.stacked_bars(list(bars.items()), "ms"))
    return section("Beside its peers", chart + table_of(head, rows), hint)


def _scenario(scenario: dict[str, Any]) -> str:
    figures = {name: f"{v:.3f}" if isinstance(v, float) else str(v) for name, v in scenario["figures"].items()}
    rows = [f"<tr><th scope=row>{escaped(name)}</th><td>{escaped(text)}</td></tr>" for name, text in figures.items()]
    title = f"LoadGen, {scenario['scenario']}: {Path(scenario['artifact']).name}"
    return section(title, table_of(_head_of("figure", "value"), rows), scenario["note"])


def _environment(report: dict[str, Any]) -> str:
    environment, options, watched = report["environment"], report["options"], report["watch"]
    sizes = ", ".join(f"{width}x{height}" for height, width in options["image_sizes_hw"])
    facts = [
        ("machine", f"{environment['cpu']}, {environment['cores']} cores"),
        ("GPU", ", ".join(environment["gpus"]) or "none"),
        ("system", f"{environment['os']}; Python {environment['python']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment["packages"].items())),
        ("load average", ", ".join(f"{load:.2f}" for load in watched["load_average"])),
        ("other processes", f"{100 * watched['other_processes_share']:.0f}% of all cores while measuring"),
        ("images", f"{options['images']}, of {sizes}"),
        ("warm-up", f"{options['warmup']} iterations"),
        *((name, _all_of(options[key])) for key, name in _OPTIONS.items()),
    ]
    facts += [
        (Path(run["artifact"]).name, f"SHA-256 {run['sha256']}, {run['size_bytes']} bytes") for run in report["runs"]
    ]
    listed = page.facts((escaped(name), escaped(value)) for name, value in facts)
    return f'<section>\n<h2>Environment</h2>\n<div class="card">{listed}</div>\n</section>'


def _label(run: dict[str, Any]) -> str:
    name = Path(run["artifact"]).name
    return f"{name} (baseline)" if run.get("role") == "baseline" else name


def _all_of(value: Any) -> str:
    """An option's value, or each artifact's where they differ."""
    if isinstance(value, list):
        return ", ".join(map(_all_of, value))
    return {True: "on", False: "off", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)


def _head_of(*names: str) -> str:
    return page.head_of(*names, words=_WORDS)


def section(title: str, content: str, hint: str) -> str:
    """A titled part of the page, with a hint below it."""
    return f'<section>\n<h2>{escaped(title)}</h2>\n{content}\n<p class="hint">{escaped(hint)}</p>\n</section>'


def chart_card(svg: str) -> str:
    """A chart in its frame."""
    return f'<div class="chart">{svg}</div>'


STYLE = """
:root { --s0: #2563c9; --s1: #c2570c; --s2: #1b7f4b; --s3: #8b3fb5; --s4: #b3261e;
    --s5: #0f7f8f; --s6: #5c6570; --on: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --s0: #7fb0ff; --s1: #f5a25d; --s2: #6fd3a0; --s3: #cf9bf0; --s4: #ff8a80;
    --s5: #5fd0de; --s6: #aab2bd; --on: #14161a; }
}
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px; overflow-x: auto; }
.chart svg { display: block; width: 100%; height: auto; min-width: 720px; }
.charts .chart svg { min-width: 290px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
svg text { fill: var(--soft); font-size: 12px; }
svg .name { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .on { fill: var(--on); }
svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; }
svg .grid { stroke: var(--line); }
svg .mark { stroke: var(--ink); stroke-dasharray: 2 2; }
svg .curve { fill: none; stroke-width: 2; }
.s0 { fill: var(--s0); } .s1 { fill: var(--s1); } .s2 { fill: var(--s2); }
.s3 { fill: var(--s3); } .s4 { fill: var(--s4); } .s5 { fill: var(--s5); }
.s6 { fill: var(--s6); }
.l0 { stroke: var(--s0); } .l1 { stroke: var(--s1); } .l2 { stroke: var(--s2); }
.l3 { stroke: var(--s3); } .l4 { stroke: var(--s4); } .l5 { stroke: var(--s5); }
.l6 { stroke: var(--s6); }
td.words, thead th.words { white-space: normal; text-align: left; min-width: 220px; }
.scroll + .chart, .chart + .scroll, .charts + .scroll { margin-top: 16px; }
@media (max-width: 720px) { .charts { grid-template-columns: 1fr; } .chart { padding: 10px; } }
@media print { .chart { break-inside: avoid; } }
"""
