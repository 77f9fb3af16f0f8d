"""The plots, as SVG without any library: CPU per query by contender, one panel per scenario; and by the size of the table.

Rules of this file:
- one grey for all text, readable on white and on black; no background;
- bars start at zero; lines have logarithmic scales; the whisker is the range over the rounds;
- a bar that would dwarf the others is cut, visibly, with its value beside it;
- the same results give the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from benchmarks.figures import OURS, Row, rows
from benchmarks.results import Results
from benchmarks.scenarios import SCENARIOS, SIZED

_WIDTH = 860
_LEFT = 172
"""Room for the names."""
_SIZES_LEFT = 60
_RIGHT = 130
"""Room for the figures."""
_BAR = 18
_STEP = 27
_HEAD = 52
_FOOT = 34
_CUT = 2.2
"""A bar this many times longer than the next one is cut."""
_TEXT = "#7d8287"
_COLOURS = {"ours": "#e07b22", "also ours": "#efb57f", "coredns": "#4a90d2", "other": "#9aa1a8"}


@dataclass(frozen=True, slots=True)
class _Scale:
    end: float
    step: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(value / self.end, 1.0)


def bars(results: Results) -> str:
    """CPU per query by contender, scenario by scenario."""
    parts: list[str] = []
    top = 0.0
    for scenario in SCENARIOS.values():
        table = rows(results, scenario.name)
        if table and scenario.block != SIZED[0].block:
            parts += _panel(scenario.title, table, top)
            top += _HEAD + _STEP * len(table) + _FOOT
    return _drawing("CPU microseconds per query, one core, by contender", parts, top)


def _drawing(title: str, parts: list[str], height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}" '
        f'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" font-size="13" fill="{_TEXT}" role="img">'
    )
    return "\n".join([head, f"<title>{title}</title>", *parts, "</svg>", ""])


def sizes(results: Results) -> str:
    """CPU per query by the size of the table, both on logarithmic scales: a line for who was measured at two sizes or more."""
    tables = {len(scenario.addresses): rows(results, scenario.name) for scenario in SIZED}
    points: dict[str, list[tuple[int, float]]] = {}
    for size, table in tables.items():
        for row in table:
            points.setdefault(row.key, []).append((size, row.cpu_us.middle))
    points = {key: line for key, line in points.items() if len(line) > 1}
    values = [value for line in points.values() for _, value in line] or [1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    top, bottom, right = _HEAD + 10.0, 330.0, _WIDTH - _RIGHT - 30.0
    first, last = math.log10(min(tables)), math.log10(max(tables))

    def x(size: float) -> float:
        return _SIZES_LEFT + (right - _SIZES_LEFT) * (math.log10(size) - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (math.log10(value) - low) / max(1, high - low)

    title = "CPU microseconds per query by bound names in the table"
    parts = [f'<text x="{_SIZES_LEFT}" y="22" font-size="15" font-weight="600">{title}: a flat line is the goal</text>']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(
            f'<line x1="{_SIZES_LEFT}" y1="{at:.1f}" x2="{right:.1f}" y2="{at:.1f}" stroke="{_TEXT}" stroke-opacity="0.25"/>'
            f'<text x="{_SIZES_LEFT - 8}" y="{at + 4:.1f}" font-size="11" text-anchor="end">{10.0**power:g}</text>'
        )
    parts += [
        f'<text x="{x(size):.1f}" y="{bottom + 18:.1f}" font-size="11" text-anchor="middle">{size:,}</text>' for size in tables
    ]
    taken: list[float] = []
    for key, line in sorted(points.items(), key=lambda item: item[1][-1][1]):
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_colour(key)}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3.5" fill="{_colour(key)}"/>' for size, value in line]
        size, value = line[-1]
        at = min([y(value) + 4, *(one - 14 for one in taken)])
        taken.append(at)
        weight = ' font-weight="700"' if key == OURS else ""
        parts.append(f'<text x="{x(size) + 9:.1f}" y="{at:.1f}" font-size="12"{weight}>{escape(key)} {_figure(value)}</text>')
    return _drawing(title, parts, bottom + 34)


def _colour(key: str) -> str:
    kind = "ours" if key == OURS else "also ours" if OURS in key else "coredns" if key.startswith("coredns") else "other"
    return _COLOURS[kind]


def _panel(title: str, table: list[Row], top: float) -> list[str]:
    scale = _scale(table)
    first = top + _HEAD
    bottom = first + _STEP * len(table)
    parts = [
        f'<text x="{_LEFT}" y="{top + 22:.0f}" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="{top + 40:.0f}" font-size="12">CPU microseconds per query: shorter is better</text>',
    ]
    ticks = int(scale.end / scale.step + 0.001)
    for number in range(ticks + 1):
        x = scale.x(number * scale.step)
        parts.append(
            f'<line x1="{x:.1f}" y1="{first - 4:.0f}" x2="{x:.1f}" y2="{bottom:.0f}" stroke="{_TEXT}" stroke-opacity="0.25"/>'
            f'<text x="{x:.1f}" y="{bottom + 16:.0f}" font-size="11" text-anchor="middle">{number * scale.step:g}</text>'
        )
    for at, row in enumerate(table):
        parts += _bar(row, scale, first + at * _STEP)
    return parts


def _bar(row: Row, scale: _Scale, top: float) -> list[str]:
    middle = top + _BAR / 2
    ours = row.key == OURS
    colour = _colour(row.key)
    end = scale.x(row.cpu_us.middle)
    weight = ' font-weight="700"' if ours else ""
    parts = [
        f'<text x="{_LEFT - 10}" y="{middle + 4.5:.1f}" text-anchor="end"{weight}>{escape(row.key)}</text>',
        f'<rect x="{_LEFT}" y="{top:.1f}" width="{end - _LEFT:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>',
    ]
    if row.cpu_us.middle > scale.end:
        cut = end - 26
        under, over = f"{top + _BAR + 3:.1f}", f"{top - 3:.1f}"
        points = f"{cut:.1f},{under} {cut + 7:.1f},{over} {cut + 13:.1f},{over} {cut + 6:.1f},{under}"
        parts.append(f'<polygon points="{points}" fill="#ffffff" stroke="{_TEXT}"/>')
        after = end
    else:
        low, high = scale.x(row.cpu_us.low), scale.x(row.cpu_us.high)
        parts.append(
            f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8" '
            f'stroke="{_TEXT}" stroke-width="1.5" fill="none"/>'
        )
        after = max(end, high)
    parts.append(f'<text x="{after + 8:.1f}" y="{middle + 4.5:.1f}"{weight}>{_figure(row.cpu_us.middle)}</text>')
    return parts


def _figure(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _scale(table: list[Row]) -> _Scale:
    longest = sorted((row.cpu_us.middle, row.cpu_us.high) for row in table)
    _, end = longest[-1]
    if len(longest) > 1 and longest[-1][0] > _CUT * longest[-2][0]:
        end = longest[-2][1]
    step = next(
        step for power in (0.1, 1.0, 10.0, 100.0, 1e3, 1e4) for step in (power, 2 * power, 5 * power) if end / step <= 8
    )
    return _Scale(step * -(-end // step), step)
