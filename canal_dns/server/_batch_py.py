"""One readiness event of a UDP socket: read up to a budget, answer hits at once, hand back the rest.

Rules of this file:
- never blocks, and never raises for what a peer or the kernel does: an error costs the one reply that met it, and is counted;
- a datagram of no octets is a datagram: only the kernel's "nothing there" ends a batch early;
- who may ask is settled before the table is looked at: `gate.free` knows; for anybody else decide() does, as for every miss;
- one packet, one call: what runs everywhere. `_batch_mmsg` is the same for kernels that take many at once.
"""

from __future__ import annotations

from canal_dns.dns.access import LAST_DROPPED_PORT, Gate
from canal_dns.dns.responder import answer_from_table
from canal_dns.dns.table import AnswerTable
from canal_dns.metrics import Counters
from canal_dns.server.hits import Miss, count_hits
from canal_dns.server.sockets import UdpSocket, count_send_error, reply_control

MAX_PACKET = 1024
"""Octets read of one datagram: several times what a query can need. What is cut off fails to parse."""
CONTROL = 128
"""Octets for control messages: one in6_pktinfo with its header takes 40."""


def drain(sock: UdpSocket, table: AnswerTable | None, gate: Gate, budget: int, counters: Counters, now: float) -> list[Miss]:
    """Read at most `budget` datagrams; hits are sent when it returns, everything else is in the list, in order.

    `now`: seconds of the monotonic clock when the event came.
    """
    misses: list[Miss] = []
    replies: list[bytes] = []
    errors: list[OSError] = []
    (_drain_wildcard if sock.wildcard else _drain_one_address)(sock, table, gate.free, budget, misses, replies, errors)
    if replies:
        count_hits(replies, counters, now)
    for error in errors:
        count_send_error(error, counters)
    return misses


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
                    errors.append(error)
                else:
                    replies.append(reply)
                continue
        misses.append(Miss(packet, peer, ()))


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
                    errors.append(error)
                else:
                    replies.append(reply)
                continue
        misses.append(Miss(packet, peer, reply_control(control)))
