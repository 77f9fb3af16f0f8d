# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The packet loop as an extension: recvmmsg, the table or the cache, sendmmsg; on a hit no object is made but its key.

Rules of this file:
- it gives the very octets that `_batch_py.answer` would give, or leaves the packet to Python;
- the packets of a batch are parsed first and looked up together: while memory is waited for, that of the next ones is, too;
- a reply is put together where its query lies; what has to be made for misses is made once all replies are sent;
- what is remembered of clients is bounded, and void as soon as the gate has another set of free ones;
- no bounds are checked by the compiler: an index is below SLOTS, CLIENTS, or a size that stands beside it.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_Hash
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from canal_dns.server._packets cimport (
    CMSG_DATA, HEADER, MAX_STREAM, MIN_UDP, OPT, RECEIVED, SLOTS, cmsghdr, fold_question, ntohl, query, read_query,
    reduce_ttls, slot_client, slot_is_v6, slot_port, slots, slots_prepare, slots_receive, slots_refused, slots_reply, slots_send, write_reply,
)

import os
import socket

from canal_dns.dns.access import LAST_DROPPED_PORT
from canal_dns.dns.wire import AA, AD
from canal_dns.metrics import BUCKETS
from canal_dns.server import tally
from canal_dns.server._batch_py import MAX_PACKET, refused
from canal_dns.server.hits import Miss
from canal_dns.server.sockets import count_send_error, patience

cdef extern from "_lookahead.h":
    void look_ahead(PyObject *dict, PyObject **keys, int count)

cdef extern from *:
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) except NULL
    PyObject *look_up "PyDict_GetItemWithError"(PyObject *, PyObject *) except? NULL

cdef enum:
    CLIENTS = 4096
    GATHERED = 2 * MAX_STREAM + 4   # two of the largest replies on a stream, with their lengths
    MOST_BUCKETS = 32
    MOST_SOURCES = 8
    HIGHEST = 254                   # type that may be in the cache: ANY never is, and the tally has no words for others

cdef struct Client:
    uint8_t address[20]
    uint32_t epoch                  # in which it was seen to be free
    PyObject *host                  # as text

cdef struct Hit:
    int source, rcode

cdef struct Counts:
    Py_buffer view
    uint64_t *words
    int requests
    int replies[MOST_SOURCES]

cdef slots batch
cdef query asked[SLOTS]
cdef Hit hits[SLOTS]
cdef PyObject *keys[SLOTS]
cdef PyObject *found[SLOTS]
cdef uint8_t gathered[GATHERED]
cdef Client clients[CLIENTS]
cdef uint32_t epoch = 0
cdef object free_clients = None

cdef int last_port = LAST_DROPPED_PORT, aa = AA, ad = AD, code = 15, no_flag = 0
cdef int of_table = tally.TABLE, of_cache = tally.CACHE, sources = <int>len(tally.SOURCES), words_in_all = tally.SIZE
cdef int requests_udp = tally.REQUESTS_UDP, requests_tcp = tally.REQUESTS_TCP, responses = tally.RESPONSES
cdef int answers = tally.ANSWERS, durations = tally.DURATIONS, duration = tally.DURATION
cdef double bounds[MOST_BUCKETS]
cdef int last_bucket = <int>len(BUCKETS), place
for place in range(last_bucket):
    bounds[place] = BUCKETS[place]

cdef object new_tuple = tuple.__new__

CALLS = (<size_t>&batch.receive, <size_t>&batch.send)
"""Where the system calls stand: tests put a kernel of their own there."""


# -- one query ---------------------------------------------------------------------------------------------------------

cdef inline PyObject *key_of(const uint8_t *packet, const query *of, int kind) except NULL:
    """A new key: the lower-cased question; `kind`: an octet behind it, unless it is negative."""
    cdef int size = of.end - HEADER
    cdef PyObject *key = new_bytes(NULL, size + (kind >= 0))
    cdef uint8_t *octets = <uint8_t *>PyBytes_AS_STRING(<object>key)
    fold_question(octets, packet, of)
    if kind >= 0:
        octets[size] = <uint8_t>kind
    return key


cdef inline int from_table(uint8_t *to, const uint8_t *packet, const query *of, object body):
    """Octets of the reply; 0: it is not for us."""
    cdef uint8_t counts[6]
    cdef const uint8_t *octets
    cdef Py_ssize_t size
    if not PyBytes_CheckExact(body):
        return 0
    octets = <const uint8_t *>PyBytes_AS_STRING(body)
    size = PyBytes_GET_SIZE(body) - 4
    if size < 0 or of.end + size + OPT > MIN_UDP:
        return 0
    memcpy(counts, octets, 4)
    counts[4] = counts[5] = 0
    return write_reply(to, packet, of, aa, counts, octets + 4, <int>size)


cdef int from_cache(uint8_t *to, const uint8_t *packet, const query *of, cache, double now, Hit *hit) except -1:
    """The same; marks the entry as used."""
    cdef PyObject *key
    cdef PyObject *value
    cdef tuple entry
    cdef bytes counts, body, offsets
    cdef bytearray visited
    cdef Py_ssize_t size, slot
    cdef double stored, until
    cdef int flags, length
    if of.qtype > HIGHEST:
        return 0
    key = key_of(packet, of, of.dnssec | (packet[3] & 0x10) >> 3)
    try:
        value = look_up(<PyObject *>cache.entries, key)
    finally:
        Py_XDECREF(key)
    if value is NULL:
        return 0
    entry, visited = <tuple>value, cache.visited
    slot, stored, until, flags = entry[0], entry[1], entry[2], entry[4]
    counts, body, offsets = entry[5], entry[6], entry[7]
    size = PyBytes_GET_SIZE(body)
    if now >= until or of.end + size + (OPT if of.opt else 0) > of.limit or not 0 <= slot < PyByteArray_GET_SIZE(visited):
        return 0
    hit.source, hit.rcode = of_cache, flags & code
    length = write_reply(to, packet, of, flags & (aa | code | (ad if of.ad or of.dnssec else no_flag)),
                         <const uint8_t *>PyBytes_AS_STRING(counts), <const uint8_t *>PyBytes_AS_STRING(body), <int>size)
    if now - stored >= 1:
        reduce_ttls(to + of.end, <int>size, <const uint8_t *>PyBytes_AS_STRING(offsets), <int>PyBytes_GET_SIZE(offsets),
                    <uint32_t>(now - stored))
    PyByteArray_AS_STRING(visited)[slot] = 1
    return length


cdef int reply_to(uint8_t *to, const uint8_t *packet, int size, bint stream, table, cache, double now, query *of,
                  Hit *hit) except -1:
    """One query from look-up to reply; `to` has room for the largest one."""
    cdef PyObject *key
    cdef PyObject *body
    if table is None or not read_query(packet, size, stream, of):
        return 0
    key = key_of(packet, of, -1)
    try:
        body = look_up(<PyObject *>table.exact, key)
    finally:
        Py_XDECREF(key)
    if body is not NULL:
        hit.source, hit.rcode = of_table, 0
        return from_table(to, packet, of, <object>body)
    return 0 if cache is None else from_cache(to, packet, of, cache, now, hit)


def answer(bytes packet not None, table, cache, double now, bint stream):
    cdef query of
    cdef Hit hit
    cdef int size = reply_to(gathered, <const uint8_t *>PyBytes_AS_STRING(packet), <int>PyBytes_GET_SIZE(packet), stream, table,
                             cache, now, &of, &hit)
    return PyBytes_FromStringAndSize(<char *>gathered, size) if size else None


# -- a stream ----------------------------------------------------------------------------------------------------------

def answer_stream(octets, table, cache, double now, words, const Py_ssize_t most):
    cdef list misses = []
    cdef Py_buffer view
    cdef const uint8_t *frame
    cdef Py_ssize_t at = 0, taken = 0
    cdef int length, size, filled = 0
    cdef bint garbage = False
    cdef query of
    cdef Hit hit
    cdef Counts counts
    PyObject_GetBuffer(octets, &view, PyBUF_SIMPLE)
    try:
        begin(&counts, words, requests_tcp)
        while taken < most and not garbage and at + 2 <= view.len and filled + 2 + MAX_STREAM <= GATHERED:
            frame = <const uint8_t *>view.buf + at
            length = frame[0] << 8 | frame[1]
            if at + 2 + length > view.len:
                break
            size = reply_to(gathered + filled + 2, frame + 2, length, True, table, cache, now, &of, &hit)
            if size:
                gathered[filled] = <uint8_t>(size >> 8)
                gathered[filled + 1] = <uint8_t>size
                filled += 2 + size
                count(&counts, of.qtype, hit)
            else:
                misses.append(PyBytes_FromStringAndSize(<const char *>frame + 2, length))
                garbage = length < HEADER or frame[4] & 0x80
            at += 2 + length
            taken += 1
        end(&counts, now)
    finally:
        PyBuffer_Release(&view)
    return PyBytes_FromStringAndSize(<char *>gathered, filled), misses, at, taken


# -- the tally ---------------------------------------------------------------------------------------------------------

cdef int begin(Counts *counts, words, int requests) except -1:
    PyObject_GetBuffer(words, &counts.view, PyBUF_WRITABLE)
    if counts.view.len < 8 * words_in_all:
        PyBuffer_Release(&counts.view)
        raise ValueError("too short for a tally")
    counts.words = <uint64_t *>counts.view.buf
    counts.requests = requests
    memset(counts.replies, 0, sizeof(counts.replies))
    return 0


cdef inline void count(Counts *counts, int qtype, Hit hit) noexcept:
    counts.words[counts.requests + min(qtype, 256)] += 1
    counts.words[responses + hit.rcode] += 1
    counts.words[answers + hit.source] += 1
    counts.replies[hit.source] += 1


cdef void end(Counts *counts, double since) noexcept:
    """Every reply took as long as its batch."""
    cdef timespec now
    cdef double seconds
    cdef int source, bucket = 0
    cdef uint64_t *words
    clock_gettime(CLOCK_MONOTONIC, &now)
    seconds = max(<double>now.tv_sec + <double>now.tv_nsec * 1e-9 - since, 0.0)
    while bucket < last_bucket and bounds[bucket] < seconds:
        bucket += 1
    for source in range(sources):
        if counts.replies[source]:
            words = counts.words + durations + duration * source
            words[bucket] += <uint64_t>counts.replies[source]
            words[duration - 1] += <uint64_t>(seconds * 1e9) * <uint64_t>counts.replies[source]
    PyBuffer_Release(&counts.view)


# -- a batch of datagrams ----------------------------------------------------------------------------------------------

def drain(sock, table, cache, gate, int budget, words, counters, double now):
    global free_clients, epoch
    cdef list misses = []
    cdef int descriptor = sock.fileno(), received
    free = gate.free
    if free is not free_clients:
        free_clients = free
        epoch += 1
    while True:
        received = slots_receive(&batch, descriptor, budget)
        if received <= 0:
            return refused(errno if received else 0, misses, sock, table, cache, gate, budget, words, counters, now)
        send(descriptor, put_together(received, table, cache, now), words, counters, now)
        leave(received, misses)
        budget -= received
        if received < SLOTS or budget <= 0 or len(misses) >= SLOTS:
            return misses


cdef int put_together(int received, table, cache, double now) except -1:
    """Replies that are ready to be sent; the size of what has one is -1."""
    cdef int slot, size, ready = 0
    cdef bint stream = False
    if table is None:
        return 0
    cdef dict exact = table.exact
    for slot in range(received):
        keys[slot] = found[slot] = NULL
        if (
            slot_port(&batch, slot) > last_port
            and read_query(batch.packet[slot], batch.size[slot], stream, &asked[slot])
            and is_free(sender(slot))
        ):
            keys[slot] = key_of(batch.packet[slot], &asked[slot], -1)
            PyObject_Hash(<object>keys[slot])
    if received > 1:
        look_ahead(<PyObject *>exact, keys, received)
    for slot in range(received):
        if keys[slot] is not NULL:
            found[slot] = look_up(<PyObject *>exact, keys[slot])
    for slot in range(received):
        if keys[slot] is NULL:
            continue
        Py_XDECREF(keys[slot])
        size = 0
        if found[slot] is not NULL:
            hits[slot] = Hit(of_table, 0)
            size = from_table(batch.packet[slot], batch.packet[slot], &asked[slot], <object>found[slot])
        elif cache is not None:
            size = from_cache(batch.packet[slot], batch.packet[slot], &asked[slot], cache, now, &hits[slot])
        if size:
            slots_reply(&batch, ready, slot, size)
            batch.size[slot] = -1
            ready += 1
    return ready


cdef int send(int descriptor, int ready, words, counters, double now) except -1:
    """Send every reply, whatever becomes of those before it."""
    cdef int at = 0, done, slot, problem
    cdef Counts counts
    if not ready:
        return 0
    begin(&counts, words, requests_udp)
    while at < ready:
        done = slots_send(&batch, descriptor, at, ready)
        if done > 0:
            for at in range(at, at + done):
                slot = batch.back[at]
                count(&counts, asked[slot].qtype, hits[slot])
        else:
            problem = errno
            if patience.again(problem):
                continue
            count_send_error(OSError(problem, ""), counters)
        at += 1
    end(&counts, now)
    return 0


cdef Client *sender(int slot) except NULL:
    """Who sent a datagram."""
    cdef uint8_t address[20]
    cdef uint64_t words[2]
    cdef Client *client
    slot_client(&batch, slot, address)
    memcpy(words, address, sizeof(words))
    client = &clients[((words[0] ^ words[1] << 7) * 0x9E3779B97F4A7C15ULL) >> 52]
    if client.host is NULL or memcmp(client.address, address, sizeof(address)) != 0:
        v6 = slot_is_v6(&batch, slot)
        host = socket.inet_ntop(socket.AF_INET6 if v6 else socket.AF_INET, (<char *>address)[: 16 if v6 else 4])
        Py_INCREF(host)
        Py_XDECREF(client.host)
        client.host = <PyObject *>host
        client.epoch = 0
        memcpy(client.address, address, sizeof(address))
    return client


cdef inline bint is_free(Client *client) except -1:
    if client.epoch != epoch and <object>client.host in <set>free_clients:
        client.epoch = epoch
    return client.epoch == epoch


cdef int leave(int received, list misses) except -1:
    """What was not answered, in order, with what it takes to reply."""
    cdef int slot
    cdef cmsghdr *head
    for slot in range(received):
        if batch.size[slot] < 0:
            continue
        peer = (<object>sender(slot).host, slot_port(&batch, slot))
        if slot_is_v6(&batch, slot):
            peer += (ntohl(batch.name[slot].sin6_flowinfo), batch.name[slot].sin6_scope_id)
        control = ()
        if batch.control_size[slot]:
            head = &batch.control[slot].head
            data = (<char *>CMSG_DATA(head))[: <Py_ssize_t>(head.cmsg_len - sizeof(cmsghdr))]
            control = ((head.cmsg_level, head.cmsg_type, data),)
        misses.append(new_tuple(Miss, ((<char *>batch.packet[slot])[: batch.size[slot]], peer, control)))
    return 0


slots_prepare(&batch)
if RECEIVED != MAX_PACKET or last_bucket > MOST_BUCKETS or sources > MOST_SOURCES:
    raise ImportError("it was built for another version of canal-dns")
if slots_refused(&batch) is not NULL:
    raise ImportError(f"{slots_refused(&batch).decode()} cannot be called here: {os.strerror(errno)}")
