/*
 * flood: a DNS load generator for one core, faster than dnsperf and honest about what it loses.
 *
 *   flood -p PORT -f QUERIES -t SECONDS [-a ADDRESS] [-b ADDRESS] [-w WINDOW] [-s SOCKETS]
 *         [-r RATE [-n BURST] [-c]] [-m udp|tcp] [-T TIMEOUT_MS]
 *
 * Without -r: closed loop. WINDOW queries are kept open over SOCKETS sockets; an answer makes room for the next query.
 * With -r: open loop. RATE queries a second leave at their time, whether answers come or not; the time to each answer is taken.
 * With -n: BURST of them at once, for rates at which a system call for each query is too many.
 * With -b: from that address. With -m tcp: SOCKETS connections, each with its share of the window in flight; answers may come in any order.
 *
 * Rules of this file:
 * - only loopback addresses; it ends by itself after SECONDS (and an alarm ends it if it should hang);
 * - an answer counts when its ID is open on that socket and it repeats the question; anything else is a stray;
 * - a query without an answer after TIMEOUT_MS is lost, and counted: sent = answered + lost;
 * - it never sleeps, so that no server pays for waking it up; with nothing to do it yields, so that an upstream on the same core runs.
 *   Only with -c (calm) it sleeps between queries as clients do: then waking up is a part of what is measured;
 * - a connection that the server closes is opened again, and counted; what was open on it is lost;
 * - one line of JSON on standard output. Exit code: 0 measured, 1 cannot be measured, 2 bad use.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 12,          /* octets of a DNS header (RFC 1035 section 4.1.1) */
    MAX_QUERY = 12 + 255 + 4,
    MAX_REPLY = 4096,
    BATCH = 64,           /* packets of one system call */
    MAX_SOCKETS = 64,
    RING = 1024,          /* open queries of one socket, at most; a power of two */
    SUB = 64,             /* histogram: steps per doubling, so that a figure is off by 1.6 % at most */
    DOUBLINGS = 40,       /* of a nanosecond: 18 minutes */
    SWEEP_MS = 20,        /* how often lost queries are looked for */
    STREAM = 1 << 16,     /* octets of a connection that wait to be read, or to be sent: more than any window of small queries */
};

struct query {
    uint16_t length;
    uint8_t packet[MAX_QUERY];
};

struct slot {
    int64_t sent_at;      /* nanoseconds; 0: not open */
    uint32_t query;
    uint16_t id;
};

struct flow {
    int fd;
    uint16_t next_id;
    unsigned open;
    struct slot ring[RING];
    uint8_t *in, *out;    /* of a connection: octets received and not yet understood, octets not yet taken by the kernel */
    unsigned in_length, out_length;
};

static struct query *queries;
static uint32_t query_count, next_query;
static struct flow flows[MAX_SOCKETS];
static bool tcp;
static struct sockaddr_storage target, source;
static socklen_t target_length, source_length;
static uint64_t sent, answered, answered_in_time, lost, strays, empty, truncated, refusals, late, closed;
static uint64_t rcodes[16];
static uint64_t histogram[DOUBLINGS * SUB];
static int64_t slowest, deadline;

static void fail(int code, const char *what, const char *which)
{
    fprintf(stderr, "flood: %s%s%s\n", what, which ? ": " : "", which ? which : "");
    exit(code);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- queries ---- */

static bool encode(const char *name, const char *type, struct query *out)
{
    uint8_t *at = out->packet + HEADER;
    int code = !strcasecmp(type, "A") ? 1 : !strcasecmp(type, "AAAA") ? 28 : 0;
    if (!code || strlen(name) > 253)
        return false;
    memset(out->packet, 0, HEADER);
    out->packet[2] = 1; /* RD */
    out->packet[5] = 1; /* one question */
    while (*name) {
        size_t length = strcspn(name, ".");
        if (length == 0 || length > 63)
            return false;
        *at++ = (uint8_t)length;
        memcpy(at, name, length);
        at += length;
        name += length;
        if (*name == '.')
            name++;
    }
    const uint8_t tail[5] = {0, 0, (uint8_t)code, 0, 1}; /* root, type, class IN */
    memcpy(at, tail, sizeof tail);
    out->length = (uint16_t)(at + sizeof tail - out->packet);
    return true;
}

/* The format of dnsperf: "NAME TYPE" on each line. */
static void read_queries(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[600], name[300], type[16];
    uint32_t room = 0;
    if (!file)
        fail(2, strerror(errno), path);
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%299s %15s", name, type) != 2)
            continue;
        if (query_count == room) {
            room = room ? room * 2 : 1024;
            queries = realloc(queries, room * sizeof *queries);
            if (!queries)
                fail(1, "out of memory", NULL);
        }
        if (!encode(name, type, &queries[query_count]))
            fail(2, "not a name with type A or AAAA", line);
        query_count++;
    }
    fclose(file);
    if (!query_count)
        fail(2, "no queries", path);
}

/* ---- sockets ---- */

static socklen_t parse_address(const char *text, uint16_t port, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
        if (ntohl(v4->sin_addr.s_addr) >> 24 != 127)
            fail(2, "not a loopback address, nothing is sent", text);
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
        if (!IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr))
            fail(2, "not a loopback address, nothing is sent", text);
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        return sizeof *v6;
    }
    fail(2, "not an IP address", text);
    return 0;
}

static void open_flow(struct flow *flow)
{
    int room = 4 << 20, yes = 1;
    /* A connection is made before the socket stops blocking: loopback does not keep anybody waiting. */
    flow->fd = socket(target.ss_family, tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
    if (flow->fd >= 0 && source_length && bind(flow->fd, (struct sockaddr *)&source, source_length) < 0)
        fail(1, "cannot bind", strerror(errno));
    if (flow->fd < 0 || connect(flow->fd, (struct sockaddr *)&target, target_length) < 0)
        fail(1, errno == ECONNREFUSED ? "nobody listens there" : "cannot connect", strerror(errno));
    if (fcntl(flow->fd, F_SETFL, O_NONBLOCK) < 0)
        fail(1, "fcntl", strerror(errno));
    if (tcp)
        setsockopt(flow->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    else
        setsockopt(flow->fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    flow->in_length = flow->out_length = 0;
}

static void open_sockets(const char *address, uint16_t port, int count)
{
    target_length = parse_address(address, port, &target);
    for (int i = 0; i < count; i++) {
        flows[i].next_id = (uint16_t)(i * 7919);
        if (tcp && (!(flows[i].in = malloc(STREAM)) || !(flows[i].out = malloc(STREAM))))
            fail(1, "out of memory", NULL);
        open_flow(&flows[i]);
    }
}

static unsigned forget(struct flow *flow, int64_t older_than)
{
    unsigned gone = 0;
    for (int at = 0; flow->open && at < RING; at++) {
        if (flow->ring[at].sent_at && flow->ring[at].sent_at <= older_than) {
            flow->ring[at].sent_at = 0;
            flow->open--;
            gone++;
        }
    }
    lost += gone;
    return gone;
}

static void open_again(struct flow *flow)
{
    closed++;
    close(flow->fd);
    forget(flow, INT64_MAX);
    open_flow(flow);
}

/* ---- send, receive, count ---- */

static uint8_t send_buffers[BATCH][MAX_QUERY], receive_buffers[BATCH][MAX_REPLY];
static struct iovec send_vectors[BATCH], receive_vectors[BATCH];
static struct mmsghdr outgoing[BATCH], incoming[BATCH];

static void prepare_batches(void)
{
    for (int i = 0; i < BATCH; i++) {
        send_vectors[i].iov_base = send_buffers[i];
        outgoing[i].msg_hdr.msg_iov = &send_vectors[i];
        outgoing[i].msg_hdr.msg_iovlen = 1;
        receive_vectors[i].iov_base = receive_buffers[i];
        receive_vectors[i].iov_len = MAX_REPLY;
        incoming[i].msg_hdr.msg_iov = &receive_vectors[i];
        incoming[i].msg_hdr.msg_iovlen = 1;
    }
}

static void note_sent(struct flow *flow, unsigned done, int64_t at)
{
    for (unsigned i = 0; i < done; i++) {
        struct slot *slot = &flow->ring[flow->next_id % RING];
        slot->sent_at = at;
        slot->id = flow->next_id++;
        slot->query = next_query;
        next_query = next_query + 1 == query_count ? 0 : next_query + 1;
    }
    flow->open += done;
    sent += done;
}

/* What waits, to the kernel; 0: nothing moved. */
static int push(struct flow *flow)
{
    ssize_t done = send(flow->fd, flow->out, flow->out_length, MSG_NOSIGNAL);
    if (done < 0) {
        if (errno == EPIPE || errno == ECONNRESET)
            open_again(flow);
        else if (errno != EAGAIN && errno != EINTR)
            fail(1, "send", strerror(errno));
        return 0;
    }
    flow->out_length -= (unsigned)done;
    memmove(flow->out, flow->out + done, flow->out_length);
    return 1;
}

static int stream_some(struct flow *flow, unsigned wanted)
{
    unsigned ready = 0;
    for (; ready < wanted; ready++) {
        uint16_t id = (uint16_t)(flow->next_id + ready);
        const struct query *query = &queries[(next_query + ready) % query_count];
        if (flow->ring[id % RING].sent_at || flow->out_length + 2 + MAX_QUERY > STREAM)
            break;
        uint8_t *to = flow->out + flow->out_length;
        to[0] = (uint8_t)(query->length >> 8);
        to[1] = (uint8_t)query->length;
        memcpy(to + 2, query->packet, query->length);
        to[2] = (uint8_t)(id >> 8);
        to[3] = (uint8_t)id;
        flow->out_length += 2u + query->length;
    }
    note_sent(flow, ready, now());
    return flow->out_length ? push(flow) : 0;
}

/* Sends up to `wanted` queries; what the kernel does not take is not sent, and is asked again later. */
static int send_some(struct flow *flow, unsigned wanted)
{
    int64_t at = now();
    if (tcp)
        return stream_some(flow, wanted);
    unsigned ready = 0;
    if (wanted > BATCH)
        wanted = BATCH;
    for (; ready < wanted; ready++) {
        uint16_t id = (uint16_t)(flow->next_id + ready);
        const struct query *query = &queries[(next_query + ready) % query_count];
        if (flow->ring[id % RING].sent_at)
            break; /* an old query still waits in this place: until it is answered or lost */
        memcpy(send_buffers[ready], query->packet, query->length);
        send_buffers[ready][0] = (uint8_t)(id >> 8);
        send_buffers[ready][1] = (uint8_t)id;
        send_vectors[ready].iov_len = query->length;
    }
    if (!ready)
        return 0;
    int done = sendmmsg(flow->fd, outgoing, ready, 0);
    if (done < 0) {
        if (errno == ECONNREFUSED)
            refusals++;
        else if (errno != EAGAIN && errno != ENOBUFS && errno != EINTR)
            fail(1, "sendmmsg", strerror(errno));
        return 0;
    }
    note_sent(flow, (unsigned)done, at);
    return done;
}

static void record(int64_t took)
{
    unsigned bucket;
    if (took < 1)
        took = 1;
    if (took > slowest)
        slowest = took;
    if (took < SUB) {
        bucket = (unsigned)took;
    } else {
        unsigned doubling = 63 - (unsigned)__builtin_clzll((uint64_t)took); /* at least 6: SUB is 2^6 */
        bucket = (doubling - 5) * SUB + (unsigned)((took >> (doubling - 6)) - SUB);
    }
    if (bucket >= DOUBLINGS * SUB)
        bucket = DOUBLINGS * SUB - 1;
    histogram[bucket]++;
}

static double percentile(double share)
{
    uint64_t rank = (uint64_t)(share * (double)answered), seen = 0;
    for (unsigned i = 0; i < DOUBLINGS * SUB; i++) {
        seen += histogram[i];
        if (seen > rank) {
            double low = i < SUB ? i : (double)((uint64_t)(i % SUB + SUB) << (i / SUB - 1));
            double width = i < SUB ? 1 : (double)((uint64_t)1 << (i / SUB - 1));
            return (low + width / 2) / 1000;
        }
    }
    return 0;
}

static void take(struct flow *flow, const uint8_t *reply, unsigned length, int64_t at)
{
    uint16_t id = (uint16_t)(reply[0] << 8 | reply[1]);
    struct slot *slot = &flow->ring[id % RING];
    const struct query *query = &queries[slot->query];
    if (length < query->length || !slot->sent_at || slot->id != id || !(reply[2] & 0x80)
        || memcmp(reply + HEADER, query->packet + HEADER, query->length - (unsigned)HEADER) != 0) {
        strays++;
        return;
    }
    record(at - slot->sent_at);
    slot->sent_at = 0;
    flow->open--;
    answered++;
    answered_in_time += at <= deadline;
    rcodes[reply[3] & 15]++;
    empty += !(reply[3] & 15) && !(reply[6] | reply[7]);
    truncated += (reply[2] & 2) != 0;
}

static int receive_stream(struct flow *flow)
{
    ssize_t done = recv(flow->fd, flow->in + flow->in_length, STREAM - flow->in_length, 0);
    if (done == 0 || (done < 0 && errno == ECONNRESET)) {
        open_again(flow);
        return 0;
    }
    if (done < 0) {
        if (errno != EAGAIN && errno != EINTR)
            fail(1, "recv", strerror(errno));
        return 0;
    }
    flow->in_length += (unsigned)done;
    int64_t at = now();
    unsigned used = 0, length;
    while (flow->in_length - used >= 2 && (length = (unsigned)(flow->in[used] << 8 | flow->in[used + 1])) + 2 <= flow->in_length - used) {
        if (length < HEADER || length + 2 > STREAM)
            fail(1, "a frame that is no DNS message", NULL);
        take(flow, flow->in + used + 2, length, at);
        used += length + 2;
    }
    flow->in_length -= used;
    memmove(flow->in, flow->in + used, flow->in_length);
    return 1;
}

static int receive_some(struct flow *flow)
{
    if (tcp)
        return receive_stream(flow);
    int done = recvmmsg(flow->fd, incoming, BATCH, MSG_DONTWAIT, NULL);
    if (done < 0) {
        if (errno == ECONNREFUSED)
            refusals++;
        else if (errno != EAGAIN && errno != EINTR)
            fail(1, "recvmmsg", strerror(errno));
        return 0;
    }
    int64_t at = now();
    for (int i = 0; i < done; i++)
        take(flow, receive_buffers[i], incoming[i].msg_len, at);
    return done;
}

static unsigned sweep(int count, int64_t older_than)
{
    unsigned open = 0;
    for (int i = 0; i < count; i++) {
        forget(&flows[i], older_than);
        open += flows[i].open;
    }
    return open;
}

/* ---- the two loops ---- */

static void give_up_when_refused(void)
{
    if (refusals && lost && !answered)
        fail(1, "nobody listens there", NULL);
}

static void closed_loop(int count, unsigned window, int64_t timeout)
{
    unsigned share = window / (unsigned)count;
    int64_t swept = now();
    for (int64_t at = swept; at < deadline; at = now()) {
        int moved = 0;
        for (int i = 0; i < count; i++) {
            moved += receive_some(&flows[i]);
            if (flows[i].open < share || flows[i].out_length)
                moved += send_some(&flows[i], flows[i].open < share ? share - flows[i].open : 0);
        }
        if (!moved)
            sched_yield();
        if (at - swept > SWEEP_MS * 1000000LL) {
            sweep(count, at - timeout);
            give_up_when_refused();
            swept = at;
        }
    }
}

/* Until something can be received, or `due`. */
static void sleep_until(int count, int64_t due)
{
    struct pollfd polled[MAX_SOCKETS];
    int64_t left = due - now();
    if (left <= 0)
        return;
    for (int i = 0; i < count; i++)
        polled[i] = (struct pollfd){.fd = flows[i].fd, .events = POLLIN};
    struct timespec wait = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    ppoll(polled, (nfds_t)count, &wait, NULL);
}

static void open_loop(int count, double rate, int64_t timeout, bool calm, unsigned burst)
{
    int64_t began = now(), swept = began, gap = (int64_t)(1e9 / rate);
    uint64_t turn = 0;
    rate /= burst;
    for (int64_t at = began; at < deadline; at = now()) {
        int moved = 0;
        int64_t due = began + (int64_t)((double)turn * 1e9 / rate);
        if (at >= due) {
            late += at - due > gap;
            moved += send_some(&flows[turn % (unsigned)count], burst);
            turn++; /* also when the kernel took nothing: the rate is not made up for later */
        }
        for (int i = 0; i < count; i++)
            if (flows[i].open)
                moved += receive_some(&flows[i]);
        if (!moved && calm)
            sleep_until(count, began + (int64_t)((double)turn * 1e9 / rate));
        else if (!moved)
            sched_yield();
        if (at - swept > SWEEP_MS * 1000000LL) {
            sweep(count, at - timeout);
            give_up_when_refused();
            swept = at;
        }
    }
}

static void drain(int count, int64_t timeout)
{
    int64_t until = now() + timeout;
    unsigned open = 1;
    while (open && now() < until) {
        int moved = 0;
        open = 0;
        for (int i = 0; i < count; i++) {
            moved += receive_some(&flows[i]);
            open += flows[i].open;
        }
        if (!moved)
            sched_yield();
    }
    sweep(count, INT64_MAX);
}

static void print_result(const char *mode, double seconds)
{
    const char *comma = "";
    printf("{\"mode\": \"%s\", \"seconds\": %.6f, \"sent\": %llu, \"answered\": %llu, \"answered_in_time\": %llu, \"lost\": %llu, "
           "\"strays\": %llu, \"empty\": %llu, \"truncated\": %llu, \"refusals\": %llu, \"late\": %llu, \"closed\": %llu, \"rcodes\": {",
           mode, seconds, (unsigned long long)sent, (unsigned long long)answered, (unsigned long long)answered_in_time,
           (unsigned long long)lost, (unsigned long long)strays, (unsigned long long)empty, (unsigned long long)truncated,
           (unsigned long long)refusals, (unsigned long long)late, (unsigned long long)closed);
    for (int i = 0; i < 16; i++) {
        if (rcodes[i]) {
            printf("%s\"%d\": %llu", comma, i, (unsigned long long)rcodes[i]);
            comma = ", ";
        }
    }
    printf("}, \"p50_us\": %.3f, \"p90_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, \"max_us\": %.3f}\n",
           percentile(0.50), percentile(0.90), percentile(0.99), percentile(0.999), (double)slowest / 1000);
}

static double number(const char *text, double low, double high, const char *what)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= low && value <= high))
        fail(2, what, text);
    return value;
}

int main(int argc, char **argv)
{
    const char *address = "127.0.0.1", *file = NULL, *from = NULL;
    double seconds = 0, rate = 0;
    int port = 0, sockets = 8, window = 192, timeout_ms = 500, burst = 1;
    bool calm = false;
    for (int option; (option = getopt(argc, argv, "a:b:p:f:t:w:s:r:n:T:m:c")) != -1;) {
        switch (option) {
        case 'a': address = optarg; break;
        case 'b': from = optarg; break;
        case 'p': port = (int)number(optarg, 1, 65535, "-p PORT is 1 to 65535"); break;
        case 'f': file = optarg; break;
        case 't': seconds = number(optarg, 0.01, 600, "-t SECONDS is 0.01 to 600"); break;
        case 'w': window = (int)number(optarg, 1, RING, "-w WINDOW is 1 to 1024"); break;
        case 's': sockets = (int)number(optarg, 1, MAX_SOCKETS, "-s SOCKETS is 1 to 64"); break;
        case 'r': rate = number(optarg, 1, 10e6, "-r RATE is 1 to 10000000"); break;
        case 'n': burst = (int)number(optarg, 1, BATCH, "-n BURST is 1 to 64"); break;
        case 'T': timeout_ms = (int)number(optarg, 1, 10000, "-T TIMEOUT_MS is 1 to 10000"); break;
        case 'm':
            tcp = !strcmp(optarg, "tcp");
            if (!tcp && strcmp(optarg, "udp") != 0)
                fail(2, "-m is udp or tcp", optarg);
            break;
        case 'c': calm = true; break;
        default: return 2;
        }
    }
    if (!port || !file || seconds == 0)
        fail(2, "usage: flood -p PORT -f QUERIES -t SECONDS [-a ADDRESS] [-b ADDRESS] [-w WINDOW] [-s SOCKETS] "
             "[-r RATE [-n BURST] [-c]] [-m udp|tcp] [-T TIMEOUT_MS]", NULL);
    if (window < sockets)
        fail(2, "the window is smaller than the number of sockets", NULL);
    read_queries(file);
    if (from)
        source_length = parse_address(from, 0, &source);
    open_sockets(address, (uint16_t)port, sockets);
    prepare_batches();
    alarm((unsigned)(seconds + timeout_ms / 1000.0 + 5));

    int64_t timeout = timeout_ms * 1000000LL, began = now();
    deadline = began + (int64_t)(seconds * 1e9);
    if (rate > 0)
        open_loop(sockets, rate, timeout, calm, (unsigned)burst);
    else
        closed_loop(sockets, (unsigned)window, timeout);
    double took = (double)(now() - began) / 1e9;
    drain(sockets, timeout);
    print_result(rate > 0 ? "open" : "closed", took);
    return 0;
}
