"""Limits per second: of error replies in all, and of answers per client prefix (response rate limiting).

Rules of this file:
- time is passed in as `now`, seconds of any clock that does not go back;
- memory is bounded: what was quiet for longest is forgotten first, which gives it a full allowance again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class PerSecond:
    """At most `limit` events in every window of one second; 0: none at all.

    A fixed window, as NSD's and Unbound's: a quiet second cannot be saved up for a burst.
    """

    __slots__ = ("_count", "_limit", "_start")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start = float("-inf")
        self._count = 0

    def take(self, now: float) -> bool:
        """True where one more event is allowed now."""
        if now - self._start >= 1.0:
            self._start = now
            self._count = 0
        self._count += 1
        return self._count <= self._limit


class TokenBuckets:
    """One bucket per key: `rate` tokens a second, as many at most."""

    __slots__ = ("_buckets", "_rate", "_size")

    def __init__(self, rate: int, size: int) -> None:
        """`size`: keys that are remembered at most."""
        self._rate = float(rate)
        self._size = size
        self._buckets: OrderedDict[Hashable, tuple[float, float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float) -> int:
        """0 where a token was there, else how many times there was none for this key so far."""
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            tokens, refused = self._rate, 0
            if len(self._buckets) >= self._size:
                self._buckets.popitem(last=False)
        else:
            tokens, since, refused = bucket
            tokens = min(self._rate, tokens + (now - since) * self._rate)
        if tokens >= 1.0:
            self._buckets[key] = tokens - 1.0, now, refused
            return 0
        self._buckets[key] = tokens, now, refused + 1
        return refused + 1
