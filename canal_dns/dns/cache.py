"""Answers that are known already: whole replies, kept for as long as their records say, for whoever asks the same.

Rules of this file:
- a hit is what relay() would have given this client of the reply that is kept, but for TTLs: they grow shorter by the second;
- an answer lives for the smallest TTL in it, a denial as its SOA says (RFC 2308 section 5), a failure for a second; what has
  no such time is not kept, nor is what was cut short (TC), answers no question, or was not asked with RD=1;
- what it says of bound names is as they were bound when it came: `purge` takes it out as soon as that changes;
- bounded in entries and in octets, all that belongs to an entry counted; every operation is O(1) in what is kept;
- `now` comes in with every call, in seconds of a clock that is never set (PR 8346 of CoreDNS): no date can age an answer.

Other readers (server/batch) know the layout of Entry and of `AnswerCache.entries`, and no more: they answer while `now` is
before `usable_until`, and mark `visited`.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

from canal_dns.dns.codes import Rcode, Type
from canal_dns.dns.encoder import Body
from canal_dns.dns.records import ANSWER, AUTHORITY, Record, Scan, scan
from canal_dns.dns.relay import fit, relay
from canal_dns.dns.scrub import mentioned
from canal_dns.dns.sieve import Sieve
from canal_dns.dns.table import MAX_TTL, AnswerTable
from canal_dns.dns.wire import AA, AD, CD, HEADER, MAX_STREAM, RD, TC, Failure, Query, opt_record, reply_flags

LONGEST = 3600
"""Seconds that an answer lives at most: CoreDNS's figure."""
LONGEST_DENIAL = 30
"""Seconds that a denial lives at most: a Service that is made after somebody asked for it is to be seen soon, and a denial is
cheap to ask for again. CoreDNS's kubernetes plugin says 5 itself."""
FAILURE = 1.0
"""Seconds that a SERVFAIL lives: RFC 9520 asks for at least one, and who recovers is to be seen at once."""
STALE_TTL = 30
"""TTL of what is served although it has expired (RFC 8767 section 4)."""
REFRESH = 0.1
"""Share of its life, the last one, in which an answer that is asked for again and again is fetched anew (CoreDNS: 10 %)."""
LARGEST = 4096
"""Octets of a reply that is kept: more than any usual one; larger ones would drive out dozens of others."""
ROOM = 2048
"""Octets that there are for each entry of `size` on the average. An A record behind a Service's name takes about 1000."""
NAMES = 64
"""Bound or bindable names that a reply may mention; one that mentions more is not kept."""
OVERHEAD, NAME_OVERHEAD = 600, 340
"""Octets that an entry takes, and each name that it mentions, besides their own: a little more than tracemalloc says."""

_CACHED = frozenset({Rcode.NOERROR, Rcode.SERVFAIL, Rcode.NXDOMAIN})
_KIND = [bytes([kind]) for kind in range(4)]
_IN_FORMER_LIFE = 2
"""A mark for the sieve alone: the answer was asked for, but not since it was fetched last."""

_head = Struct(">HHHHHH")
_counts = Struct(">HHH")
_offset = Struct("<H")
_ttl = Struct(">I")


class Entry(NamedTuple):
    """What is kept of a reply, under `key_of(query)`."""

    slot: int
    """Its place in `AnswerCache.visited`."""
    stored: float
    usable_until: float
    """Until then any reader may answer with it; later only `look`, which has more to decide."""
    expires: float
    flags: int
    """AA, AD and response code, as relayed to a client that asked for AD."""
    counts: bytes
    """ANCOUNT, NSCOUNT, ARCOUNT, 2 octets each, without an OPT record."""
    body: bytes
    """The records, without an OPT record. Compression pointers are offsets into a message with a question of this length."""
    offsets: bytes
    """Where in `body` the TTLs are: 16 bits each, little endian."""
    additional: int
    """Octets of `body` before its additional section, which a client with little room goes without."""
    names: frozenset[bytes]
    """Names of which the reply says something: what it is depends on whether they are bound, and to what."""


class Hit(NamedTuple):
    """Send this."""

    wire: bytes
    rcode: int
    refresh: bool
    """And ask the upstream again, for those who come next."""


class Remembered(bytes):
    """A reply from the cache, where others may come from elsewhere."""

    __slots__ = ()


def key_of(query: Query) -> bytes:
    """Lower-cased question, and an octet for what splits replies: bit 0 the client's DO, bit 1 its CD."""
    return query.name + query.question[-4:] + _KIND[query.do | (query.flags & CD) >> 3]


class AnswerCache:
    """The cache of one process."""

    __slots__ = ("_index", "_keys", "_sieve", "_stale", "denials", "entries", "evicted", "octets", "room", "visited")

    def __init__(self, size: int, stale: float = 0.0) -> None:
        """`size`: entries, at least 1; `stale`: seconds for which `look_stale` still knows what has expired."""
        self.entries: dict[bytes, Entry] = {}
        self._sieve = Sieve(size)
        self.visited = self._sieve.visited
        """By slot: 1 once an entry was used since it was stored. Whoever answers with an entry sets it."""
        self._keys: list[bytes] = []
        self._index: dict[bytes, set[bytes]] = {}
        """Name -> keys of the entries that mention it."""
        self._stale = stale
        self.room = size * ROOM
        self.octets = 0
        self.denials = 0
        """Entries without an answer: denials and failures."""
        self.evicted = 0
        """Entries that had to go for others, ever."""

    def look(self, query: Query, now: float) -> Hit | None:
        """The reply for a client, if it is known."""
        key = key_of(query)
        entry = self.entries.get(key)
        if entry is None or now >= entry.expires:
            return None
        refresh = False
        if now >= entry.usable_until and self.visited[entry.slot] == 1:
            # The mark for "asked for already" is that nobody is told to ask again.
            refresh = True
            self.entries[key] = entry._replace(usable_until=entry.expires)
        self.visited[entry.slot] = 1
        wire = _reply(query, entry, _aged(entry, int(now - entry.stored)))
        return None if wire is None else Hit(wire, entry.flags & 15, refresh)

    def look_stale(self, query: Query, now: float) -> Remembered | None:
        """The same, expired or not, for when nobody else can be asked: every TTL is STALE_TTL."""
        entry = self.entries.get(key_of(query))
        if entry is None or now >= entry.expires + self._stale or entry.flags & 15 == Rcode.SERVFAIL:
            return None
        self.visited[entry.slot] = 1
        wire = _reply(query, entry, _with_ttl(entry, STALE_TTL))
        return None if wire is None else Remembered(wire)

    def put(self, query: Query, reply: bytes, table: AnswerTable | None, now: float) -> None:
        """Keep a reply that match_reply() accepted, as relay() gives it to this client, if it may be kept."""
        flags = reply[2] << 8 | reply[3]
        if (
            flags & TC
            or flags & 15 not in _CACHED
            or not query.flags & RD
            or query.qtype == Type.ANY
            or len(reply) > LARGEST
            or reply[4:6] != b"\0\1"
        ):
            return
        if flags & 15 == Rcode.SERVFAIL and self._answers(key_of(query), now):
            return
        # The most that any client could get of it: what one of less gets is made of that.
        _, asked, question, name, qtype, qclass, _, do, _ = query
        widest = Query(0, asked & CD | AD, question, name, qtype, qclass, None, do, MAX_STREAM)
        wire = relay(widest, reply, table).wire
        if type(wire) is Failure:
            return
        original = scan(reply)
        assert original is not None  # noqa: S101 - for the type checker: match_reply() has scanned it
        names = mentioned(query, original)
        start, end = HEADER + len(question), len(wire)
        body, counts = wire[start:], wire[6:12]
        found = original if reply.startswith(body, start) and reply[6:10] == counts[:4] else scan(wire)
        if found is None or len(names) > NAMES:
            return
        records = [record for record in found.records if record.end <= end]
        rcode = wire[3] & 15
        life = _life(qtype, found, records, rcode)
        key = key_of(query)
        offsets = b"".join([_offset.pack(record.data - 6 - start) for record in records])
        cost = _cost(key, body, offsets, names)
        if life <= 0 or cost > self.room:
            return
        arcount = counts[4] << 8 | counts[5]
        additional = records[-arcount].start - start if arcount else len(body)
        expires = now + life
        usable_until = expires if rcode == Rcode.SERVFAIL else expires - life * REFRESH
        flags = (wire[2] << 8 | wire[3]) & (AA | AD | 15)
        slot = self._place(key, names, cost)
        entry = Entry(slot, now, usable_until, expires, flags, counts, body, offsets, additional, names)
        self.denials += _denies(entry)
        self.entries[key] = entry
        while self.octets > self.room:
            self._evict()

    def purge(self, names: Iterable[bytes]) -> None:
        """Forget every reply that asks for one of these names (lower-cased, in wire form) or says something of it."""
        for name in names:
            for key in tuple(self._index.get(name, ())):
                self._drop(key)

    def clear(self) -> None:
        """Forget all."""
        self.entries.clear()
        self._index.clear()
        self._keys.clear()
        self._sieve.clear()
        self.octets = self.denials = 0

    def _place(self, key: bytes, names: frozenset[bytes], cost: int) -> int:
        """The slot of an entry, which the caller writes; all the books but `entries` and `denials` have it already."""
        former = self.entries.get(key)
        if former is not None and former.names == names:
            # In the same place: that it is fetched again and again makes an entry neither young nor popular.
            slot = former.slot
            if self.visited[slot]:
                self.visited[slot] = _IN_FORMER_LIFE
            self.octets += cost - _cost(key, former.body, former.offsets, names)
            self.denials -= _denies(former)
            return slot
        if former is not None:
            self._drop(key)
        elif len(self.entries) == self._sieve.size:
            self._evict()
        slot = self._sieve.take()
        if slot == len(self._keys):
            self._keys.append(key)
        else:
            self._keys[slot] = key
        for name in names:
            self._index.setdefault(name, set()).add(key)
        self.octets += cost
        return slot

    def _answers(self, key: bytes, now: float) -> bool:
        """True while there is more to say than that it failed: who fetches anew before the end may fail, and loses nothing."""
        entry = self.entries.get(key)
        return entry is not None and now < entry.expires and entry.flags & 15 != Rcode.SERVFAIL

    def _evict(self) -> None:
        self._drop(self._keys[self._sieve.victim()])
        self.evicted += 1

    def _drop(self, key: bytes) -> None:
        entry = self.entries.pop(key)
        self._sieve.give_back(entry.slot)
        self._keys[entry.slot] = b""
        for name in entry.names:
            keys = self._index[name]
            keys.discard(key)
            if not keys:
                del self._index[name]
        self.octets -= _cost(key, entry.body, entry.offsets, entry.names)
        self.denials -= _denies(entry)


def _cost(key: bytes, body: bytes, offsets: bytes, names: frozenset[bytes]) -> int:
    of_names = sum(map(len, names)) + NAME_OVERHEAD * len(names)
    return OVERHEAD + len(key) + len(body) + len(offsets) + of_names


def _denies(entry: Entry) -> bool:
    return entry.flags & 15 != 0 or entry.counts[:2] == b"\0\0"


def _life(qtype: int, found: Scan, records: list[Record], rcode: int) -> float:
    """Seconds for which a reply may be kept; not above 0: not at all."""
    if rcode == Rcode.SERVFAIL:
        return FAILURE
    lowest = LONGEST
    answered = complete = False
    soa = None
    for record in records:
        ttl = record.ttl
        if ttl < lowest:
            lowest = ttl
        elif ttl > MAX_TTL:
            return 0
        if record.section == ANSWER:
            answered = True
            complete = complete or record.rtype == qtype
        elif record.rtype == Type.SOA and record.section == AUTHORITY and soa is None:
            soa = record
    if rcode == Rcode.NOERROR and answered and (complete or soa is None):
        return lowest
    if soa is None:
        return 0
    minimum = int.from_bytes(found.packet[soa.end - 4 : soa.end])
    return min(lowest, minimum, LONGEST_DENIAL)


def _aged(entry: Entry, age: int) -> bytes:
    """The body with every TTL less by `age` seconds. None is: the smallest of them is longer than the life of the entry."""
    body, offsets = entry.body, entry.offsets
    if age <= 0:
        return body
    if len(offsets) == 2:
        at = offsets[0] | offsets[1] << 8
        return body[:at] + (int.from_bytes(body[at : at + 4]) - age).to_bytes(4) + body[at + 4 :]
    aged = bytearray(body)
    for at in _offsets(entry):
        _ttl.pack_into(aged, at, _ttl.unpack_from(aged, at)[0] - age)
    return bytes(aged)


def _with_ttl(entry: Entry, ttl: int) -> bytes:
    body = bytearray(entry.body)
    for at in _offsets(entry):
        _ttl.pack_into(body, at, ttl)
    return bytes(body)


def _offsets(entry: Entry) -> list[int]:
    octets = entry.offsets
    return [octets[at] | octets[at + 1] << 8 for at in range(0, len(octets), 2)]


def _reply(query: Query, entry: Entry, body: bytes) -> bytes | None:
    flags = reply_flags(query) | entry.flags & (AA | 15)
    if entry.flags & AD and (query.ad or query.do):
        flags |= AD
    opt = b"" if query.payload is None else opt_record(do=query.do)
    answers, authorities, additionals = _counts.unpack(entry.counts)
    if HEADER + len(query.question) + len(body) + len(opt) <= query.limit:
        head = _head.pack(query.id, flags, 1, answers, authorities, additionals + (1 if opt else 0))
        return b"".join((head, query.question, body, opt))
    return fit(query, flags, Body((answers, authorities, additionals), body, entry.additional), opt)
