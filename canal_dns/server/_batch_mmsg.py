"""The packet loop by recvmmsg and sendmmsg, called through ctypes: two system calls for up to 64 datagrams (Linux).

Rules of this file:
- the rules of `_batch_py` hold, whose tests are run against both; what is not answered is handed back in the same form;
- one set of buffers serves all sockets: a batch is over before another one begins;
- addresses stay as the kernel wrote them: a reply goes out with the octets that its query came with;
- the kernel's structures are laid out below, once; where they would be others the import fails, and `_batch_py` runs;
- what the call itself cannot do is left to `_batch_py`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys

from canal_dns.dns.access import LAST_DROPPED_PORT, REMEMBERED, Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.responder import answer_from_table
from canal_dns.dns.table import AnswerTable
from canal_dns.dns.wire import MIN_UDP
from canal_dns.metrics import Counters
from canal_dns.server._batch_py import MAX_PACKET, refused
from canal_dns.server.hits import Miss, count_hits
from canal_dns.server.sockets import IP_PKTINFO, Control, Peer, UdpSocket, count_send_error, patience, reply_control
from canal_dns.server.tally import REQUESTS_UDP

if sys.platform != "linux" or sys.byteorder != "little" or struct.calcsize("P") != 8:
    raise ImportError("recvmmsg is called on 64-bit little-endian Linux only")

SLOTS = 64
"""Datagrams of one call."""

# struct mmsghdr in 8-octet words: msg_name, msg_namelen, msg_iov, msg_iovlen, msg_control, msg_controllen, msg_flags, msg_len.
_WORDS = 8
_HEADER = 8 * _WORDS
_CONTROL_WORD = 4
_LENGTH_HALF = 14
# struct iovec: iov_base, iov_len.
_IOV = 16
# struct sockaddr_in: family, port, address; struct sockaddr_in6: family, port, flow, address, scope.
_NAME = 28
# struct cmsghdr: cmsg_len, cmsg_level, cmsg_type; then in_pktinfo (interface first) or in6_pktinfo (interface last).
_CMSG = struct.Struct("=QII")
_CONTROL = 64


class _Info:
    """A control message that has the address that was asked: kind, its octets, the half that is the interface."""

    def __init__(self, level: int, kind: int, size: int, interface: int) -> None:
        self.kind = (level, kind)
        self.data = slice(_CMSG.size, _CMSG.size + size)
        self.space = (_CMSG.size + size + 7) // 8 * 8
        self.interface = interface


_V4_INFO = _Info(socket.IPPROTO_IP, IP_PKTINFO, 12, 4)
_V6_INFO = _Info(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, 20, 8)

_LAST_DROPPED_PORT = LAST_DROPPED_PORT.to_bytes(2, "big")

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


def check() -> None:
    """Raise ImportError unless the kernel knows both calls and lets us make them: a sandbox (seccomp) may not."""
    for name, result, number in (
        ("recvmmsg", _recvmmsg(-1, None, 0, 0, None), ctypes.get_errno()),
        ("sendmmsg", _sendmmsg(-1, None, 0, 0), ctypes.get_errno()),
    ):
        if result != -1 or number != errno.EBADF:
            raise ImportError(f"{name} cannot be called here: {os.strerror(number)}")


check()


class _Area:
    """Memory that has an address for the kernel, and is seen here as octets, halves (32 bits) and words (64 bits)."""

    __slots__ = ("address", "halves", "octets", "words")

    def __init__(self, size: int) -> None:
        buffer = (ctypes.c_char * size)()
        self.address = ctypes.addressof(buffer)
        self.octets = memoryview(buffer).cast("B")
        self.halves = self.octets.cast("I")
        self.words = self.octets.cast("Q")


def _headers(iov: _Area, control: int) -> _Area:
    """SLOTS headers: each with its name, its iovec, and its control message of so many octets."""
    area = _Area(SLOTS * _HEADER)
    for slot in range(SLOTS):
        name, control_at = _names.address + slot * _NAME, _controls.address + slot * _CONTROL if control else 0
        words = (name, _NAME, iov.address + slot * _IOV, 1, control_at, control, 0, 0)
        struct.pack_into("=8Q", area.octets, slot * _HEADER, *words)
    return area


_packets = _Area(SLOTS * MAX_PACKET)
_names = _Area(SLOTS * _NAME)
_controls = _Area(SLOTS * _CONTROL)
_replies = _Area(SLOTS * MIN_UDP)
_received_iov = _Area(SLOTS * _IOV)
_sent_iov = _Area(SLOTS * _IOV)
for _slot in range(SLOTS):
    struct.pack_into("=QQ", _received_iov.octets, _slot * _IOV, _packets.address + _slot * MAX_PACKET, MAX_PACKET)
_received = _headers(_received_iov, _CONTROL)
_AS_NEW = bytes(_received.octets)
_sent = _headers(_sent_iov, 0)
_sent_v4_wildcard = _headers(_sent_iov, _V4_INFO.space)
_sent_v6_wildcard = _headers(_sent_iov, _V6_INFO.space)
_NO_INTERFACES = memoryview(bytes(4 * SLOTS)).cast("I")

_hosts: dict[bytes, str] = {}
"""Addresses as the kernel writes them -> as text, as the gate knows them."""


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
    """As `_batch_py.drain`."""
    descriptor = sock.fileno()
    count = _recvmmsg(descriptor, _received.address, min(budget, SLOTS), socket.MSG_DONTWAIT, None)
    if count <= 0:
        number = ctypes.get_errno() if count else 0
        return refused(number, [], sock, table, cache, gate, budget, words, counters, now)
    names = bytes(_names.octets[: count * _NAME])
    packets = bytes(_packets.octets[: count * MAX_PACKET])
    sizes = _received.halves[_LENGTH_HALF : 16 * count : 16].tolist()
    _received.octets[: count * _HEADER] = _AS_NEW[: count * _HEADER]
    is_v6 = names[0] == socket.AF_INET6
    host_at, host_end = (8, _NAME) if is_v6 else (4, 8)
    sent = _sent
    if sock.wildcard:
        info, sent = (_V6_INFO, _sent_v6_wildcard) if is_v6 else (_V4_INFO, _sent_v4_wildcard)
        _controls.halves[info.interface :: _CONTROL // 4] = _NO_INTERFACES
    free, hosts = gate.free, _hosts
    iov, headers = _sent_iov.words, sent.words
    misses: list[Miss] = []
    replies: list[bytes] = []
    base, next_iov, next_header = _replies.address, 0, 0
    for slot, size in enumerate(sizes):
        start, name = slot * MAX_PACKET, slot * _NAME
        packet = packets[start : start + size]
        if (
            table is not None
            and hosts.get(names[name + host_at : name + host_end]) in free
            and names[name + 2 : name + 4] > _LAST_DROPPED_PORT
            and (reply := answer_from_table(packet, table, False)) is not None
        ):
            replies.append(reply)
            iov[next_iov] = base
            iov[next_iov + 1] = len(reply)
            base += len(reply)
            next_iov += 2
            headers[next_header] = _names.address + name
            headers[next_header + _CONTROL_WORD] = _controls.address + slot * _CONTROL
            next_header += _WORDS
        else:
            misses.append(Miss(packet, _peer(names, name, is_v6), _control(slot, is_v6) if sock.wildcard else ()))
    if replies:
        _send(descriptor, sent, replies, words, counters, now)
    return misses


def _send(descriptor: int, headers: _Area, replies: list[bytes], words: memoryview, counters: Counters, now: float) -> None:
    """Send one reply per header, whatever becomes of those before it: one that the kernel refuses is skipped, none waits
    for ever."""
    data = b"".join(replies)
    _replies.octets[: len(data)] = data
    at = 0
    lost = []
    while at < len(replies):
        sent = _sendmmsg(descriptor, headers.address + at * _HEADER, len(replies) - at, socket.MSG_DONTWAIT)
        if sent > 0:
            at += sent
        else:
            number = ctypes.get_errno()
            if patience.again(number):
                continue
            count_send_error(OSError(number, os.strerror(number)), counters)
            lost.append(at)
            at += 1
    for index in reversed(lost):
        del replies[index]
    if replies:
        count_hits(replies, words, REQUESTS_UDP, now)


def _peer(names: bytes, at: int, is_v6: bool) -> Peer:
    """The address as Python writes it; remembered, so that the next packet from there can be a hit."""
    raw = names[at + 8 : at + _NAME] if is_v6 else names[at + 4 : at + 8]
    host = _hosts.get(raw)
    if host is None:
        host = socket.inet_ntop(socket.AF_INET6, raw[:16]) if is_v6 else socket.inet_ntop(socket.AF_INET, raw)
        if len(_hosts) >= REMEMBERED:
            _hosts.clear()
        _hosts[raw] = host
    port = int.from_bytes(names[at + 2 : at + 4], "big")
    if not is_v6:
        return host, port
    return host, port, int.from_bytes(names[at + 4 : at + 8], "big"), int.from_bytes(raw[16:], sys.byteorder)


def _control(slot: int, is_v6: bool) -> Control:
    info = _V6_INFO if is_v6 else _V4_INFO
    octets = bytes(_controls.octets[slot * _CONTROL : (slot + 1) * _CONTROL])
    return reply_control(((*info.kind, octets[info.data]),))
