from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks import charts
from benchmarks.device import TIMED_STAGES
from benchmarks.gate import Judgement
from benchmarks.latency import time_detectors
from benchmarks.report_html import render_report, write_report
from benchmarks.statistics import percentiles
from tests.unit.benchmarks.recorder import Recorder
from yolact_deploy.reports.bench import bench_tables

NAME = 'a <b> & "c".onnx'
VOID = {"meta", "br", "img", "input", "link", "hr"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip


class Page(HTMLParser):
    """Checks that elements nest, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def _times(milliseconds: float) -> dict[str, float]:
    return percentiles([int(1e6 * milliseconds * factor) for factor in (1, 1.1, 1.2)])


def _on_gpu(run: dict[str, Any]) -> dict[str, Any]:
    stages = {stage: _times(number / 4) for number, stage in enumerate(TIMED_STAGES, start=1)}
    intervals = {stage: dict.fromkeys(("p50", "p90", "p95", "p99"), (0.1, None)) for stage in stages}
    return {
        **run,
        "artifact": "c.engine",
        "stages_ms": stages,
        "stages_ci_ms": intervals,
        "call_ms": _times(5),
        "staged_ms": _times(7),
        "device_ms": _times(4),
        "clock": "host; stages: device",
        "cuda_graph": True,
        "graph_stages": ["detect", "masks"],
        "harness_overhead_ms": 0.002,
        "peak_memory": {"host_bytes": 1 << 28, "method": "m", "device_bytes": 1 << 29, "device_method": "m"},
        "stream": {"streams": 2, "in_flight": 4, "batch": 1, "images": 9, "seconds": 1.0, "throughput_fps": 321.0},
    }


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """A report with everything in it."""
    detectors: list[Any] = [Recorder(NAME, []), Recorder("b.onnx", [])]
    found = time_detectors(detectors, [np.zeros((4, 4, 3), np.uint8)], iterations=30, warmup=1)
    found["runs"][1]["role"] = "baseline"
    found["runs"].append(_on_gpu(found["runs"][0]))
    found["options"]["cuda_graph"] = [None, None, True]
    stages = {"preprocess": _times(1), "network": _times(20), "detect": _times(0.5), "masks": _times(3)}
    work = {name: stages[name] for name in ("preprocess", "detect", "masks")}
    found["sweep"] = [
        {
            "artifact": NAME,
            "batch": [
                {"batch": batch, "latency_ms": _times(24 * batch), "stages_ms": stages, "throughput_fps": 40.0}
                for batch in (1, 2, 4)
            ],
            "work": [
                {"image_hw": list(size), "detections": count, "stages_ms": work}
                for size in ((550, 550), (720, 1280))
                for count in (1, 10, 100)
            ],
            "notes": [],
        }
    ]
    row = {"what": "network", "peer": "PyTorch <eager>", "peer_ms": _times(40), "ours_ms": _times(20), "ratio": 2.0,
           "ratio_ci": (1.8, None), "verdict": "faster", "clock": "host"}  # fmt: skip
    found["peers"] = {"artifact": NAME, "detections": 3, "rows": [row], "notes": ["a note"]}
    found["scenarios"] = [{"artifact": NAME, "scenario": "offline", "figures": {"queries": 3, "ms": 1.5}, "note": "n"}]
    judgement = Judgement(NAME, "paired", 1.2, (1.1, None), 1.0, 0.05, "regressed", "slower")
    found["gate"] = {"baseline": "old.json", "max_regression": 0.05, "attempts": 3, "judgements": [judgement.to_dict()]}
    return found


def test_the_page_is_well_formed_and_has_its_parts(report: dict[str, Any]) -> None:
    page = Page(render_report(report))
    assert page.open == []
    assert [heading.partition(":")[0] for heading in page.headings] == [
        "Against the baseline",
        "Latency",
        "Where the time goes",
        f"Percentiles of {NAME}",
        "Percentiles of b.onnx (baseline)",
        "Percentiles of c.engine",
        "How cost grows",
        "Beside its peers",
        "LoadGen, offline",
        "What to know of these figures",
        "Environment",
    ]
    assert page.tags.count("svg") == 5
    assert {"regressed", "2.00\N{MULTIPLICATION SIGN}", "1.100 to ?"} <= set(page.words)


def test_what_a_gpu_adds_is_shown(report: dict[str, Any]) -> None:
    words = Page(render_report(report)).words
    assert {*TIMED_STAGES, "a call by stage, no graph", "2 streams", "321.0", "GPU memory", "512 MiB"} <= set(words)
    assert "none, none, on" in words  # of the artifacts, in their order
    assert any("images per second, 4 batches in flight" in word for word in words)
    assert any("CUDA graph: detect, masks." in word for word in words)


def test_the_terminal_shows_what_a_gpu_adds(report: dict[str, Any]) -> None:
    shown = "\n".join(line.plain for table in bench_tables(report) for line in table.lines())
    for part in (*TIMED_STAGES, "by stage, no graph", "512 MiB on the GPU", "CUDA graph of all but host_to_device"):
        assert part in shown
    assert "321.0 through 2 streams with 4 batches in flight" in shown


def test_the_table_of_peers_fits_a_terminal_of_80_columns(report: dict[str, Any]) -> None:
    row = report["peers"]["rows"][0]
    slow = {"p50": 2872.0, "p90": 6288.75}
    part = {
        **row,
        "what": "detect + masks",
        "peer": "original's Detect + postprocess in torch",
        "verdict": "inconclusive",
    }
    part |= {"peer_ms": slow, "ours_ms": slow, "ratio": 72.77, "ratio_ci": (5.53, 205.07), "clock": "host"}
    report = {**report, "peers": {**report["peers"], "rows": [part]}}
    (table,) = (table for table in bench_tables(report) if table.title.startswith("peers"))
    assert max(line.cell_len for line in table.lines(80)) <= 80
    assert "clock" not in table.columns  # all on the host's


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(report: dict[str, Any]) -> None:
    page = Page(render_report(report))
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onerror", "style"}
    assert "url(" not in render_report(report)
    policy = [value for name, value in page.attributes if name == "content" and "default-src" in str(value)]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_names_are_shown_as_they_are(report: dict[str, Any]) -> None:
    assert "<b>" not in render_report(report)
    assert NAME in Page(render_report(report)).words


def test_a_plain_report_has_no_empty_parts(report: dict[str, Any]) -> None:
    extras = ("sweep", "peers", "scenarios", "gate")
    page = Page(render_report({key: value for key, value in report.items() if key not in extras}))
    assert not {"Against the baseline", "Beside its peers"} & set(page.headings)
    assert page.tags.count("svg") == 2


def test_bars_are_as_long_as_their_values() -> None:
    drawn = Page(charts.stacked_bars([("a", {"x": 1.0, "y": 3.0}), ("b", {"x": 2.0, "y": 2.0})], "ms"))
    widths = [float(value or 0) for name, value in drawn.attributes if name == "width"][2:]  # after the legend's two
    assert widths[1] + 1 == pytest.approx(3 * (widths[0] + 1), abs=0.3)
    assert widths[2] == widths[3]


def test_one_time_that_never_changes_is_drawn_too() -> None:
    assert "NaN" not in charts.distributions([("a", [1.0], {"p50": 1.0})], "ms").replace("nan", "NaN")
    assert "<polyline" in charts.lines([("a", [(1.0, 0.5)])], "x", "y")


def test_times_beyond_the_axis_are_counted() -> None:
    assert "1 beyond" in charts.distributions([("a", [1.0] * 99 + [50.0], {"p50": 1.0, "p99": 1.0})], "ms")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at the page with")
@pytest.mark.parametrize("width", [1200, 420])
def test_a_browser_draws_the_page(report: dict[str, Any], tmp_path: Path, width: int) -> None:
    write_report(report, tmp_path / "report.html")
    picture = tmp_path / "page.png"
    command = [
        str(CHROMIUM), *CHROMIUM_OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3000",
        f"--screenshot={picture}", (tmp_path / "report.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    pixels: Any = cv2.imread(str(picture))
    assert pixels.shape[1] == width
    blue = (pixels.astype(int) - (0xC9, 0x63, 0x25)).__abs__().max(axis=2) < 4  # the first series' colour
    orange = (pixels.astype(int) - (0x0C, 0x57, 0xC2)).__abs__().max(axis=2) < 4
    assert blue.sum() > 200
    assert orange.sum() > 200
    text = pixels.mean(axis=2) < 90
    assert text.any(axis=1).sum() > 300  # rows with something written, from top to bottom
    assert np.flatnonzero(text.any(axis=1))[-1] > 2000
