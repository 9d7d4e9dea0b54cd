"""Small plots as SVG text: no library, since there are two kinds of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 340, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 30
_COLOURS = (
    "#0072b2", "#56b4e9", "#000000", "#777777", "#bbbbbb", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#8b4513",
    "#6a3d9a", "#b2df8a", "#a6761d",
)  # fmt: skip
"""Ours blue, references grey, then others; most of them told apart by colour-blind eyes."""
_FONT = 'font-family="system-ui, sans-serif" font-size="11"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot: seconds over latency, a line a system."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """(latency in ms, seconds) by system."""


def draw(panels: Sequence[Panel], systems: Sequence[str], *, across: int = 2) -> str:
    """Return an SVG of panels, seconds on a logarithmic axis, with one legend below for all of them.

    Args:
        panels: In reading order.
        systems: In the order of their colours and of the legend.
        across: Panels in a row.
    """
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(systems)}
    down = -(-len(panels) // across)
    legend_rows = -(-len(systems) // 4)
    width, height = across * _WIDTH, down * _HEIGHT + 20 + 18 * legend_rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for i, panel in enumerate(panels):
        x, y = i % across * _WIDTH, i // across * _HEIGHT
        parts.append(f'<g transform="translate({x},{y})">{_panel(panel, colours)}</g>')
    for i, name in enumerate(systems):
        x, y = 12 + i % 4 * (width - 24) / 4, down * _HEIGHT + 18 + i // 4 * 18
        stroke = f'stroke="{colours[name]}" stroke-width="3"'
        mark = f'<line x1="{x:.0f}" y1="{y:.0f}" x2="{x + 18:.0f}" y2="{y:.0f}" {stroke}/>'
        parts.append(f'{mark}<text x="{x + 24:.0f}" y="{y + 4:.0f}" {_FONT}>{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, colours: Mapping[str, str]) -> str:
    points = [point for line in panel.lines.values() for point in line]
    latencies = sorted({latency for latency, _ in points})
    low, high = _decades([seconds for _, seconds in points])
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(latency: float) -> float:
        span = latencies[-1] - latencies[0]
        return _LEFT + inner_width * ((latency - latencies[0]) / span if span else 0.5)

    def y_of(seconds: float) -> float:
        return _TOP + inner_height * (1 - (math.log10(seconds) - low) / (high - low))

    parts = [f'<text x="{_LEFT}" y="16" {_FONT} font-weight="bold">{escape(panel.title)}</text>']
    for power in range(low, high + 1):
        y = y_of(10.0**power)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{y + 4:.1f}" {_FONT} text-anchor="end">{10.0**power:g} s</text>')
    for latency in latencies:
        x = x_of(latency)
        text = f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" {_FONT} text-anchor="middle">{latency:g} ms</text>'
        parts.append(text)
    for name, line in panel.lines.items():
        path = " ".join(f"{x_of(latency):.1f},{y_of(seconds):.1f}" for latency, seconds in line)
        stroke = 2.5 if colours[name] in _COLOURS[:2] else 1.3
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="{stroke}"/>')
        dots = (f'<circle cx="{x_of(a):.1f}" cy="{y_of(b):.1f}" r="2.4" fill="{colours[name]}"/>' for a, b in line)
        parts.append("".join(dots))
    return "".join(parts)


def _decades(seconds: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten around some times."""
    low, high = math.floor(math.log10(min(seconds))), math.ceil(math.log10(max(seconds)))
    return low, max(high, low + 1)
