"""Pieces of the benchmark page."""

from __future__ import annotations

import html
from collections.abc import Iterable

_WORDS = ("peer", "why")  # columns of text


def section(title: str, content: str, hint: str) -> str:
    return f'<section>\n<h2>{escaped(title)}</h2>\n{content}\n<p class="hint">{escaped(hint)}</p>\n</section>'


def chart_card(svg: str) -> str:
    return f'<div class="chart">{svg}</div>'


def table_of(head: str, rows: Iterable[str]) -> str:
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def head_of(*names: str) -> str:
    cells = (f"<th scope=col{' class=words' if name in _WORDS else ''}>{escaped(name)}</th>" for name in names)
    return f"<tr>{''.join(cells)}</tr>"


def number(value: float | None, digits: int = 2) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def escaped(value: str) -> str:
    """Escaped for text and attributes; bytes of a file name that are no UTF-8 become question marks."""
    return html.escape(value.encode("utf-8", "replace").decode("utf-8"), quote=True)
