# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Forwarding as an extension: what is usual on its way to an upstream and back, in batches, without a Python call per query.

Rules of this file:
- the book is `dns.inflight`'s, and there is one: a flight that began here stands in the same dictionaries, under the same
  key and ID, and what Python looks at in it is there when it looks; from then on Python alone ends it;
- a query is taken, and a reply relayed, only where Python would come to the very same octets; all else is left to Python;
- a reply counts only on the channel and under the ID of its flight, with the same question, and well formed to the end;
- no bounds are checked by the compiler: an index is below SLOTS or READ, or a size that stands beside it.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import os
from functools import partial

from canal_dns.dns import flights
from canal_dns.dns.access import LAST_DROPPED_PORT
from canal_dns.dns.loops import PROBE_LABEL
from canal_dns.dns.wire import parse_query
from canal_dns.metrics import BUCKETS
from canal_dns.server import tally
from canal_dns.server.sockets import count_send_error, patience

cdef extern from "_forward.h" nogil:
    enum:
        HEADER, MAX_QUESTION, SLOTS, IN, TYPE_OPT, OPT, MAX_UDP
    struct query:
        int end, limit
        uint16_t qtype
        uint8_t opt, dnssec, ad
    struct found:
        int end, names
        uint8_t counts[6]
        int length[1]
        uint8_t name[1][256]
    struct iovec:
        void *iov_base
        size_t iov_len
    struct mmsghdr:
        unsigned int msg_len
    struct outgoing:
        int count
        iovec part[1]
        uint8_t packet[1][1344]
    struct incoming:
        mmsghdr *in_ "in"
        uint8_t packet[1][65535]
    bint read_query(const uint8_t *packet, int size, bint stream, query *asked)
    void fold_question(uint8_t *to, const uint8_t *packet, const query *asked)
    int write_reply(uint8_t *to, const uint8_t *packet, const query *asked, int flags, const uint8_t *counts,
                    const uint8_t *body, int size)
    bint scan_reply(const uint8_t *packet, int size, int at, found *of)
    int write_ask(uint8_t *to, const uint8_t *packet, const query *asked, unsigned ident, bint dnssec)
    bint same_question(const uint8_t *reply, int size, const uint8_t *packet, const query *asked, const uint8_t *name)
    void outgoing_add(outgoing *of, int size, unsigned name_size, unsigned control_size)
    unsigned outgoing_name(outgoing *of, const char *host, int port, uint32_t flow, uint32_t scope, bint is_v6)
    unsigned outgoing_control(outgoing *of, int level, int kind, const uint8_t *data, int size)
    int outgoing_send(outgoing *of, int descriptor, int first)
    int incoming_receive(incoming *of, int descriptor)

cdef extern from *:
    PyObject *look_up "PyDict_GetItemWithError"(object, object) except? NULL
    PyObject *set_default "PyDict_SetDefault"(object, object, object) except NULL
    const char *text_of "PyUnicode_AsUTF8"(object) except NULL

cdef enum:
    FIRST_META = 128    # and above: types that no record has, ANY, and types that the tally has elsewhere
    NXDOMAIN = 3
    IDS = 4096          # octets of randomness fetched at a time

cdef outgoing asks, answers
cdef incoming got
cdef found reading
cdef int rcodes[64]         # of the replies in `answers`
cdef double arrivals[64]    # and when their queries came

cdef tuple RD_CD = (0, 0x0010, 0x0100, 0x0110)
cdef double bounds[64]
cdef int last_bucket = <int>len(BUCKETS)
cdef int last_port = LAST_DROPPED_PORT, of_probe = PROBE_LABEL
cdef int REQUESTS = tally.REQUESTS_UDP, RESPONSES = tally.RESPONSES, UPSTREAM = tally.ANSWERS + tally.UPSTREAM
cdef int DURATIONS = tally.DURATIONS + tally.DURATION * tally.UPSTREAM, DURATION = tally.DURATION
for _index, _bound in enumerate(BUCKETS):
    bounds[_index] = _bound


cdef inline const uint8_t *octets_of(bytes packet) noexcept:
    return <const uint8_t *>PyBytes_AS_STRING(packet)


cdef inline double clock() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef inline int bucket(double seconds) noexcept:
    """As bisect_left(BUCKETS, seconds)."""
    cdef int place = 0
    while place < last_bucket and bounds[place] < seconds:
        place += 1
    return place


cdef bint is_usual(bytes asking, bytes name, const uint8_t *packet, int size, dict bound) except -1:
    """True, and the reply is in `reading`, if it is one that match_reply() accepts and in which relay() has nothing to change.

    `asking`: a query that has come in, with its name, folded; whoever else asks the same differs in what fits_client() sees.
    """
    cdef query asked
    cdef int place
    if size < HEADER or packet[2] & 0xFA != 0x80 or packet[4] != 0 or packet[5] != 1:
        return False
    if (packet[3] & 15) != 0 and (packet[3] & 15) != NXDOMAIN:
        return False
    if not read_query(octets_of(asking), <int>PyBytes_GET_SIZE(asking), False, &asked):
        return False
    if not same_question(packet, size, octets_of(asking), &asked, octets_of(name)):
        return False
    if not scan_reply(packet, size, asked.end, &reading) or name in bound:
        return False
    for place in range(reading.names):
        if PyBytes_FromStringAndSize(<const char *>reading.name[place], reading.length[place]) in bound:
            return False
    return True


cdef bint fits_client(bytes asking) noexcept:
    """True if what is in `reading` can go to this client as a whole."""
    cdef query asked
    if not read_query(octets_of(asking), <int>PyBytes_GET_SIZE(asking), False, &asked):
        return False
    return reading.end + (OPT if asked.opt else 0) <= asked.limit


cdef int compose(uint8_t *to, bytes asking, const uint8_t *packet) noexcept:
    """The reply for one client, as relay() makes it. Gives its size."""
    cdef query asked
    cdef int flags = (packet[2] & 0x04) << 8 | packet[3] & 15
    if not read_query(octets_of(asking), <int>PyBytes_GET_SIZE(asking), False, &asked):
        return 0
    if packet[3] & 0x20 and (asked.ad or asked.dnssec):
        flags |= 0x20
    return write_reply(to, octets_of(asking), &asked, flags, reading.counts, packet + asked.end, reading.end - asked.end)


def relayed(bytes asking not None, bytes reply not None, dict bound not None):
    """What a client that sent `asking` is given of this reply, without Python; None: that is for Python to find out."""
    cdef query asked
    cdef uint8_t folded[MAX_QUESTION + 1]
    cdef int size = <int>PyBytes_GET_SIZE(reply)
    if not read_query(octets_of(asking), <int>PyBytes_GET_SIZE(asking), False, &asked):
        return None
    fold_question(folded, octets_of(asking), &asked)
    name = PyBytes_FromStringAndSize(<const char *>folded, asked.end - HEADER - 4)
    if not is_usual(asking, name, octets_of(reply), size, bound) or not fits_client(asking):
        return None
    return PyBytes_FromStringAndSize(<const char *>answers.packet[0], compose(answers.packet[0], asking, octets_of(reply)))


@cython.freelist(1024)
cdef class Flight:
    """A flight of one query by one way. As dns.flights.Flight to whoever looks, and `adopted` once somebody did."""

    cdef readonly object key
    cdef readonly double started
    cdef public object upstream, reply, truncated, streamed
    cdef public double sent
    cdef public int mismatches, streaming
    cdef public bint do, late, done, extra, redialled, refused, probe, successor
    cdef object channel, ident
    cdef list joined                    # (miss, sock, answer, since) of those who came later
    cdef tuple miss
    cdef object sock, answer            # of who came first
    cdef object _query, _waiters, _slots, _asked

    cdef int adopt(self) except -1:
        if self._waiters is not None:
            return 0
        waiters = []
        for miss, sock, answer, since in [(self.miss, self.sock, self.answer, self.started), *(self.joined or ())]:
            packet, peer, control = miss
            asked = parse_query(packet, stream=False)
            waiters.append((asked, peer[0], partial(answer, peer, control, since), since, False))
        self._query = waiters[0][0]
        self._slots = [(self.channel, self.ident)]
        self._asked = (self.upstream,)
        self._waiters = waiters
        return 0

    @property
    def query(self):
        self.adopt()
        return self._query

    @property
    def waiters(self):
        self.adopt()
        return self._waiters

    @property
    def slots(self):
        self.adopt()
        return self._slots

    @property
    def asked(self):
        self.adopt()
        return self._asked

    @asked.setter
    def asked(self, value):
        self.adopt()
        self._asked = value

    @property
    def ede(self):
        return flights.Flight.ede.fget(self)


cdef class Quick:
    """The usual part of one Forwarder's work."""

    cdef object forwarder, inflight, udp, upstreams, cell
    cdef dict fresh, late, clients
    cdef bytes random
    cdef Py_ssize_t drawn
    cdef object held, sock          # the tally's words as an object; the socket by which `answers` are to go
    cdef uint64_t[::1] words
    # Of the group of queries that leaves by one channel:
    cdef object channel
    cdef dict channel_flights
    cdef bytearray used
    cdef int waiting                # client queries taken, or answered, of which inflight.waiting does not know yet
    # Of the replies of one event:
    cdef dict bound
    cdef bint told                  # Python wants to know of each
    cdef double discard_age, seconds
    cdef int ended
    cdef int responses[16]
    cdef int durations[32]

    def __init__(self, forwarder, inflight, udp, upstreams, cell):
        self.forwarder, self.inflight, self.udp, self.upstreams, self.cell = forwarder, inflight, udp, upstreams, cell
        self.fresh, self.late, self.clients = inflight._fresh, inflight._late, inflight._clients
        self.random = b""

    # -- towards the upstreams -----------------------------------------------------------------------------------------

    def take(self, list misses, sock, answer, gate, words, double now):
        """Forward what is usual. Gives back the rest, in order."""
        inflight = self.inflight
        first = self.upstreams.first
        if self.cell.current is None or first is None or first.leads_back is not None:
            return misses
        asks.count = self.waiting = 0
        try:
            return self.sift(misses, sock, answer, gate, words, now)
        finally:
            # Whatever went wrong: those who wait are in the book, and are to be told.
            if self.waiting:
                inflight.waiting += self.waiting
                if now + inflight.first_try < self.forwarder._wake:
                    self.forwarder._arm(now)
            if inflight.orders:
                self.forwarder._obey(now)

    cdef list sift(self, list misses, sock, answer, gate, words, double now):
        cdef list left = []
        cdef object table = self.cell.current, upstream = self.upstreams.first
        cdef object inflight = self.inflight, cache = self.forwarder.cache
        cdef set free = gate.free
        cdef dict own = self.udp.own, bound, entries = None
        cdef int room, most = inflight._max_per_client, share = 0, port, held
        cdef bint always = inflight._always_do, dnssec
        cdef Py_ssize_t place, total = len(misses)
        cdef tuple miss, peer, key
        cdef bytes packet, name
        cdef const uint8_t *octets
        cdef uint8_t folded[MAX_QUESTION + 1]
        cdef query asked
        cdef PyObject *entry
        cdef Flight flight
        if words is not self.held:
            self.words, self.held = words, words
        bound = table.names
        if cache is not None:
            entries = cache.entries
        room = inflight._max_waiting - inflight.waiting
        for place in range(total):
            miss = <tuple>misses[place]
            packet, peer = <bytes>miss[0], <tuple>miss[1]
            host, port = peer[0], peer[1]
            octets = octets_of(packet)
            if (port <= last_port or host not in free
                    or not read_query(octets, <int>PyBytes_GET_SIZE(packet), False, &asked)
                    or asked.qtype >= FIRST_META or asked.qtype == TYPE_OPT or asked.qtype == 0 or asked.end == HEADER + 5
                    or octets[HEADER] == of_probe
                    or octets[asked.end - 2] != 0 or octets[asked.end - 1] != IN
                    or (peer if len(peer) == 2 else (host, port)) in own):
                left.append(miss)
                continue
            fold_question(folded, octets, &asked)
            name = PyBytes_FromStringAndSize(<const char *>folded, asked.end - HEADER - 4)
            if name in bound:
                left.append(miss)
                continue
            if entries is not None:
                folded[asked.end - HEADER] = asked.dnssec | (octets[3] & 0x10) >> 3
                if PyBytes_FromStringAndSize(<const char *>folded, asked.end - HEADER + 1) in entries:
                    left.append(miss)
                    continue
            entry = look_up(self.clients, host)
            held = 0 if entry is NULL else <object>entry
            dnssec = always or asked.dnssec
            key = (name, asked.qtype, IN, <object>RD_CD[(octets[2] & 1) << 1 | (octets[3] >> 4 & 1)], dnssec)
            if held >= most or (self.late and key in self.late):
                left.append(miss)
                continue
            if room <= self.waiting:
                inflight.waiting += self.waiting
                self.waiting = 0
                inflight.make_room(total - place, now)
                room = inflight._max_waiting - inflight.waiting
                if room <= 0:
                    left.append(miss)
                    continue
                entry = look_up(self.clients, host)
                held = 0 if entry is NULL else <object>entry
            if share == 0:
                self.depart(now)
                try:
                    self.channel, share = self.udp.take_some(upstream, now, min(total - place, SLOTS))
                except OSError:
                    left.append(miss)
                    continue
                self.channel_flights, self.used = self.channel.flights, self.channel.spent
            flight = Flight.__new__(Flight)
            entry = set_default(self.fresh, key, flight)
            if entry is not <PyObject *>flight:
                if not isinstance(<object>entry, Flight) or (<Flight>entry)._waiters is not None:
                    left.append(miss)
                    continue
                flight = <Flight>entry
                if flight.joined is None:
                    flight.joined = []
                flight.joined.append((miss, sock, answer, now))
                self.forwarder._coalesced[()] += 1
                if (asked.limit == MAX_UDP and asked.dnssec == dnssec) or host in self.forwarder.loops.hosts:
                    self.forwarder.suspect(name, now, host)
            else:
                share -= 1
                flight.key, flight.upstream, flight.channel, flight.do = key, upstream, self.channel, dnssec
                flight.miss, flight.sock, flight.answer = miss, sock, answer
                flight.started = flight.sent = now
                flight.streamed = ()
                flight.ident = self.enter(flight)
                outgoing_add(&asks, write_ask(asks.packet[asks.count], octets, &asked, flight.ident, dnssec), 0, 0)
            self.clients[host] = held + 1
            self.waiting += 1
            self.words[REQUESTS + asked.qtype] += 1
        self.depart(now)
        return left

    cdef object enter(self, Flight flight):
        """Let the flight wait on the present channel. Gives an ID that was never used there."""
        cdef const uint8_t *octets
        cdef uint8_t *used = <uint8_t *>PyByteArray_AS_STRING(self.used)
        cdef int number
        while True:
            if self.drawn == PyBytes_GET_SIZE(self.random):
                self.random = os.urandom(IDS)
                self.drawn = 0
            octets = octets_of(self.random) + self.drawn
            self.drawn += 2
            number = octets[0] << 8 | octets[1]
            if not used[number >> 3] & 1 << (number & 7):
                used[number >> 3] |= <uint8_t>(1 << (number & 7))
                ident = number
                self.channel_flights[ident] = flight
                return ident

    cdef int depart(self, double now) except -1:
        """Send what is to leave by the present channel."""
        cdef int at = 0, done, count = asks.count, descriptor
        if count == 0:
            return 0
        channel = self.channel
        channel.waiting += count
        channel.left += count
        self.forwarder._requests[channel.series.udp] += count
        descriptor = channel.sock.fileno()
        while at < count:
            done = outgoing_send(&asks, descriptor, at)
            if done > 0:
                at += done
            else:
                self.forwarder._send_again(
                    channel, PyBytes_FromStringAndSize(<const char *>asks.packet[at], <Py_ssize_t>asks.part[at].iov_len), now
                )
                at += 1
        asks.count = 0
        return 0

    # -- and back ------------------------------------------------------------------------------------------------------

    def receive(self, channel):
        """What there is on a socket towards an upstream."""
        cdef double now = clock()
        cdef int count = incoming_receive(&got, channel.sock.fileno()), slot, size
        cdef int problem = errno
        forwarder, inflight = self.forwarder, self.inflight
        if count < 0:
            if problem != EAGAIN and problem != EINTR:
                forwarder._refused(channel, now)
        table = self.cell.current
        self.bound = None if table is None else table.names
        self.discard_age = forwarder._discard_age
        self.told = forwarder.cache is not None or forwarder._emptied is not None
        self.ended = self.waiting = answers.count = 0
        memset(self.responses, 0, sizeof(self.responses))
        waiting = channel.flights
        try:
            for slot in range(count):
                size = <int>got.in_[slot].msg_len
                if not self.relay(waiting, got.packet[slot], size, now):
                    forwarder._receive(channel, PyBytes_FromStringAndSize(<const char *>got.packet[slot], size), now)
        finally:
            if self.ended:
                channel.waiting -= self.ended
                inflight.waiting -= self.waiting
                self.count(channel)
            self.reply()
        if inflight.orders:
            forwarder._obey(now)

    cdef int count(self, channel) except -1:
        """Count the replies of one event."""
        cdef int place
        cdef list counts
        series = channel.series
        if channel.upstream.failing:
            self.upstreams.answered(channel.upstream)
        for place in range(16):
            if self.responses[place]:
                self.forwarder._responses[series.rcodes[place]] += self.responses[place]
        duration = series.duration
        counts = duration.counts
        for place in range(last_bucket + 1):
            if self.durations[place]:
                counts[place] += self.durations[place]
                self.durations[place] = 0
        duration.total += self.seconds
        self.seconds = 0
        return 0

    cdef bint relay(self, dict waiting, const uint8_t *packet, int size, double now) except -1:
        """Give a reply to those who wait for it; False, and nothing done, if it is not a usual one."""
        cdef double took
        cdef PyObject *entry
        cdef Flight flight
        if size < HEADER or self.bound is None:
            return False
        ident = packet[0] << 8 | packet[1]
        entry = look_up(waiting, ident)
        if entry is NULL or not isinstance(<object>entry, Flight):
            return False
        flight = <Flight>entry
        if flight._waiters is not None or not is_usual(<bytes>flight.miss[0], <bytes>flight.key[0], packet, size, self.bound):
            return False
        if not fits_client(<bytes>flight.miss[0]) or now - flight.started > self.discard_age:
            return False
        if flight.joined is not None:
            for miss, _, _, since in flight.joined:
                if not fits_client(<bytes>(<tuple>miss)[0]) or now - <double>since > self.discard_age:
                    return False

        # From here on it is this reply that ends the flight.
        flight.done = True
        del waiting[ident]
        del self.fresh[flight.key]
        took = now - flight.sent
        self.responses[packet[3] & 15] += 1
        self.durations[bucket(took)] += 1
        self.seconds += took
        self.ended += 1
        self.waiting += 1
        self.leave(flight.miss)
        self.answer(flight.miss, flight.sock, flight.answer, flight.started, packet)
        if flight.joined is not None:
            for miss, sock, answer, since in flight.joined:
                self.leave(<tuple>miss)
                self.answer(<tuple>miss, sock, answer, since, packet)
                self.waiting += 1
        if self.told:
            flight.reply = PyBytes_FromStringAndSize(<const char *>packet, size)
            self.forwarder._delivered(flight, now)
        return True

    cdef int leave(self, tuple miss) except -1:
        """One query less of this client."""
        cdef dict clients = self.clients
        host = (<tuple>miss[1])[0]
        cdef int held = clients[host] - 1
        if held:
            clients[host] = held
        else:
            del clients[host]
        return 0

    cdef int answer(self, tuple miss, sock, answer, double since, const uint8_t *packet) except -1:
        """Put the reply for one client among those that are sent next."""
        cdef tuple peer = <tuple>miss[1]
        cdef bytes data
        cdef const char *host
        cdef unsigned name_size, control_size = 0
        cdef uint8_t *to
        cdef int size
        control = miss[2]
        if answers.count == SLOTS or sock is not self.sock:
            self.reply()
            self.sock = sock
        to = answers.packet[answers.count]
        size = compose(to, <bytes>miss[0], packet)
        host = text_of(peer[0])
        if len(peer) == 2:
            name_size = outgoing_name(&answers, host, peer[1], 0, 0, False)
        else:
            name_size = outgoing_name(&answers, host, peer[1], peer[2], peer[3], True)
        for level, kind, data in control:
            control_size = outgoing_control(&answers, level, kind, octets_of(data), <int>PyBytes_GET_SIZE(data))
        if not name_size or (control and not control_size):
            answer(peer, control, since, PyBytes_FromStringAndSize(<const char *>to, size))
            return 0
        rcodes[answers.count], arrivals[answers.count] = <int>(packet[3] & 15), since
        outgoing_add(&answers, size, name_size, control_size)
        return 0

    cdef int reply(self) except -1:
        """Send the replies that are ready, and count them."""
        cdef int at = 0, count = answers.count, done, slot, descriptor, problem
        cdef double now, took
        if count == 0:
            return 0
        descriptor = self.sock.fileno()
        while at < count and descriptor >= 0:
            done = outgoing_send(&answers, descriptor, at)
            if done <= 0:
                problem = errno
                if not patience.again(problem):
                    count_send_error(OSError(problem, os.strerror(problem)), self.forwarder.counters)
                    at += 1
                continue
            now = clock()
            for slot in range(at, at + done):
                took = now - arrivals[slot]
                self.words[RESPONSES + rcodes[slot]] += 1
                self.words[UPSTREAM] += 1
                self.words[DURATIONS + bucket(took)] += 1
                self.words[DURATIONS + DURATION - 1] += <uint64_t>(took * 1e9) if took > 0 else 0
            at += done
        answers.count = 0
        return 0
