"""Replies that came before: what was found out about one is not found out again while the next is the same but for its ID.

Rules of this file:
- no query is answered from here: each is asked upstream, only the work on its reply is saved;
- what is remembered is a pure function of its key; whatever relay() looks at in a query or a table is in the key or
  empties the memory; replies that were relayed without a table, for exempt clients too, stand beside the others;
- a failure of our own is not remembered;
- the memory is bounded: two generations of ROOM octets, of which the older one is forgotten at once, and no large replies.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from canal_dns.dns.relay import relay
from canal_dns.dns.table import AnswerTable
from canal_dns.dns.wire import AD, CD, RD, Mismatch, Query, match_reply

LARGEST = 512
"""Octets of a reply that is remembered: the names of a cluster give less, and what gives more is rarely asked for often."""
ROOM = 1 << 20
"""Octets of replies in a generation, each with OVERHEAD: about 2500 of 120 octets, as many as a busy cluster gives in a few
seconds. At most 5 MiB in a process, measured with 20,000 distinct replies of 60, 120, 300 and of 512 octets."""
OVERHEAD = 300
"""Octets that an entry costs besides its reply."""

_FLAGS = RD | AD | CD

Key = TypeVar("Key")
Value = TypeVar("Value")


class _Generations(Generic[Key, Value]):
    """A dictionary that forgets what was not asked for while ROOM was filled with other entries."""

    __slots__ = ("_room", "old", "young")

    def __init__(self) -> None:
        self.young: dict[Key, Value] = {}
        self.old: dict[Key, Value] = {}
        self._room = ROOM

    def older(self, key: Key, octets: int) -> Value | None:
        """For a key that is not young; it is young again then."""
        value = self.old.get(key)
        if value is not None:
            self.put(key, value, octets)
        return value

    def put(self, key: Key, value: Value, octets: int) -> None:
        """`octets`: of the reply that this is about."""
        self._room -= octets + OVERHEAD
        if self._room < 0:
            self.old = self.young
            self.young = {}
            self._room = ROOM - octets - OVERHEAD
        self.young[key] = value

    def clear(self) -> None:
        self.young = {}
        self.old = {}
        self._room = ROOM


class Memory:
    """match_reply() and relay() with a memory. One per process."""

    __slots__ = ("_generation", "_matched", "_relayed", "_table")

    def __init__(self) -> None:
        self._matched: _Generations[bytes, bytes] = _Generations()
        self._relayed: _Generations[tuple[bytes, bytes, int, bool, bool, int, bool], tuple[bytes, bool]] = _Generations()
        self._table: AnswerTable | None = None
        self._generation = 0

    def match(self, query: Query, ident: int, packet: bytes) -> Mismatch | None:
        """As match_reply(), for a caller that found the query by the ID in the packet."""
        rest = packet[2:]
        matched = self._matched
        question = matched.young.get(rest) or matched.older(rest, len(rest))
        if question == query.question:
            return None
        mismatch = match_reply(query, ident, packet)
        if mismatch is None and len(packet) <= LARGEST:
            matched.put(rest, query.question, len(rest))
        return mismatch

    def relay(self, query: Query, reply: bytes, table: AnswerTable | None) -> tuple[bytes, bool]:
        """As relay(): the reply for this client, and whether addresses of a bound name were replaced in it."""
        if table is not None and (table is not self._table or table.generation != self._generation):
            self._relayed.clear()
            self._table = table
            self._generation = table.generation
        key = (reply[2:], query.question, query.flags & _FLAGS, query.payload is None, query.do, query.limit, table is None)
        relayed = self._relayed
        known = relayed.young.get(key) or relayed.older(key, len(reply))
        if known is not None:
            return query.id.to_bytes(2, "big") + known[0], known[1]
        fresh = relay(query, reply, table)
        if len(reply) <= LARGEST and type(fresh.wire) is bytes:
            relayed.put(key, (fresh.wire[2:], fresh.rewritten), len(reply))
        return fresh.wire, fresh.rewritten
