"""The pages that show figures show those of benchmarks/results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.figures import results_page
from benchmarks.figures.results_page import PAGE, README, RESULTS, render_page, with_figures


def test_the_pages_hold_the_figures_that_were_measured() -> None:
    remedy = "run `make readme`"
    assert PAGE.read_text(encoding="utf-8") == render_page(RESULTS), remedy
    readme = README.read_text(encoding="utf-8")
    assert readme == with_figures(readme, RESULTS), remedy


def test_another_figure_makes_another_page_and_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, page, readme = tmp_path / "results", tmp_path / "RESULTS.md", tmp_path / "README.md"
    shutil.copytree(RESULTS, results)
    shutil.copy(README, readme)
    for name, value in (("RESULTS", results), ("PAGE", page), ("README", readme)):
        monkeypatch.setattr(results_page, name, value)
    (measured,) = (path for path in results.glob("*.json") if '"kind": "cpu"' in path.read_text(encoding="utf-8"))
    report = json.loads(measured.read_text(encoding="utf-8"))
    report["end_to_end_ms"]["p50"] = 98765.4
    report["shapes_ap"]["segm"]["int8_AP"] = 0.12345
    measured.write_text(json.dumps(report), encoding="utf-8")
    results_page.write_pages()
    assert "98765.4" in page.read_text(encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    assert "98765 ms" in text
    assert "| 12.35 |" in text or "| 12.34 |" in text
    before, after = README.read_text(encoding="utf-8"), text
    for kept in (before.partition(results_page.BEGIN)[0], before.partition(results_page.END)[2]):
        assert kept
        assert kept in after
