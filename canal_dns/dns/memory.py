"""Replies that came before: what was found out about one is not found out again while the next is the same but for its ID.

Rules of this file:
- no query is answered from here: each is asked upstream, only the work on its reply is saved;
- what is remembered is a pure function of its key; whatever relay() looks at in a query or a table is in the key or
  empties the memory;
- the memory is bounded: two generations of SIZE entries, of which the older one is forgotten at once.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from canal_dns.dns.relay import relay
from canal_dns.dns.table import AnswerTable
from canal_dns.dns.wire import AD, CD, MAX_UDP, RD, Mismatch, Query, match_reply

SIZE = 4096
"""Entries in a generation: as many replies as a busy cluster's names give in a few seconds, in some megabytes."""

_FLAGS = RD | AD | CD

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Generations(Generic[Key, Value]):
    """A dictionary that forgets what was not asked for while SIZE other entries were."""

    __slots__ = ("old", "young")

    def __init__(self) -> None:
        self.young: dict[Key, Value] = {}
        self.old: dict[Key, Value] = {}

    def older(self, key: Key) -> Value | None:
        """For a key that is not young; it is young again then."""
        value = self.old.get(key)
        if value is not None:
            self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        if len(self.young) >= SIZE:
            self.old = self.young
            self.young = {}
        self.young[key] = value

    def clear(self) -> None:
        self.young = {}
        self.old = {}


class Memory:
    """match_reply() and relay() with a memory. One per process."""

    __slots__ = ("_generation", "_matched", "_relayed", "_table")

    def __init__(self) -> None:
        self._matched: _Generations[bytes, bytes] = _Generations()
        self._relayed: _Generations[tuple[bytes, bytes, int, bool, bool, int], tuple[bytes, bool]] = _Generations()
        self._table: AnswerTable | None = None
        self._generation = 0

    def match(self, query: Query, ident: int, packet: bytes) -> Mismatch | None:
        """As match_reply(), for a caller that found the query by the ID in the packet."""
        rest = packet[2:]
        matched = self._matched
        question = matched.young.get(rest) or matched.older(rest)
        if question == query.question:
            return None
        mismatch = match_reply(query, ident, packet)
        if mismatch is None and len(rest) <= MAX_UDP:
            matched.put(rest, query.question)
        return mismatch

    def relay(self, query: Query, reply: bytes, table: AnswerTable | None) -> tuple[bytes, bool]:
        """As relay(): the reply for this client, and whether addresses of a bound name were replaced in it."""
        if table is not self._table or (table is not None and table.generation != self._generation):
            self._relayed.clear()
            self._table = table
            self._generation = 0 if table is None else table.generation
        key = (reply[2:], query.question, query.flags & _FLAGS, query.payload is None, query.do, query.limit)
        relayed = self._relayed
        known = relayed.young.get(key) or relayed.older(key)
        if known is not None:
            return query.id.to_bytes(2, "big") + known[0], known[1]
        fresh = relay(query, reply, table)
        if len(reply) <= MAX_UDP:
            relayed.put(key, (fresh.wire[2:], fresh.rewritten))
        return fresh.wire, fresh.rewritten
