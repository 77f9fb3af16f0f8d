"""The verdict over the client's records: what was wrong, what failed, what was lost, and whether a killed worker held it.

Rules of this file:
- a record is wrong, failed (SERVFAIL), lost, or right; never two of them;
- a lost question counts as a killed worker's where that can have held it when it died: in its socket's buffer (anything), or
  on its way to an upstream (what is not always bound);
- it counts as lost beside a missing worker where the others had to do its work, until there was a new one;
- all others are lost without an excuse.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from tests.soak.content import VIPS
from tests.soak.history import History
from tests.soak.load import Record

BUFFER = 0.25
"""Seconds that a query may lie in a socket's buffer of 8 MiB at most, at the rates that two cores reach."""
FLIGHT = 1.6
"""Seconds that a forwarded query may be on its way: `limits.forwardBudget`, and a little."""
SERVFAIL = 2
EXAMPLES = 10


@dataclass(slots=True)
class Kill:
    """A worker's end: when the signal was sent, when the process was gone, and when there was a new one that answered."""

    sent: float
    gone: float
    whole: float = inf
    held: int = 0
    """Questions lost with it."""
    beside: int = 0
    """Questions lost until it was replaced."""


@dataclass(slots=True)
class Verdict:
    judged: int = 0
    """Answers to names that change."""
    wrong: int = 0
    failed: int = 0
    lost: int = 0
    """Without an excuse."""
    behind: float = 0.0
    """Seconds after a change at which the old answer still came, at most."""
    examples: list[str] = field(default_factory=list)
    """The first ones that are wrong, and the first that failed in `failures`."""
    failures: list[str] = field(default_factory=list)
    lost_at: Counter[int] = field(default_factory=Counter)
    """Tenths of a second since the beginning -> lost without an excuse."""


def judge(
    records: Iterable[Record], asked: Sequence[tuple[str, str, str]], history: History, kills: Sequence[Kill], began: float
) -> Verdict:
    """`asked`: the lines of the file of queries. `began`: when the load did. What was lost with `kills` is noted there."""
    verdict = Verdict()
    for record in records:
        name, qtype, truth = asked[record.query]
        if not record.received:
            _lose(verdict, record, truth, kills, began)
            continue
        if record.rcode == SERVFAIL:
            verdict.failed += 1
            _tell(verdict.failures, record, f"{name} {qtype}: SERVFAIL", began)
            continue
        answer = str(ipaddress.ip_address(record.address)) if record.address and not record.rcode else ""
        right = history.allowed(name, record.sent, record.received) if truth == "-" else {truth}
        verdict.judged += truth == "-"
        if answer not in right:
            verdict.wrong += 1
            said = answer or f"response code {record.rcode & 15}, no address"
            _tell(verdict.examples, record, f"{name} {qtype}: {said} instead of {' or '.join(sorted(right))}", began)
        elif truth == "-":
            verdict.behind = max(verdict.behind, history.behind(name, answer, record.sent, record.received))
    return verdict


def _lose(verdict: Verdict, record: Record, truth: str, kills: Sequence[Kill], began: float) -> None:
    for kill in kills:
        if kill.sent - (BUFFER if truth in VIPS else FLIGHT) <= record.sent <= kill.gone:
            kill.held += 1
            return
        if kill.gone < record.sent <= kill.whole + BUFFER:
            kill.beside += 1
            return
    verdict.lost += 1
    verdict.lost_at[int(10 * (record.sent - began))] += 1


def _tell(examples: list[str], record: Record, text: str, began: float) -> None:
    if len(examples) < EXAMPLES:
        examples.append(f"{record.sent - began:.3f} s: {text} (after {(record.received - record.sent) * 1e3:.1f} ms)")
