"""A benchmark as one HTML file: no scripts, no network; made from the report's JSON alone."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.report_style import STYLE
from yolact_deploy.files import write_text

_COLUMNS = ("p50", "p90", "p95", "p99", "mean", "max")
_MARKS = ("p50", "p90", "p99")
_WORDS = ("peer", "why")  # columns of text
_MIB = 2**20
_TONES = {"passed": "better", "regressed": "worse", "inconclusive": "soft"}


def write_report(report: dict[str, Any], target: str | os.PathLike[str]) -> None:
    """Write the page of a report with its raw samples. Raises OutputError."""
    write_text(target, render_report(report))


def render_report(report: dict[str, Any]) -> str:
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
        _notes(report["notes"]),
        _environment(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(names)} benchmarked</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: dict[str, Any], names: str) -> str:
    environment, options = report["environment"], report["options"]
    return (
        f'<header>\n<p class="eyebrow">yolact-deploy bench</p>\n<h1>{_text(names)}</h1>\n'
        f'<p class="lead">Images in host memory to full-size masks in host memory, batch {options["batch"]}, on '
        f"{_text(environment['cpu'])}, {environment['cores']} cores, {options['threads']} threads, "
        f"{_text(environment['date'][:10])}.</p>\n</header>"
    )


def _figures(report: dict[str, Any]) -> str:
    return "\n".join(map(_run_figures, report["runs"]))


def _run_figures(run: dict[str, Any]) -> str:
    low, high = run["latency_ci_ms"]["p50"]
    between = f"{100 * run['confidence']:.0f}% between {_number(low)} and {_number(high)}"
    cells = [
        (f"{_label(run)}: p50", f"{run['latency_ms']['p50']:.2f} ms", between),
        ("p99", f"{run['latency_ms']['p99']:.2f} ms", f"varying by {100 * run['variation']:.1f}%"),
        ("throughput", f"{run['throughput_fps']:.1f}", "images per second"),
        ("peak memory", f"{run['peak_memory']['host_bytes'] / _MIB:.0f} MiB", "of the process, on the host"),
    ]
    drawn = "".join(
        f'<div class="figure"><p class="name">{_text(name)}</p><p class="value">{_text(value)}</p>'
        f'<p class="hint">{_text(hint)}</p></div>'
        for name, value, hint in cells
    )
    return f'<section class="figures">{drawn}</section>'


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    rows = []
    for found in gate["judgements"]:
        low, high = found["interval"]
        rows.append(
            f"<tr><th scope=row>{_text(Path(found['artifact']).name)}</th><td>{found['ratio']:.3f}</td>"
            f"<td>{_number(low, 3)} to {_number(high, 3)}</td><td>{_text(found['method'])}</td>"
            f'<td class="{_TONES[found["verdict"]]}">{found["verdict"]}</td>'
            f'<td class="words">{_text(found["reason"])}</td></tr>'
        )
    head = _head("artifact", "new / old p50", "99% interval", "method", "verdict", "why")
    hint = (
        f"At most {100 * gate['max_regression']:g}% slower than {gate['baseline']}; measured {gate['attempts']} times."
    )
    return _section("Against the baseline", _table(head, rows), hint)


def _distributions(report: dict[str, Any]) -> str:
    rows = []
    for run in report["runs"]:
        marks = {name: run["latency_ms"][name] for name in _MARKS}
        rows.append((_label(run), run["samples_ms"]["latency"], marks))
    return _section("Latency", _chart(charts.distributions(rows, "ms")), "End to end, every iteration counted.")


def _stages(report: dict[str, Any]) -> str:
    rows = [(_label(run), {stage: times["p50"] for stage, times in run["stages_ms"].items()}) for run in report["runs"]]
    shares = ", ".join(f"{run['stages_share']:.3f}" for run in report["runs"])
    hint = (
        f"Medians. Timing itself takes {1e6 * report['harness_overhead_ms']:.0f} ns per stage. The stages' sum is "
        f"{shares} of the end-to-end median."
    )
    return _section("Where the time goes", _chart(charts.stacked_bars(rows, "ms")), hint)


def _latency_table(report: dict[str, Any]) -> str:
    sections = []
    for run in report["runs"]:
        rows = []
        intervals = {"end to end": run["latency_ci_ms"], **run["stages_ci_ms"]}
        for stage, times in {"end to end": run["latency_ms"], **run["stages_ms"]}.items():
            low, high = intervals[stage]["p50"]
            values = "".join(f"<td>{times[column]:.2f}</td>" for column in _COLUMNS)
            total = ' class="total"' if stage == "end to end" else ""
            interval = f'<td class="soft">{_number(low)} to {_number(high)}</td>'
            rows.append(f"<tr{total}><th scope=row>{_text(stage)}</th>{values}{interval}</tr>")
        head = _head("ms per batch", *_COLUMNS, f"p50, {100 * run['confidence']:.0f}%")
        hint = f"{run['latency_ms']['n']} iterations; {run['backend']}, {run['precision'] or 'precision unknown'}."
        sections.append(_section(f"Percentiles of {_label(run)}", _table(head, rows), hint))
    return "\n".join(sections)


def _sweep(swept: dict[str, Any]) -> str:
    drawn = []
    if swept["batch"]:
        per_image = [(point["batch"], point["latency_ms"]["p50"] / point["batch"]) for point in swept["batch"]]
        drawn.append(charts.lines([("end to end", per_image)], "images per batch", "ms per image, p50"))
    by_size: dict[str, list[tuple[float, float]]] = {}
    for point in swept["work"]:
        height, width = point["image_hw"]
        cost = point["stages_ms"]["detect"]["p50"] + point["stages_ms"]["masks"]["p50"]
        by_size.setdefault(f"{width}x{height}", []).append((point["detections"], cost))
    if by_size:
        drawn.append(charts.lines(list(by_size.items()), "detections", "ms of Detect and masks, p50"))
    rows = [
        f"<tr><th scope=row>{point['image_hw'][1]} &times; {point['image_hw'][0]}</th><td>{point['detections']}</td>"
        + "".join(f"<td>{times['p50']:.2f}</td>" for times in point["stages_ms"].values())
        + "</tr>"
        for point in swept["work"]
    ]
    table = _table(_head("image", "detections", "preprocess", "detect", "masks"), rows) if rows else ""
    hint = " ".join(("Medians in ms; objects are planted in the head tensors.", *swept["notes"]))
    grid = f'<div class="charts">{"".join(map(_chart, drawn))}</div>'
    return _section(f"How cost grows: {Path(swept['artifact']).name}", grid + table, hint)


def _layers(layers: dict[str, Any]) -> str:
    rows = [
        f"<tr><th scope=row>{_text(row['module'])}</th><td>{row['nodes']}</td><td>{row['ms']:.3f}</td>"
        f"<td>{100 * row['share']:.1f}%</td></tr>"
        for row in layers["modules"]
    ]
    bars = [(row["module"], {"p50": row["ms"]}) for row in layers["modules"]]
    hint = (
        f"Medians in ms of {layers['runs']} runs, by the engine's own profiler; {layers['network_ms']:.2f} ms in all."
    )
    table = _table(_head("module", "nodes", "ms", "share"), rows)
    return _section(
        f"The network by module: {Path(layers['artifact']).name}", _chart(charts.stacked_bars(bars, "ms")) + table, hint
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
            f"<td>{row[side]['p50']:.2f}</td><td class=soft>{row[side]['p90']:.2f}</td>"
            for side in ("peer_ms", "ours_ms")
        )
        tone = "better" if row["ratio"] > 1 else "worse"
        rows.append(
            f"<tr><th scope=row>{_text(row['what'])}</th><td class=words>{_text(row['peer'])}</td>{times}"
            f'<td class="{tone}">{row["ratio"]:.2f}&times;</td></tr>'
        )
    head = _head("what", "peer", "peer p50", "p90", "ours p50", "p90", "peer / ours")
    hint = " ".join((f"In turns, on one image with {peers['detections']} detections; ms.", *peers["notes"]))
    chart = _chart(charts.stacked_bars(list(bars.items()), "ms"))
    return _section("Beside its peers", chart + _table(head, rows), hint)


def _scenario(scenario: dict[str, Any]) -> str:
    rows = [
        f"<tr><th scope=row>{_text(name)}</th><td>{_text(f'{value:.3f}' if isinstance(value, float) else str(value))}</td></tr>"
        for name, value in scenario["figures"].items()
    ]
    title = f"LoadGen, {scenario['scenario']}: {Path(scenario['artifact']).name}"
    return _section(title, _table(_head("figure", "value"), rows), scenario["note"])


def _notes(notes: list[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return (
        f"<section>\n<h2>What to know of these figures</h2>\n<ul class=notes>{items}</ul>\n</section>" if notes else ""
    )


def _environment(report: dict[str, Any]) -> str:
    environment, options, watched = report["environment"], report["options"], report["watch"]
    sizes = ", ".join(f"{width}x{height}" for height, width in options["image_sizes_hw"])
    facts = [
        ("machine", f"{environment['cpu']}, {environment['cores']} cores"),
        ("GPU", ", ".join(environment["gpus"]) or "none"),
        ("system", f"{environment['os']}; Python {environment['python']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment["packages"].items())),
        ("load average", ", ".join(f"{load:.2f}" for load in watched["load_average"] or ()) or "unknown"),
        ("other processes", _share(watched["other_processes_share"])),
        ("images", f"{options['images']}, of {sizes}"),
        ("warm-up", f"{options['warmup']} iterations"),
        ("transfers", options["transfers"]),
    ]
    facts += [
        (Path(run["artifact"]).name, f"SHA-256 {run['sha256']}, {run['size_bytes']} bytes") for run in report["runs"]
    ]
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return f'<section>\n<h2>Environment</h2>\n<div class="card"><dl>{rows}</dl></div>\n</section>'


def _section(title: str, content: str, hint: str) -> str:
    return f'<section>\n<h2>{_text(title)}</h2>\n{content}\n<p class="hint">{_text(hint)}</p>\n</section>'


def _chart(svg: str) -> str:
    return f'<div class="chart">{svg}</div>'


def _table(head: str, rows: Iterable[str]) -> str:
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _head(*names: str) -> str:
    cells = (f"<th scope=col{' class=words' if name in _WORDS else ''}>{_text(name)}</th>" for name in names)
    return f"<tr>{''.join(cells)}</tr>"


def _label(run: dict[str, Any]) -> str:
    name = Path(run["artifact"]).name
    return f"{name} (baseline)" if run.get("role") == "baseline" else name


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.0f}% of all cores while measuring"


def _number(value: float | None, digits: int = 2) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def _text(value: str) -> str:
    """Escaped for text and attributes; bytes of a file name that are no UTF-8 become question marks."""
    return html.escape(value.encode("utf-8", "replace").decode("utf-8"), quote=True)
