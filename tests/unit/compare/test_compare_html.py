"""The page of a comparison: self-contained, escaped, complete."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from exporters.comparison.compare import compare
from exporters.comparison.page import render_html, write_html
from exporters.comparison.report import ApComparison, CompareReport
from tests.unit.compare.conftest import WriteTiny, scaled
from yolact_deploy.reports.precision import compare_tables

NASTY = '<img src=x onerror=alert(1)>&"[bold]q.png'
_VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements with their attributes and the text outside of the style, with tags checked for balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def report(write_tiny: WriteTiny, pictures: list[Path]) -> CompareReport:
    nasty = pictures[0].rename(pictures[0].with_name(NASTY.replace("/", "")))
    model = write_tiny("a<b>.onnx")
    other = write_tiny("b.onnx", edit=scaled("head.conf.0.weight", 0.7))
    return compare(model, other, [nasty, *pictures[1:]])


def test_the_page_needs_nothing_from_elsewhere(report: CompareReport) -> None:
    html = render_html(report)
    page = Page(html)
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"} == set()
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "poster", "background"):
                assert (value or "").startswith("data:image/jpeg;base64,")
    assert not re.search(r"(?i)https?:|url\(|@import", html)
    policies = [attributes["content"] for attributes in page.of("meta") if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_file_names_are_text_not_markup(report: CompareReport) -> None:
    page = Page(render_html(report))
    assert NASTY in page.text
    assert "a<b>.onnx" in page.text
    assert all((attributes.get("src") or "").startswith("data:") for attributes in page.of("img"))


def test_a_file_name_that_is_no_utf8_can_be_written(report: CompareReport, tmp_path: Path) -> None:
    odd = dataclasses.replace(report, a=dataclasses.replace(report.a, path="caf\udce9.onnx"))
    write_html(odd, tmp_path / "page.html")
    assert "caf?.onnx" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_each_example_is_drawn_twice(report: CompareReport) -> None:
    page = Page(render_html(report))
    images = page.of("img")
    assert len(images) == 2 * len(report.examples) == 4
    for attributes in images:
        data = base64.b64decode((attributes["src"] or "").partition(",")[2])
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        assert decoded.shape[:2] == (int(attributes["height"] or 0), int(attributes["width"] or 0))
        assert attributes["alt"]


def test_the_page_holds_both_artifacts_and_every_figure(report: CompareReport) -> None:
    ap = {
        kind: {"AP": 0.5, "AP50": 0.75, "AP75": -1.0, "AP_small": 0.1, "AP_medium": 0.2, "AP_large": 0.3}
        for kind in ("bbox", "segm")
    }
    lower = {kind: {**figures, "AP": 0.4975} for kind, figures in ap.items()}
    page = Page(render_html(dataclasses.replace(report, ap=ApComparison(7, ap, lower))))
    titles = {attributes.get("title") for _, attributes in page.elements}
    assert {report.a.sha256, report.b.sha256} <= titles
    for text in ("loc", "conf", "mask_coeff", "proto", "50.00", "49.75", "\N{MINUS SIGN}0.25", "On 7 annotated images"):
        assert text in page.text
    assert f"{report.agreement.quality:.4f}" in page.text


def test_without_annotations_there_is_no_ap(report: CompareReport) -> None:
    assert "Average precision" not in Page(render_html(report)).text


def test_an_image_without_detections_is_drawn(report: CompareReport) -> None:
    nothing = np.zeros(0, np.int64)
    empty = [
        dataclasses.replace(
            example,
            a=example.a.take(nothing),
            b=example.b.take(nothing),
            matches=dataclasses.replace(example.matches, only_a=nothing, only_b=nothing),
        )
        for example in report.examples
    ]
    assert "0 detections" in Page(render_html(dataclasses.replace(report, examples=tuple(empty)))).text


def test_tables_show_the_same_figures(report: CompareReport) -> None:
    text = "\n".join(line.plain for table in compare_tables(report.to_dict()) for line in table.lines())
    assert f"{report.agreement.quality:.4f}" in text
    assert "a<b>.onnx" in text
    assert NASTY in text
    assert f"{report.outputs[0].relative_l2:.2e}" in text


def test_a_digest_that_is_cut_says_so(report: CompareReport) -> None:
    tables = "\n".join(line.plain for table in compare_tables(report.to_dict()) for line in table.lines())
    for text in (Page(render_html(report)).text, tables):
        assert report.a.sha256[:16] in text
        assert report.a.sha256 not in text
        assert "SHA-256 (first 16)" in text
