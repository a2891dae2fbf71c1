"""The comparison of modules as a part of the page: how the error grows through the network, as a curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from yolact_deploy.reports import page
from yolact_deploy.text import counted

if TYPE_CHECKING:
    from exporters.comparison.layers import LayerComparison, ModuleDifference

_WIDTH, _HEIGHT = 960, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
_LEAST = 1e-8  # relative L2 below which the curve is flat: float32 tells no less


def layers_section(layers: LayerComparison) -> str:
    """A curve over all modules, the one that parted first, and a table of all."""
    hint = (
        f"Relative L2 of what each module gives, in the order of the network, on {counted(len(layers.images), 'image')}. "
        f"The line is at {layers.parts_at:g}, where a module is said to have parted."
    )
    head = page.head_of(
        "module",
        "relative L2",
        "of its inputs",
        "max abs error",
        "range in A",
        "range in B",
        "weights up to",
        words=("module",),
    )
    table = page.table_of(head, (_row(module, layers) for module in layers.modules))
    return (
        f'<section>\n<h2>Modules</h2>\n<p class="hint lead-in">{page.escaped(hint)}</p>\n{_curve(layers)}\n'
        f"<p>{_said(layers)}</p>\n<details><summary>All {len(layers.modules)}</summary>\n{table}\n</details>\n</section>"
    )


def _said(layers: LayerComparison) -> str:
    grown = f"<code>{page.escaped(layers.most_grown.node)}</code> adds most to the error of what goes in."
    if layers.first_parted is None:
        return f"No module parts. {grown}"
    conv = next((module for module in layers.modules if module.node == layers.first_convolution), None)
    of_conv = (
        ""
        if conv is None
        else f" The convolution <code>{page.escaped(conv.node)}</code> gives {_range(conv.range_a)} in A and "
        f"{_range(conv.range_b)} in B."
    )
    return f"<code>{page.escaped(layers.first_parted)}</code> is the first to part.{of_conv} {grown}"


def _curve(layers: LayerComparison) -> str:
    modules = layers.modules
    levels = [_level(module.relative_l2) for module in modules]
    low = math.floor(min(*levels, math.log10(layers.parts_at)))
    high = max(math.ceil(max(*levels, math.log10(layers.parts_at))), low + 1)

    def x(index: int) -> float:
        return _LEFT + index / max(1, len(modules) - 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(level: float) -> float:
        return _TOP + (high - level) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for power in range(low, high + 1):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(power):.1f}" y2="{y(power):.1f}"/>'
        )
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(power) + 4:.1f}" text-anchor="end">1e{power}</text>')
    limit = y(math.log10(layers.parts_at))
    parts.append(f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{limit:.1f}" y2="{limit:.1f}"/>')
    points = " ".join(f"{x(index):.1f},{y(level):.1f}" for index, level in enumerate(levels))
    parts.append(f'<polyline class="growth" points="{points}"/>')
    for index, (module, level) in enumerate(zip(modules, levels, strict=True)):
        css = "first" if module.node == layers.first_parted else "module"
        title = page.escaped(f"{module.node}: {_small(module.relative_l2)}")
        parts.append(
            f'<circle class="{css}" cx="{x(index):.1f}" cy="{y(level):.1f}" r="{5 if css == "first" else 3}">'
            f"<title>{title}</title></circle>"
        )
    parts.append(f'<text class="tick" x="{_LEFT}" y="{_HEIGHT - 6}">{page.escaped(modules[0].module)}</text>')
    parts.append(
        f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{page.escaped(modules[-1].module)}</text>'
    )
    label = "relative L2 of each module"
    return (
        f'<svg class="layers" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _level(value: float) -> float:
    """On the curve's scale; what is no number is at its top."""
    return math.log10(max(value, _LEAST)) if math.isfinite(value) else 1.0


def _row(module: ModuleDifference, layers: LayerComparison) -> str:
    cells = (
        _small(module.relative_l2),
        _small(module.input_relative_l2),
        _small(module.max_abs_error),
        _range(module.range_a),
        _range(module.range_b),
        "&ndash;" if module.max_abs_weight is None else f"{module.max_abs_weight:.3g}",
    )
    css = ' class="total"' if module.node == layers.first_parted else ""
    values = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr{css}><th scope=row><code>{page.escaped(module.node)}</code></th>{values}</tr>"


def _range(limits: tuple[float, float]) -> str:
    return f"{limits[0]:.3g} to {limits[1]:.3g}"


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}"


LAYERS_STYLE = """
.layers { width: 100%; height: auto; }
.layers .grid { stroke: var(--track); }
.layers .limit { stroke: var(--worse); stroke-dasharray: 6 4; }
.layers .growth { fill: none; stroke: var(--a); stroke-width: 2; }
.layers .module { fill: var(--a); }
.layers .first { fill: var(--worse); }
.layers .tick { fill: var(--soft); font-size: 12px; }
details summary { cursor: pointer; color: var(--soft); margin: 12px 0; }
"""
