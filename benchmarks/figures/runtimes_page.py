"""The tables of docs/runtimes.md from benchmarks/results/runtimes.json: `python -m benchmarks.figures.runtimes_page`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.figures.results_page import RESULTS, ROOT
from yolact_deploy.files import write_text

PAGE = ROOT / "docs" / "runtimes.md"
MEASURED = RESULTS / "runtimes.json"
# Between these lines, the page is generated.
BEGIN, END = "<!-- tables: made from benchmarks/results/runtimes.json -->\n", "<!-- end of the tables -->\n"
_MARKS = {"ok": "yes", "wrong": "differs", "fails": "no"}


def write_page(measured: Path = MEASURED) -> None:
    """With the tables of a report. Raises OutputError."""
    report = json.loads(measured.read_text(encoding="utf-8"))
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), report))


def with_tables(page: str, report: dict[str, Any]) -> str:
    """The page with the tables of a report in the place of its own."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables(report)}\n\n{END}{after}"


def tables(report: dict[str, Any]) -> str:
    """Which form runs where; what each gave; and why not."""
    runtimes, forms = report["runtimes"], report["forms"].values()
    environment = report["environment"]
    said = f"{environment['cpu']}, {report['threads']} threads, {environment['date'][:10]}."
    return "\n".join(
        [
            *_table(
                ["", *(each["title"] for each in runtimes.values())],
                [[form["title"], *(_mark(form["runtimes"].get(name)) for name in runtimes)] for form in forms],
            ),
            "",
            f"From `python -m benchmarks.figures.runtimes`: {said}",
            *(line for form in forms for line in _details(form, runtimes)),
            *_why_not(forms, runtimes),
        ]
    )


def _mark(found: dict[str, Any] | None) -> str:
    return "not tried" if found is None else _MARKS[found["status"]]


def _details(form: dict[str, Any], runtimes: dict[str, Any]) -> list[str]:
    ran = [(runtimes[name]["title"], found) for name, found in form["runtimes"].items() if "objects" in found]
    reference = form.get("ap")
    headings = ["", "version", "largest error", "found again", "mask pixels that differ", "time"]
    if reference:
        headings.insert(5, "box AP, mask AP")
    rows = [_row(title, found, reference) for title, found in ran]
    if reference:
        rows.insert(0, ["`Detector` in onnxruntime", "", "", "", "", _ap(reference), ""])
    return ["", f"**{form['title']}**", "", *_table(headings, rows)]


def _row(title: str, found: dict[str, Any], reference: Any) -> list[str]:
    error, ratio = found["max_error"], found.get("time_ratio")
    row = [
        title,
        found["version"],
        "no number" if error is None else f"{error:.1g}",
        f"{found['found']} of {found['objects']}",
        f"{found['differ']} of {found['pixels']}",
        "" if ratio is None else f"{ratio:.2f}",
    ]
    if reference:
        row.insert(5, _ap(found["ap"]) if "ap" in found else "")
    return row


def _ap(found: dict[str, float]) -> str:
    return f"{found['box']:.2f}, {found['mask']:.2f}"


def _why_not(forms: Any, runtimes: dict[str, Any]) -> list[str]:
    lines = [f"- {each['title']}: {each['why_not']}." for each in runtimes.values() if each["why_not"]]
    for name, runtime in runtimes.items():
        reasons: dict[str, list[str]] = {}
        for form in forms:
            found = form["runtimes"].get(name, {"status": "ok"})
            if found["status"] == "fails":
                reasons.setdefault(found["reason"].rstrip("."), []).append(form["title"])
            elif found["status"] == "wrong":
                what = f"it runs, but finds {found['found']} of {found['objects']} objects again"
                reasons.setdefault(what, []).append(form["title"])
        lines += [f"- {runtime['title']}; {'; '.join(titles)}: `{reason}`" for reason, titles in reasons.items()]
    return ["", "**Why not**", "", *lines] if lines else []


def _table(headings: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]


if __name__ == "__main__":
    write_page()
