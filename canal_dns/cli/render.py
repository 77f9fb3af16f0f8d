"""Text for people: columns as kubectl prints them, colour only on a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from canal_dns.mesh.explain import Explanation

NO_ROUTE = "NoRoute"


class Paint:
    """Writes to a stream, with colour where a terminal shows it (https://no-color.org is honoured)."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def line(self, text: str = "") -> None:
        """Write one line at once: whoever reads a pipe sees it when it happens."""
        print(text, file=self.stream, flush=True)

    def good(self, text: str) -> str:
        return self._paint("32", text)

    def bad(self, text: str) -> str:
        return self._paint("31", text)

    def dim(self, text: str) -> str:
        return self._paint("2", text)

    def strong(self, text: str) -> str:
        return self._paint("1", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text


class Show:
    """What the demo writes with."""

    def __init__(self, paint: Paint) -> None:
        self._paint = paint

    def line(self, text: str = "") -> None:
        self._paint.line(text)

    def table(self, plain: Mapping[str, Any]) -> None:
        table(plain, self._paint, everything=False)


def table(plain: Mapping[str, Any], paint: Paint, *, everything: bool) -> None:
    """The bindings (the shape of `table -o json`) as tables; Services without a route are counted unless asked for."""
    _gateways(plain["gateways"], paint)
    bound = plain["bound"]
    paint.line(paint.strong(f"BOUND ({len(bound)})"))
    columns(
        ("NAME", "VIP", "GATEWAY", "ROUTES"),
        [(one["name"], ", ".join(one["vips"]), one["gateway"], ", ".join(one["routes"])) for one in bound],
        paint,
        paint.good,
    )
    for one in bound:
        for warning in one["warnings"]:
            paint.line(f"warning: {one['name']}: {warning}")
    skipped = [one for one in plain["skipped"] if everything or one["reason"] != NO_ROUTE]
    paint.line()
    paint.line(paint.strong(f"SKIPPED ({len(plain['skipped'])})"))
    columns(
        ("NAME", "REASON", "ROUTE", "WHY"),
        [(one["name"], one["reason"], one["route"] or "-", one["message"]) for one in skipped],
        paint,
        paint.bad,
    )
    hidden = len(plain["skipped"]) - len(skipped)
    if hidden:
        services = (
            "Service that no VirtualService mentions keeps" if hidden == 1 else "Services that no VirtualService mentions keep"
        )
        paint.line(paint.dim(f"{hidden} {services} the answer of CoreDNS (--all lists them)"))
    for problem in plain.get("problems", ()):
        where = f"{problem['object']} {problem['field']}".rstrip()
        paint.line(f"problem: {where}: {problem['message']} ({problem['reason']})")


def _gateways(gateways: Sequence[Mapping[str, Any]], paint: Paint) -> None:
    paint.line(paint.strong(f"GATEWAYS ({len(gateways)})"))
    columns(
        ("SERVICE", "VIP", "READY", "PORTS", "ATTACHED"),
        [
            (
                one["gateway"],
                ", ".join(one["vips"]) or "none",
                "yes" if one["ready"] else "no",
                ", ".join(map(str, one["ports"])) or "none",
                ", ".join(one["attached"]) or "none",
            )
            for one in gateways
        ],
        paint,
    )
    for one in gateways:
        for warning in one["warnings"]:
            paint.line(f"warning: {one['gateway']}: {warning}")
    paint.line()


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], paint: Paint, first: Any = None) -> None:
    """Left-aligned columns, three blanks apart; nothing at all without rows."""
    body = [tuple(row) for row in rows]
    if not body:
        return
    widths = [max(len(row[at]) for row in [tuple(head), *body]) for at in range(len(head) - 1)]
    for number, row in enumerate([tuple(head), *body]):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        if number and first:
            cells[0] = first(cells[0])
        line = "   ".join([*cells, row[-1]])
        paint.line(paint.dim(line) if number == 0 else line)


def explanation(one: Explanation, paint: Paint) -> None:
    """The chain of a name, one link a line, then the verdict."""
    paint.line(paint.strong(one.name))
    for step in one.steps:
        mark = paint.good("ok  ") if step.ok else paint.bad("FAIL")
        where = f"{step.object} {step.field}".strip()
        paint.line(f"  {mark}  {where}: {step.text}" if where else f"  {mark}  {step.text}")
    paint.line(paint.good(one.verdict) if one.bound else paint.bad(one.verdict))
