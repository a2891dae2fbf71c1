"""A comparison as one HTML file: no scripts, no network, images inside; it can be mailed and opened in ten years."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from exporters.comparison.layers_page import LAYERS_STYLE, layers_section
from exporters.comparison.report import Agreement, ApComparison, ArtifactInfo, CompareReport, Example, OutputDifference
from yolact_deploy.arrays import Image, IntArray
from yolact_deploy.errors import OutputError
from yolact_deploy.files import write_text
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.postprocess import assemble_masks
from yolact_deploy.reports import page
from yolact_deploy.spec import ResizeMode
from yolact_deploy.text import counted

_PANEL_SIDE_PX = 640  # the longer side of a drawn image
_MAX_ENLARGEMENT = 2.0
_JPEG_QUALITY = 85
_FRAME_PX = 3
_MIB = 2**20
_SHOWN_AP = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
_AP_KINDS = (("bbox", "box"), ("segm", "mask"))
_BANDS = (
    (1.0, "identical"),
    (0.99, "0.99 or more"),
    (0.95, "0.95 to 0.99"),
    (0.9, "0.90 to 0.95"),
    (0.75, "0.75 to 0.90"),
)
_LOWEST_BAND = "below 0.75"
_SHOWN_DIGITS = 16  # of a digest
# Quality this close to 1 is 1: a mask's IoU is a float32.
_IDENTICAL = 1 - 1e-6
_NONE = "&ndash;"


def write_html(report: CompareReport, target: str | os.PathLike[str]) -> None:
    """Write the page with the report's examples drawn side by side. Raises OutputError."""
    write_text(target, render_html(report))


def render_html(report: CompareReport) -> str:
    """The page."""
    names = f"{Path(report.a.path).name} and {Path(report.b.path).name}"
    body = [
        _header(report),
        _figures(report),
        _outputs(report.outputs),
        "" if report.layers is None else layers_section(report.layers),
        _average_precision(report.ap),
        _distribution(report),
        _examples(report),
        _remarks(report),
    ]
    return page.document(f"{names} compared", STYLE + LAYERS_STYLE, body, images=True)


def _header(report: CompareReport) -> str:
    count = len(report.images)
    a, b = report.a.precision, report.b.precision
    if a == b:
        a, b = f"{report.a.kind} {a}", f"{report.b.kind} {b}"
    verdict = (
        ""
        if report.verdict is None
        else f'<p class="lead"><span class="bad">{page.escaped(report.verdict)}</span></p>\n'
    )
    return (
        f'<header>\n<p class="eyebrow">yolact-deploy compare</p>\n<h1>{page.escaped(a)} against {page.escaped(b)}</h1>\n'
        f'<p class="lead">{page.escaped(report.a.model)} at {report.input_size} &times; {report.input_size}, on '
        f"{counted(count, 'image')}. A is the reference.</p>\n{verdict}"
        f'<div class="pair">\n{_artifact("A", report.a)}\n{_artifact("B", report.b)}\n</div>\n</header>'
    )


def _artifact(letter: str, info: ArtifactInfo) -> str:
    facts = [
        ("kind", page.escaped(info.kind)),
        ("size", f"{info.size_bytes / _MIB:.1f} MiB"),
        ("ran in", page.escaped(info.backend)),
        (
            f"SHA-256 (first {_SHOWN_DIGITS})",
            f'<code title="{page.escaped(info.sha256)}">{page.escaped(info.sha256[:_SHOWN_DIGITS])}&hellip;</code>',
        ),
    ]
    return (
        f'<section class="card side-{letter.lower()}">\n<h2><span class="letter">{letter}</span>'
        f'<span class="file" title="{page.escaped(info.path)}">{page.escaped(Path(info.path).name)}</span>'
        f'<span class="chip">{page.escaped(info.precision)}</span></h2>\n{page.facts(facts)}\n</section>'
    )


def _figures(report: CompareReport) -> str:
    total = report.agreement
    figures = [
        ("agreement", f"{total.quality:.4f}", "1 = same objects, same masks"),
        (
            "matched detections",
            f"{total.matched}",
            f"{total.only_a} only in A, {total.only_b} only in B, above {report.score_threshold:g}",
        ),
        ("mean mask IoU", _ratio(total.mean_mask_iou), f"lowest {_ratio(total.min_mask_iou)}"),
    ]
    if report.ap is not None:
        difference = report.ap.difference
        for kind, label in _AP_KINDS:
            ends = f"{_points(report.ap.a[kind]['AP'])} &rarr; {_points(report.ap.b[kind]['AP'])}"
            figures.append((f"{label} AP, B &minus; A", _change(difference[kind]["AP"]), f"points: {ends}"))
    return page.figures(figures)


def _outputs(outputs: Iterable[OutputDifference]) -> str:
    rows = []
    for output in outputs:
        if output.comparable:
            values = (_small(output.max_abs_error), _small(output.relative_l2), f"{output.cosine:.7f}")
            mark, errors = "none", "".join(f"<td>{value}</td>" for value in values)
        else:
            mark = f'<span class="bad">{output.non_finite_a} in A, {output.non_finite_b} in B</span>'
            errors = '<td colspan="3"><span class="bad">not comparable</span></td>'
        cells = [
            f"<th scope=row><code>{page.escaped(output.name)}</code></th>",
            f'<td class="soft">{" &times; ".join(map(str, output.shape))}</td>',
            errors,
            f"<td>{mark}</td>",
            f'<td class="path" title="{page.escaped(output.worst_image)}">{page.escaped(Path(output.worst_image).name)}</td>',
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = page.head_of("output", "shape", "max abs error", "relative L2", "cosine", "NaN or infinite", "worst on")
    return f"<section>\n<h2>Head tensors</h2>\n{page.table_of(head, rows)}\n</section>"


def _average_precision(ap: ApComparison | None) -> str:
    if ap is None:
        return ""
    rows = []
    for kind, label in _AP_KINDS:
        for name, side in (("A", ap.a), ("B", ap.b)):
            values = "".join(f"<td>{_points(side[kind][column])}</td>" for column in _SHOWN_AP)
            rows.append(f"<tr><th scope=row>{label} <span class=soft>{name}</span></th>{values}</tr>")
        values = "".join(f"<td>{_change(ap.difference[kind][column])}</td>" for column in _SHOWN_AP)
        rows.append(f'<tr class="total"><th scope=row>{label} <span class=soft>B &minus; A</span></th>{values}</tr>')
    head = page.head_of("COCO, 0 to 100", *(column.replace("_", " ") for column in _SHOWN_AP))
    hint = f'<p class="hint">On {ap.images} annotated images, every score counted.'
    if ap.images < 1000:
        hint += " On so few, changes of a few tenths of a point are chance."
    return f"<section>\n<h2>Average precision</h2>\n{page.table_of(head, rows)}\n{hint}</p>\n</section>"


def _distribution(report: CompareReport) -> str:
    counts = dict.fromkeys([*(label for _, label in _BANDS), _LOWEST_BAND], 0)
    for image in report.images:
        quality = image.agreement.quality
        quality = 1.0 if quality >= _IDENTICAL else quality
        counts[next((label for floor, label in _BANDS if quality >= floor), _LOWEST_BAND)] += 1
    most = max(counts.values())
    rows = "".join(
        f'<li><span class="band">{label}</span><span class="bar"><i style="width:{100 * count / most:.1f}%"></i></span>'
        f'<span class="count">{count}</span></li>'
        for label, count in counts.items()
    )
    return f'<section>\n<h2>Images by agreement</h2>\n<ul class="bars">{rows}</ul>\n</section>'


def _examples(report: CompareReport) -> str:
    if not report.examples:
        return ""
    figures = "\n".join(_example(example, report) for example in report.examples)
    hint = '<p class="hint lead-in">Detections that only one side has are framed in white.</p>'
    return f"<section>\n<h2>Where they differ most</h2>\n{hint}\n{figures}\n</section>"


def _example(example: Example, report: CompareReport) -> str:
    comparison = example.comparison
    picture = _fit(example.image)
    panels = []
    sides = (("A", example.a, example.matches.only_a), ("B", example.b, example.matches.only_b))
    for (letter, raw, lone), resize in zip(sides, report.resize, strict=True):
        detections = _named(raw, picture, report.class_names, resize)
        source = _data_uri(_outlined(detections.plot(picture), detections.take(lone)))
        found = counted(len(raw), "detection")
        alone = f'<span class="lone">only here: {_listed(detections, lone)}</span>' if len(lone) else ""
        panels.append(
            f'<div class="panel side-{letter.lower()}"><img src="{source}" alt="{letter}: {found}" '
            f'width="{picture.shape[1]}" height="{picture.shape[0]}" loading="lazy">'
            f'<p><span class="letter">{letter}</span> {found} {alone}</p></div>'
        )
    name = page.escaped(Path(comparison.image).name)
    return (
        f'<figure class="example">\n<figcaption><span class="path" title="{page.escaped(comparison.image)}">{name}</span>'
        f'<span class="soft">{_agreement_line(comparison.agreement)}</span></figcaption>\n'
        f'<div class="pair">{"".join(panels)}</div>\n</figure>'
    )


def _agreement_line(agreement: Agreement) -> str:
    parts = [f"agreement {agreement.quality:.3f}", f"{agreement.matched} matched"]
    if agreement.matched:
        parts.append(f"mask IoU {_ratio(agreement.mean_mask_iou)}, lowest {_ratio(agreement.min_mask_iou)}")
    return " &middot; ".join(parts)


def _remarks(report: CompareReport) -> str:
    return page.notes_of("Notes", [*report.notes, *(f"skipped: {reason}" for _, reason in report.skipped)])


def _named(raw: RawDetections, picture: Image, class_names: tuple[str, ...], resize: ResizeMode) -> Detections:
    assembled = assemble_masks(raw, (picture.shape[0], picture.shape[1]), resize=resize)
    return dataclasses.replace(assembled, names=class_names)


def _outlined(drawn: Image, lone: Detections) -> Image:
    """The drawing with a white frame in a black one around what the other side lacks: it stands out on any ground."""
    import cv2

    canvas: Any = np.ascontiguousarray(drawn)
    corners = np.nan_to_num(lone.boxes_xyxy).clip(0, _PANEL_SIDE_PX).astype(int).tolist()
    for color, thickness in ((0, _FRAME_PX + 4), (255, _FRAME_PX)):
        for x1, y1, x2, y2 in corners:
            cv2.rectangle(canvas, (x1, y1), (x2, y2), (color, color, color), thickness)
    return np.asarray(canvas, np.uint8)


def _listed(detections: Detections, rows: IntArray) -> str:
    lone = detections.take(rows)
    return ", ".join(
        f"{page.escaped(name)} {score:.2f}" for name, score in zip(lone.class_names, lone.scores.tolist(), strict=True)
    )


def _fit(image: Image) -> Image:
    """The image at the size it is drawn in; small ones are enlarged, so that labels do not cover them."""
    import cv2

    scale = min(_PANEL_SIDE_PX / max(image.shape[:2]), _MAX_ENLARGEMENT)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    fitted: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return np.asarray(fitted, np.uint8)


def _data_uri(image: Image) -> str:
    import cv2

    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise OutputError(f"OpenCV could not encode {image.shape[1]}x{image.shape[0]} as JPEG.")
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _small(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.2e}" if value < 1e-3 else f"{value:.4f}"


def _ratio(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4f}"


def _points(value: float) -> str:
    return f"{100 * value:.2f}" if value >= 0 else _NONE


def _change(value: float | None) -> str:
    if value is None:
        return _NONE
    points = round(100 * value, 2) + 0.0
    tone = "worse" if points < 0 else "better" if points > 0 else "same"
    return (
        f'<span class="{tone}">{"&minus;" if points < 0 else "+" if points > 0 else "&plusmn;"}{abs(points):.2f}</span>'
    )


STYLE = """
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
header .pair { margin-top: 24px; }
.letter {
  flex: none; display: inline-grid; place-items: center; width: 22px; height: 22px; border-radius: 6px;
  font-size: 13px; font-weight: 700; color: var(--paper);
}
.side-a .letter { background: var(--a); }
.side-b .letter { background: var(--b); }
table td.path { text-align: right; }
.bars { list-style: none; margin: 0; padding: 0; max-width: 640px; }
.bars li { display: grid; grid-template-columns: 104px 1fr 48px; gap: 12px; align-items: center; font-size: 14px; }
.bars .band { color: var(--soft); }
.bars .bar { background: var(--track); border-radius: 4px; height: 10px; overflow: hidden; }
.bars i { display: block; height: 100%; background: var(--a); border-radius: 4px; }
.bars .count { font-variant-numeric: tabular-nums; }
.lead-in { margin: -8px 0 16px; }
.example { margin: 0 0 36px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 20px; margin-bottom: 8px; }
figcaption .path { font-weight: 600; }
.panel img { display: block; width: 100%; height: auto; border-radius: 8px; background: var(--track); }
.panel p { display: flex; align-items: baseline; flex-wrap: wrap; gap: 2px 8px; margin-top: 6px; font-size: 14px; }
.panel .letter { width: 18px; height: 18px; font-size: 11px; border-radius: 5px; align-self: center; }
.lone { color: var(--worse); overflow-wrap: anywhere; }
@media (max-width: 720px) {
  header .pair { grid-template-columns: 1fr; gap: 10px; }
  .example .pair { gap: 8px; }
}
@media print { .example { break-inside: avoid; } }
"""
