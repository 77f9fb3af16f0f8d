"""What was true of the names that change, and when: the new answer from the change on, the old one a little longer.

Rules of this file:
- a change is noted before the API server has it, in seconds of time.monotonic(), which the client's records use too;
- WINDOW seconds after the API server told of it the old answer is wrong; while the API server is away this time does not begin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

WINDOW = 2.0
"""Seconds: `settle` of 0.2 s, what the watch and a table take, and a machine that is full."""


@dataclass(slots=True)
class Change:
    at: float
    answer: str
    until: float
    """When what was answered before is wrong."""


class History:
    """Answers are addresses as text. `start`: what each name has at the beginning."""

    def __init__(self, start: dict[str, str]) -> None:
        self.changes = {name: [Change(-inf, answer, -inf)] for name, answer in start.items()}
        self._away = False

    def __len__(self) -> int:
        """How many changes there were."""
        return sum(len(changes) - 1 for changes in self.changes.values())

    def change(self, names: Iterable[str], answers: Iterable[str], now: float) -> None:
        for name, answer in zip(names, answers, strict=True):
            self.changes[name].append(Change(now, answer, inf if self._away else now + WINDOW))

    def away(self, now: float) -> None:
        """The API server goes: what it has not told of may take until it is back."""
        self._away = True
        self._until(now, inf)

    def back(self, now: float) -> None:
        """It is watched again."""
        self._away = False
        self._until(now, now + WINDOW)

    def _until(self, now: float, until: float) -> None:
        for changes in self.changes.values():
            for change in reversed(changes):
                if change.until <= now:
                    break
                change.until = until

    def allowed(self, name: str, sent: float, received: float) -> set[str]:
        """Every answer that is right for a question that left and was answered at these times."""
        right: set[str] = set()
        for change in reversed(self.changes[name]):
            if change.at <= received:
                right.add(change.answer)
            if change.until <= sent:
                break
        return right

    def behind(self, name: str, answer: str, sent: float, received: float) -> float:
        """Seconds for which this answer had not been the new one any more; 0: it was."""
        late = 0.0
        for change in reversed(self.changes[name]):
            if change.at <= received:
                if change.answer == answer:
                    break
                late = max(0.0, sent - (change.until - WINDOW))
        return late
