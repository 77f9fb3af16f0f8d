/*
 * client: the load of the soak. It asks at a rate, or as fast as it is answered, and holds every answer against what is true.
 *
 *   client PORT_V4 PORT_V6 QUERIES RECORDS SECONDS RATE
 *
 * QUERIES has "NAME TYPE TRUTH" on each line; TRUTH is the address that the answer ends with, NXDOMAIN, or - where it changes.
 * RATE is in queries a second; 0: WINDOW queries are kept open. Half of the sockets ask 127.0.0.1, the others ::1.
 *
 * Rules of this file:
 * - only loopback addresses; it ends by itself after SECONDS, and an alarm ends it if it should hang;
 * - open loop: queries leave at their time, whether answers come or not; what could not leave within BEHIND_MS is skipped and
 *   counted, not made up for in one blow;
 * - every answer that is not as its line says, every answer to a line with -, and every query that was not answered within
 *   TIMEOUT_MS becomes a record in RECORDS: who reads them judges; this program only compares;
 * - sent = as said + recorded; a reply to a query that is lost already is late, one that belongs to no query is a stray;
 * - one line of JSON on standard output. Exit code: 0 measured, 1 cannot be measured, 2 bad use.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER = 12,
    MAX_QUERY = HEADER + 255 + 4,
    MAX_REPLY = 4096,
    SOCKETS = 32,
    BATCH = 8,            /* packets of one system call: so many come to one worker at once */
    WINDOW = 8,           /* of one socket, where no rate is given */
    TIMEOUT_MS = 4000,    /* more than any client waits */
    BEHIND_MS = 50,
    TURN_US = 250,
    TRUNCATED = 0x80,     /* beside the response code, in a record */
    LOST = -1,            /* in place of the time of a query */
};

#define MILLISECOND 1000000LL

struct truth {
    uint8_t rcode;
    uint8_t size;         /* octets of the address; 0: none */
    uint8_t value[16];
};

struct query {
    uint16_t length;
    bool open;            /* TRUTH is - */
    struct truth truth;
    uint8_t packet[MAX_QUERY];
};

struct record {           /* 40 octets, little endian; tests/soak/load.py reads them */
    int64_t sent_at;      /* CLOCK_MONOTONIC, nanoseconds */
    int64_t received_at;  /* 0: never */
    uint32_t query;
    struct truth said;
    uint8_t pad[2];
};

struct slot {
    int64_t sent_at;      /* 0: answered, or never sent */
    uint32_t query;
};

struct flow {
    int fd;
    uint16_t next, oldest; /* IDs; all between them were sent */
    unsigned open;
    struct slot slots[65536];
};

static struct query *queries;
static uint32_t query_count, next_query;
static struct flow *flows;
static struct pollfd polled[SOCKETS];
static FILE *records;
static uint64_t sent, as_said, recorded, lost, late, strays, skipped, refused;

static void fail(int code, const char *what, const char *which)
{
    fprintf(stderr, "client: %s%s%s\n", what, which ? ": " : "", which ? which : "");
    exit(code);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- queries ---- */

static bool encode(const char *name, const char *type, const char *truth, struct query *out)
{
    uint8_t *at = out->packet + HEADER;
    bool v6 = !strcmp(type, "AAAA");
    memset(out, 0, sizeof *out);
    out->packet[2] = 1; /* RD */
    out->packet[5] = 1; /* one question */
    while (*name) {
        size_t length = strcspn(name, ".");
        if (length == 0 || length > 63 || at - out->packet > 250)
            return false;
        *at++ = (uint8_t)length;
        memcpy(at, name, length);
        at += length;
        name += length + (name[length] == '.');
    }
    const uint8_t tail[5] = {0, 0, v6 ? 28 : 1, 0, 1};
    memcpy(at, tail, sizeof tail);
    out->length = (uint16_t)(at + sizeof tail - out->packet);
    if (!strcmp(truth, "-")) {
        out->open = true;
        return true;
    }
    if (!strcmp(truth, "NXDOMAIN")) {
        out->truth.rcode = 3;
        return true;
    }
    out->truth.size = v6 ? 16 : 4;
    return inet_pton(v6 ? AF_INET6 : AF_INET, truth, out->truth.value) == 1;
}

static void read_queries(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[512], name[300], type[8], truth[64];
    uint32_t room = 0;
    if (!file)
        fail(2, strerror(errno), path);
    while (fgets(line, sizeof line, file)) {
        if (query_count == room && !(queries = realloc(queries, (room = room ? room * 2 : 4096) * sizeof *queries)))
            fail(1, "out of memory", NULL);
        if (sscanf(line, "%299s %7s %63s", name, type, truth) != 3 || !encode(name, type, truth, &queries[query_count++]))
            fail(2, "not NAME TYPE TRUTH", line);
    }
    fclose(file);
    if (!query_count)
        fail(2, "no queries", path);
}

/* ---- answers ---- */

static const uint8_t *after_name(const uint8_t *at, const uint8_t *end)
{
    while (at < end && *at && *at < 0xC0)
        at += 1 + *at;
    at += at < end && *at >= 0xC0 ? 2 : 1;
    return at;
}

/* Response code, and the address of the last record of the answer section. */
static struct truth said_by(const uint8_t *reply, unsigned length, unsigned question)
{
    struct truth said = {.rcode = (uint8_t)((reply[3] & 15) | (reply[2] & 2 ? TRUNCATED : 0))};
    const uint8_t *at = reply + question, *end = reply + length;
    for (int left = reply[6] << 8 | reply[7]; left > 0; left--) {
        at = after_name(at, end);
        if (at + 10 > end)
            break;
        unsigned type = (unsigned)(at[0] << 8 | at[1]), size = (unsigned)(at[8] << 8 | at[9]);
        at += 10;
        if (at + size > end)
            break;
        if ((type == 1 && size == 4) || (type == 28 && size == 16)) {
            said.size = (uint8_t)size;
            memset(said.value, 0, sizeof said.value);
            memcpy(said.value, at, size);
        }
        at += size;
    }
    return said;
}

static void record(const struct slot *slot, int64_t received_at, const struct truth *said)
{
    struct record one = {.sent_at = slot->sent_at, .received_at = received_at, .query = slot->query};
    if (said)
        one.said = *said;
    if (fwrite(&one, sizeof one, 1, records) != 1)
        fail(1, "cannot write a record", strerror(errno));
    recorded++;
}

static void take(struct flow *flow, const uint8_t *reply, unsigned length, int64_t at)
{
    struct slot *slot = length < HEADER ? NULL : &flow->slots[reply[0] << 8 | reply[1]];
    const struct query *query = slot && slot->sent_at ? &queries[slot->query] : NULL;
    if (!query || length < query->length || !(reply[2] & 0x80)
        || memcmp(reply + HEADER, query->packet + HEADER, query->length - (unsigned)HEADER) != 0) {
        strays++;
        return;
    }
    if (slot->sent_at == LOST) {
        slot->sent_at = 0;
        late++;
        return;
    }
    struct truth said = said_by(reply, length, query->length);
    if (query->open || memcmp(&said, &query->truth, sizeof said) != 0)
        record(slot, at, &said);
    else
        as_said++;
    slot->sent_at = 0;
    flow->open--;
}

static int receive(struct flow *flow)
{
    static uint8_t buffers[BATCH][MAX_REPLY];
    struct iovec vectors[BATCH];
    struct mmsghdr incoming[BATCH];
    memset(incoming, 0, sizeof incoming);
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){.iov_base = buffers[i], .iov_len = MAX_REPLY};
        incoming[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    int done = recvmmsg(flow->fd, incoming, BATCH, MSG_DONTWAIT, NULL);
    if (done < 0) {
        refused += errno == ECONNREFUSED;
        if (errno != ECONNREFUSED && errno != EAGAIN && errno != EINTR)
            fail(1, "recvmmsg", strerror(errno));
        return 0;
    }
    int64_t at = now();
    for (int i = 0; i < done; i++)
        take(flow, buffers[i], incoming[i].msg_len, at);
    return done;
}

/* Queries sent before this time are lost. IDs are given in order, so the oldest come first. */
static void forget(struct flow *flow, int64_t older_than)
{
    for (; flow->oldest != flow->next; flow->oldest++) {
        struct slot *slot = &flow->slots[flow->oldest];
        if (slot->sent_at > older_than)
            break;
        if (slot->sent_at > 0) {
            record(slot, 0, NULL);
            slot->sent_at = LOST;
            flow->open--;
            lost++;
        }
    }
}

/* ---- sending ---- */

static unsigned send_some(struct flow *flow, unsigned wanted)
{
    static uint8_t buffers[BATCH][MAX_QUERY];
    struct iovec vectors[BATCH];
    struct mmsghdr outgoing[BATCH];
    memset(outgoing, 0, sizeof outgoing);
    if (wanted > BATCH)
        wanted = BATCH;
    if ((uint16_t)(flow->next - flow->oldest) > 65535 - 2 * BATCH)
        fail(1, "too many queries are open: the rate is too high for these sockets", NULL);
    for (unsigned i = 0; i < wanted; i++) {
        const struct query *query = &queries[(next_query + i) % query_count];
        uint16_t id = (uint16_t)(flow->next + i);
        memcpy(buffers[i], query->packet, query->length);
        buffers[i][0] = (uint8_t)(id >> 8);
        buffers[i][1] = (uint8_t)id;
        vectors[i] = (struct iovec){.iov_base = buffers[i], .iov_len = query->length};
        outgoing[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    int64_t at = now();
    int done = sendmmsg(flow->fd, outgoing, wanted, MSG_DONTWAIT);
    if (done < 0) {
        refused += errno == ECONNREFUSED;
        if (errno != ECONNREFUSED && errno != EAGAIN && errno != ENOBUFS && errno != EINTR)
            fail(1, "sendmmsg", strerror(errno));
        return 0;
    }
    for (int i = 0; i < done; i++) {
        flow->slots[flow->next++] = (struct slot){.sent_at = at, .query = next_query};
        next_query = (next_query + 1) % query_count;
    }
    flow->open += (unsigned)done;
    sent += (unsigned)done;
    return (unsigned)done;
}

static void receive_all(int64_t wait)
{
    struct timespec left = {.tv_nsec = wait > 0 ? (long)wait : 0};
    if (ppoll(polled, SOCKETS, &left, NULL) <= 0)
        return;
    for (int i = 0; i < SOCKETS; i++)
        if (polled[i].revents)
            while (receive(&flows[i]) == BATCH)
                ;
}

static void run(int64_t began, int64_t deadline, double rate)
{
    int64_t swept = began;
    uint64_t gone = 0; /* sent or skipped */
    unsigned turn = 0;
    for (int64_t at = began; at < deadline; at = now()) {
        if (rate > 0) {
            uint64_t due = (uint64_t)((double)(at - began) * rate / 1e9), behind = (uint64_t)(rate * BEHIND_MS / 1000);
            if (due > gone + behind) {
                skipped += due - behind - gone;
                gone = due - behind;
            }
            while (gone < due) {
                unsigned done = send_some(&flows[turn++ % SOCKETS], (unsigned)(due - gone < BATCH ? due - gone : BATCH));
                gone += done;
                if (!done)
                    break;
            }
        } else {
            for (int i = 0; i < SOCKETS; i++)
                if (flows[i].open < WINDOW)
                    send_some(&flows[i], WINDOW - flows[i].open);
        }
        receive_all(at + TURN_US * 1000 - now());
        if (at - swept > 20 * MILLISECOND) {
            for (int i = 0; i < SOCKETS; i++)
                forget(&flows[i], at - TIMEOUT_MS * MILLISECOND);
            swept = at;
        }
    }
}

static void drain(void)
{
    int64_t until = now() + TIMEOUT_MS * MILLISECOND;
    unsigned open = 1;
    while (open && now() < until) {
        receive_all(MILLISECOND);
        open = 0;
        for (int i = 0; i < SOCKETS; i++)
            open += flows[i].open;
    }
    for (int i = 0; i < SOCKETS; i++)
        forget(&flows[i], INT64_MAX);
}

static void open_flow(struct flow *flow, bool v6, uint16_t port)
{
    int room = 4 << 20;
    struct sockaddr_in v4_target = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6_target = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    const struct sockaddr *target = v6 ? (struct sockaddr *)&v6_target : (struct sockaddr *)&v4_target;
    flow->fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
    if (flow->fd < 0 || connect(flow->fd, target, v6 ? sizeof v6_target : sizeof v4_target) < 0)
        fail(1, "cannot connect", strerror(errno));
    setsockopt(flow->fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
}

int main(int argc, char **argv)
{
    if (argc != 7 || !(records = fopen(argv[4], "wb")))
        fail(2, "client PORT_V4 PORT_V6 QUERIES RECORDS SECONDS RATE", NULL);
    double seconds = atof(argv[5]), rate = atof(argv[6]);
    read_queries(argv[3]);
    if (!(flows = calloc(SOCKETS, sizeof *flows)))
        fail(1, "out of memory", NULL);
    for (int i = 0; i < SOCKETS; i++) {
        open_flow(&flows[i], i % 2, (uint16_t)atoi(argv[1 + i % 2]));
        polled[i] = (struct pollfd){.fd = flows[i].fd, .events = POLLIN};
    }
    prctl(PR_SET_TIMERSLACK, 1000);
    alarm((unsigned)(seconds + TIMEOUT_MS / 1000 + 10));
    int64_t began = now();
    run(began, began + (int64_t)(seconds * 1e9), rate);
    double took = (double)(now() - began) / 1e9;
    uint64_t in_time = as_said + recorded - lost;
    drain();
    if (fclose(records) != 0)
        fail(1, "cannot write the records", strerror(errno));
    printf("{\"seconds\": %.6f, \"sent\": %llu, \"answered_in_time\": %llu, \"as_said\": %llu, \"recorded\": %llu, \"lost\": %llu, "
           "\"late\": %llu, \"strays\": %llu, \"skipped\": %llu, \"refused\": %llu}\n",
           took, (unsigned long long)sent, (unsigned long long)in_time, (unsigned long long)as_said, (unsigned long long)recorded,
           (unsigned long long)lost, (unsigned long long)late, (unsigned long long)strays, (unsigned long long)skipped, (unsigned long long)refused);
    return 0;
}
