"""One readiness event of a UDP socket: read up to a budget, answer hits at once, hand back the rest.

Rules of this file:
- never blocks, and never raises for what a peer or the kernel does: an error costs the one reply that met it, and is counted;
- a datagram of no octets is a datagram: only the kernel's "nothing there" ends a batch early;
- who may ask is settled before the table is looked at: `gate.free` knows; for anybody else decide() does, as for every miss;
- one packet, one call: what runs everywhere. `_batch_mmsg` is the same for kernels that take many at once, and `_batch_c` is
  that as an extension, which answers from the cache as well: in Python decide() does, as fast as it could be done here.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial

from canal_dns.dns.access import LAST_DROPPED_PORT, Gate
from canal_dns.dns.cache import AnswerCache, key_of
from canal_dns.dns.responder import answer_from_table
from canal_dns.dns.table import AnswerTable
from canal_dns.dns.wire import HEADER, MAX_STREAM, Fault, parse_query
from canal_dns.metrics import Counters
from canal_dns.server.hits import Miss, count_hits
from canal_dns.server.sockets import UdpSocket, count_send_error, patience, reply_control
from canal_dns.server.tally import REQUESTS_TCP, REQUESTS_UDP

MAX_PACKET = 1024
"""Octets read of one datagram: several times what a query can need. What is cut off fails to parse."""
CONTROL = 128
"""Octets for control messages: one in6_pktinfo with its header takes 40."""

_IN_PASSING = frozenset(
    (0, errno.EAGAIN, errno.EINTR, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
)
"""Nothing there, or what an earlier reply met on its way (ICMP): gone with the call that told it."""
_told: set[int] = set()
"""Errors of recvmmsg that were logged."""

log = logging.getLogger("canal_dns.server")


def drain(
    sock: UdpSocket,
    table: AnswerTable | None,
    cache: AnswerCache | None,
    gate: Gate,
    budget: int,
    words: memoryview,
    counters: Counters,
    now: float,
) -> list[Miss]:
    """Read at most `budget` datagrams; hits are sent when it returns, everything else is in the list, in order.

    `table` None: nothing is answered; `cache`: for a filling that can answer from it; `words`: the tally's, for hits, as
    `counters` is for what the kernel did not send; `now`: seconds of the monotonic clock when the event came.
    """
    misses: list[Miss] = []
    replies: list[bytes] = []
    errors: list[OSError] = []
    (_drain_wildcard if sock.wildcard else _drain_one_address)(sock, table, gate.free, budget, misses, replies, errors)
    if replies:
        count_hits(replies, words, REQUESTS_UDP, now)
    for error in errors:
        count_send_error(error, counters)
    return misses


def answer(packet: bytes, table: AnswerTable | None, cache: AnswerCache | None, now: float, stream: bool) -> bytes | None:
    """The reply to one usual query, from the table or the cache; None for anything else. Nothing is counted."""
    if table is None:
        return None
    reply = answer_from_table(packet, table, stream)
    if reply is not None or cache is None:
        return reply
    query = parse_query(packet, stream=stream)
    if isinstance(query, Fault):
        return None
    entry = cache.entries.get(key_of(query))
    hit = cache.look(query, now) if entry is not None and now < entry.usable_until else None
    return None if hit is None else hit.wire


def answer_stream(
    octets: bytes | memoryview,
    table: AnswerTable | None,
    cache: AnswerCache | None,
    now: float,
    words: memoryview,
    most: int,
) -> tuple[bytes, list[bytes], int, int]:
    """Take at most `most` whole frames from the start of `octets`, and none after one that is no query: what follows a
    message too short or a response cannot be trusted to be a frame.

    Gives the replies to hits, framed and joined, which are counted as sent; every other message, in order, an empty one too;
    how many octets were used, and how many frames they were. `cache` is as for `drain`. No frame more is taken once the
    replies are longer than the longest message: the client may not take them.
    """
    replies: list[bytes] = []
    misses: list[bytes] = []
    whole = bytes(octets)
    at, size, filled = 0, len(whole), 0
    while at + 2 <= size and len(replies) + len(misses) < most and filled <= MAX_STREAM + 2:
        end = at + 2 + (whole[at] << 8 | whole[at + 1])
        if end > size:
            break
        packet = whole[at + 2 : end]
        reply = None if table is None else answer_from_table(packet, table, True)
        at = end
        if reply is not None:
            replies.append(reply)
            filled += 2 + len(reply)
            continue
        misses.append(packet)
        if len(packet) < HEADER or packet[2] & 0x80:
            break
    taken = len(replies) + len(misses)
    if not replies:
        return b"", misses, at, taken
    count_hits(replies, words, REQUESTS_TCP, now)
    return b"".join([part for reply in replies for part in (len(reply).to_bytes(2), reply)]), misses, at, taken


def refused(
    number: int,
    misses: list[Miss],
    sock: UdpSocket,
    table: AnswerTable | None,
    cache: AnswerCache | None,
    gate: Gate,
    budget: int,
    words: memoryview,
    counters: Counters,
    now: float,
) -> list[Miss]:
    """What comes of a batch for which recvmmsg gave nothing but this error, after `misses`.

    What the call itself cannot do is done here: a socket that stays readable must never be read in vain, and silently.
    """
    if number in _IN_PASSING:
        return misses
    if number not in _told:
        _told.add(number)
        log.error("recvmmsg failed, datagrams are read one by one: %s", os.strerror(number))
    return misses + drain(sock, table, cache, gate, budget, words, counters, now)


def _drain_one_address(
    sock: UdpSocket,
    table: AnswerTable | None,
    free: set[str],
    budget: int,
    misses: list[Miss],
    replies: list[bytes],
    errors: list[OSError],
) -> None:
    receive, send = sock.recvfrom, sock.sendto
    for _ in range(budget):
        try:
            packet, peer = receive(MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            # What an earlier reply met on its way (ICMP): it says nothing about the next datagram.
            continue
        if table is not None and peer[0] in free and peer[1] > LAST_DROPPED_PORT:
            reply = answer_from_table(packet, table, False)
            if reply is not None:
                try:
                    send(reply, peer)
                except OSError as error:
                    if not _sent_later(partial(send, reply, peer), error, errors):
                        continue
                replies.append(reply)
                continue
        misses.append(Miss(packet, peer, ()))


def _sent_later(send: Callable[[], object], error: OSError, errors: list[OSError]) -> bool:
    """Send what met this error again, as long as that is worth it; what it met last is then among the errors."""
    while patience.again(error.errno or 0):
        try:
            send()
        except OSError as another:
            error = another
        else:
            return True
    errors.append(error)
    return False


def _drain_wildcard(
    sock: UdpSocket,
    table: AnswerTable | None,
    free: set[str],
    budget: int,
    misses: list[Miss],
    replies: list[bytes],
    errors: list[OSError],
) -> None:
    """The same, with the address that was asked: the reply leaves from there."""
    receive, send = sock.recvmsg, sock.sendmsg
    for _ in range(budget):
        try:
            packet, control, _, peer = receive(MAX_PACKET, CONTROL)
        except BlockingIOError:
            return
        except OSError:
            continue
        if table is not None and peer[0] in free and peer[1] > LAST_DROPPED_PORT:
            reply = answer_from_table(packet, table, False)
            if reply is not None:
                try:
                    send((reply,), reply_control(control), 0, peer)
                except OSError as error:
                    if not _sent_later(partial(send, (reply,), reply_control(control), 0, peer), error, errors):
                        continue
                replies.append(reply)
                continue
        misses.append(Miss(packet, peer, reply_control(control)))
