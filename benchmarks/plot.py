"""The plot: CPU per query by contender, one panel per scenario, as SVG without any library.

Rules of this file:
- one grey for all text, readable on white and on black; no background;
- bars start at zero; the whisker is the range over the rounds;
- a bar that would dwarf the others is cut, visibly, with its value beside it;
- the same results give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from benchmarks.figures import OURS, Row, rows
from benchmarks.results import Results
from benchmarks.scenarios import SCENARIOS

_WIDTH = 860
_LEFT = 150
"""Room for the names."""
_RIGHT = 130
"""Room for the figures."""
_BAR = 18
_STEP = 27
_HEAD = 52
_FOOT = 34
_CUT = 2.2
"""A bar this many times longer than the next one is cut."""
_TEXT = "#7d8287"
_COLOURS = {"ours": "#e07b22", "coredns": "#4a90d2", "other": "#9aa1a8"}


@dataclass(frozen=True, slots=True)
class _Scale:
    end: float
    step: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(value / self.end, 1.0)


def svg(results: Results) -> str:
    """The whole drawing."""
    parts: list[str] = []
    top = 0.0
    for scenario in SCENARIOS.values():
        table = rows(results, scenario.name)
        if table:
            parts += _panel(scenario.title, table, top)
            top += _HEAD + _STEP * len(table) + _FOOT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" height="{top:.0f}" '
        f'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" font-size="13" fill="{_TEXT}" role="img">'
    )
    title = "<title>CPU microseconds per query, one core, by contender</title>"
    return "\n".join([head, title, *parts, "</svg>", ""])


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
    colour = _COLOURS["ours" if ours else "coredns" if row.key.startswith("coredns") else "other"]
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
