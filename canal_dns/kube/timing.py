"""How long the watcher waits for what: client-go's figures (tools/cache/reflector.go), in one place.

Rules of this file:
- seconds, where nothing else is said;
- `now` and the randomness are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pauses:
    """After failures: 0.8 s, doubled up to 30 s, each with up to as much again."""

    first: float = 0.8
    longest: float = 30.0
    factor: float = 2.0
    jitter: float = 1.0
    """Up to this share of a pause is added to it."""
    reset: float = 120.0
    """So long after the last failure the next one counts as the first."""


@dataclass(frozen=True, slots=True)
class Timing:
    """All that may be waited for, and how much may be done at once."""

    page: int = 500
    """Objects per part of a list."""
    page_octets: int = 64 * 1024 * 1024
    """A larger part is asked for again in smaller ones."""
    list_silence: float = 60.0
    """Without an octet of a list for so long, it is given up."""
    watch: tuple[float, float] = (300.0, 600.0)
    """The server ends a watch after a time in this range, as clients ask it to."""
    silence: float = 90.0
    """A server sends a bookmark every minute: so long without an octet, and the connection is dead."""
    silence_without_bookmarks: float = 330.0
    """For servers that never sent one: a little more than such a watch is asked to last."""
    brief: float = 1.0
    """A watch that ends sooner has failed: the next one waits."""
    failures: int = 3
    """So many watches in a row that fail, and the list is read again."""
    retry: float = 30.0
    """A kind that is denied or not installed is tried again after so long, or up to half as much again."""
    longest_wish: float = 120.0
    """More than that is not granted to `Retry-After`."""
    attend: float = 1.0
    """Between two looks for a server that is back, or credentials that are new, while somebody waits for them."""
    doubt: float = 60.0
    """A server that was away and does not say that it is ready: after so long without trouble its refusals count."""
    stretch: float = 0.002
    """Work of one kind without letting others have the loop: several are read at once."""
    pauses: Pauses = Pauses()


class Backoff:
    """The pauses of one sequence of failures."""

    def __init__(self, pauses: Pauses, random: Callable[[], float]) -> None:
        self._pauses = pauses
        self._random = random
        self._next = pauses.first
        self._last: float | None = None

    def reset(self) -> None:
        """The next failure counts as the first."""
        self._next = self._pauses.first

    def went_well(self, seconds: float) -> None:
        """For so long there was nothing to wait for; if that is longer than the next pause, the next failure is a first one."""
        if seconds > self._next:
            self.reset()

    def pause(self, now: float) -> float:
        """Seconds to wait after a failure at `now`."""
        pauses = self._pauses
        if self._last is not None and now - self._last > pauses.reset:
            self._next = pauses.first
        seconds = self._next * (1.0 + self._random() * pauses.jitter)
        self._next = min(self._next * pauses.factor, pauses.longest)
        self._last = now + seconds
        return seconds
