"""What the HTML pages that commands write are made of: no scripts, no network; light or dark as the reader's system is, from
phone to desk.

Written with `html.escape` alone: a page is a handful of tables, and a template engine would be one more dependency of everyone.
Parts are HTML already; what comes from elsewhere goes through `escaped` first.
"""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable


def document(title: str, style: str, parts: Iterable[str], *, images: bool = False) -> str:
    """A whole page, in one string that needs nothing from elsewhere; empty parts are left out. `style` follows PAGE_STYLE;
    with `images`, they may be inside as data."""
    allowed = "default-src 'none'; img-src data:; style-src" if images else "default-src 'none'; style-src"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed} \'unsafe-inline\'">\n'
        f"<title>{escaped(title)}</title>\n<style>{PAGE_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def figures(cells: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers side by side: name, value, and a hint below it."""
    drawn = "".join(
        f'<div class="figure"><p class="name">{name}</p><p class="value">{value}</p><p class="hint">{hint}</p></div>'
        for name, value, hint in cells
    )
    return f'<section class="figures">{drawn}</section>'


def table_of(head: str, rows: Iterable[str]) -> str:
    """A table that scrolls within its frame."""
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def head_of(*names: str, words: Collection[str] = ()) -> str:
    """The head row of a table; columns of `words` hold text."""
    cells = (f"<th scope=col{' class=words' if name in words else ''}>{escaped(name)}</th>" for name in names)
    return f"<tr>{''.join(cells)}</tr>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in rows)}</dl>"


def notes_of(title: str, notes: Collection[str]) -> str:
    """A titled list of remarks; nothing where there are none."""
    items = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return f"<section>\n<h2>{escaped(title)}</h2>\n<ul class=notes>{items}</ul>\n</section>" if notes else ""


def escaped(value: str) -> str:
    """Escaped for text and attributes; bytes of a file name that are no UTF-8 become question marks."""
    return html.escape(value.encode("utf-8", "replace").decode("utf-8"), quote=True)


PAGE_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #1c1e21; --soft: #676d75; --line: #e3e4e0; --track: #ecede9;
  --a: #2563c9; --b: #c2570c; --worse: #b3261e; --better: #1b7f4b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1c1f24; --ink: #e8e9eb; --soft: #9aa1ab; --line: #2d3138; --track: #282c33;
    --a: #7fb0ff; --b: #f5a25d; --worse: #ff8a80; --better: #6fd3a0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 40px 28px 72px; }
h1 { font-size: 32px; line-height: 1.15; letter-spacing: -0.02em; margin: 0; font-weight: 650; }
h2 { font-size: 17px; letter-spacing: -0.005em; margin: 44px 0 12px; font-weight: 620; }
p { margin: 0; }
code { font: 0.9em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.eyebrow { color: var(--soft); font-size: 13px; margin-bottom: 6px; }
.lead { color: var(--soft); margin-top: 8px; font-size: 16px; }
.soft, .hint { color: var(--soft); }
.hint { font-size: 13px; margin-top: 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.card h2 { display: flex; align-items: center; gap: 10px; margin: 0 0 12px; font-size: 16px; }
.file, .path { overflow-wrap: anywhere; }
.chip {
  flex: none; margin-left: auto; padding: 1px 9px; border: 1px solid var(--line); border-radius: 99px;
  font-size: 13px; font-weight: 500;
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 0; font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.figures {
  display: flex; flex-wrap: wrap; gap: 1px; margin-top: 16px;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
}
.figure { flex: 1 1 190px; background: var(--card); padding: 14px 18px; }
.figure .name { color: var(--soft); font-size: 13px; }
.figure .value { font-size: 26px; line-height: 1.3; font-weight: 620; font-variant-numeric: tabular-nums; }
.figure .hint { margin-top: 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 8px 16px; text-align: right; white-space: nowrap; font-weight: 400; }
th:first-child, td:first-child, td.path, th[scope=row] { text-align: left; }
thead th { color: var(--soft); font-size: 13px; }
tbody tr { border-top: 1px solid var(--line); }
thead th:last-child { text-align: right; }
tr.total td, tr.total th { font-weight: 600; }
.worse, .bad { color: var(--worse); }
.better { color: var(--better); }
.notes { margin: 0; padding-left: 20px; color: var(--soft); overflow-wrap: anywhere; }
@media (max-width: 720px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 26px; }
  .figure { flex-basis: 40%; padding: 12px 14px; }
  .figure .value { font-size: 22px; }
  th, td { padding: 7px 12px; }
}
@media print { .scroll, .card { break-inside: avoid; } }
"""
