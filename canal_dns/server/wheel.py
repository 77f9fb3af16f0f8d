"""One timer for many connections: time-outs that are a tick late at most and cost nothing while bytes flow.

Rules of this file:
- an item sits in one slot; events only change what it will answer when asked, they never move it;
- when its slot comes the item is asked when it is due; what is not due yet is put back;
- an item that fails when asked is asked again like any other, and neither the others nor the timer suffer from it;
- a deadline that begins later than now is at least `shortest` away, so an item is asked again after that at the latest.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

MIN_TICK = 0.02
MAX_TICK = 1.0
_TICKS = 8
"""Ticks in the shortest time-out: how late it may come, as a share of itself."""

log = logging.getLogger("canal_dns.server")


class Item(Protocol):
    """What sits in a wheel."""

    slot: int
    """Kept by the wheel; -1: in none."""

    def due(self, now: float) -> float:
        """When to ask again, in seconds of the monotonic clock; what is due already is done in here."""


class Wheel:
    """Asks its items in time. Runs only while it has some."""

    def __init__(self, shortest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: dict[int, set[Item]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._shortest = shortest
        self._tick = _tick(shortest)

    def add(self, item: Item) -> None:
        """Take an item in; it is asked after `shortest` for the first time."""
        self._put(item, self._clock() + self._shortest)
        self._arm()

    def discard(self, item: Item) -> None:
        """Forget an item, whether it is in or not."""
        items = self._slots.get(item.slot)
        if items is not None:
            items.discard(item)
            if not items:
                del self._slots[item.slot]
        item.slot = -1
        if not self._slots and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reconfigure(self, shortest: float) -> None:
        """Another shortest time-out: every item is asked anew."""
        items = [item for items in self._slots.values() for item in items]
        self._slots.clear()
        self._shortest = shortest
        self._tick = _tick(shortest)
        for item in items:
            self._put(item, self._clock())

    def _put(self, item: Item, at: float) -> None:
        item.slot = int(at / self._tick) + 1
        self._slots.setdefault(item.slot, set()).add(item)

    def _arm(self) -> None:
        if self._timer is None and self._slots:
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._clock()
        upto = int(now / self._tick)
        try:
            for slot in [slot for slot in self._slots if slot <= upto]:
                for item in self._slots.pop(slot, ()):
                    item.slot = -1
                    self._put(item, min(max(_ask(item, now), now), now + self._shortest))
        finally:
            self._arm()


def _ask(item: Item, now: float) -> float:
    try:
        return item.due(now)
    except Exception:
        log.exception("a time-out could not be handled")
        return math.inf


def _tick(shortest: float) -> float:
    return min(max(shortest / _TICKS, MIN_TICK), MAX_TICK)
