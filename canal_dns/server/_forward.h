/* An upstream's reply read where it lies, and datagrams on their way to upstreams and clients.
 *
 * Rules of this file:
 * - scan_reply() takes what dns/records.scan() takes, as far as the usual types go: what it is not sure of is left to Python;
 * - nothing is read that was not received: each offset is compared with the size before it is used;
 * - work grows with the size of the message: a name follows at most HOPS pointers, each strictly backwards.
 */
#ifndef CANAL_DNS_FORWARD_H
#define CANAL_DNS_FORWARD_H
#include "_packets.h"

enum {
    HOPS = 16,
    MAX_NAME = 255,
    NAMES = 16,       /* names of one reply that are to be looked up */
    READ = 16,        /* datagrams of one call; as many as the Python twin reads at one event */
    IN = 1,
    ADDITIONAL = 2
};

struct found {
    int end;             /* of the records that are relayed: where the OPT record begins, or the packet ends */
    int names;
    uint8_t counts[6];   /* of the three sections, without the OPT record */
    int length[NAMES];
    uint8_t name[NAMES][MAX_NAME + 1]; /* lower-cased: owners of addresses, targets of CNAMEs */
};

/* The name at an offset, in full and lower-cased. Gives the offset behind it; 0: malformed, or more than is usual. */
static int read_name(const uint8_t *packet, int size, int at, uint8_t *to, int *length)
{
    int before = at, end = 0, hops = 0, written = 0;
    while (at < size && packet[at] != 0) {
        int label = packet[at];
        if (label >= 0xC0) {
            if (at + 1 >= size || hops++ == HOPS)
                return 0;
            if (end == 0)
                end = at + 2;
            at = (label & 0x3F) << 8 | packet[at + 1];
            if (at < HEADER || at >= before)
                return 0;
            before = at;
            continue;
        }
        if (label > MAX_LABEL || at + 1 + label > size || written + 1 + label >= MAX_NAME)
            return 0;
        for (int octet = at; octet <= at + label; octet++)
            to[written++] = (uint8_t)(packet[octet] | ((uint8_t)(packet[octet] - 'A') < 26) << 5);
        at += 1 + label;
    }
    if (at >= size)
        return 0;
    to[written] = 0;
    *length = written + 1;
    return end ? end : at + 1;
}

/* The next name of `found`, read from an offset. Gives the offset behind it, or 0. */
static int keep_name(const uint8_t *packet, int size, int at, struct found *found)
{
    if (found->names == NAMES)
        return 0;
    at = read_name(packet, size, at, found->name[found->names], &found->length[found->names]);
    found->names++;
    return at;
}

/* 1: RDATA of a usual type, well formed, as records.scan() wants it. */
static int data_fits(const uint8_t *packet, int size, int type, int at, int end, struct found *found)
{
    uint8_t name[MAX_NAME + 1];
    int length;
    switch (type) {
    case 1: /* A */
        return end - at == 4;
    case 28: /* AAAA */
        return end - at == 16;
    case 5: /* CNAME */
        return keep_name(packet, size, at, found) == end;
    case 2: case 12: /* NS, PTR */
        return read_name(packet, size, at, name, &length) == end;
    case 6: /* SOA */
        at = read_name(packet, size, at, name, &length);
        if (at)
            at = read_name(packet, size, at, name, &length);
        return at && at + 20 == end;
    case 15: /* MX */
        return read_name(packet, size, at + 2, name, &length) == end;
    case 33: /* SRV */
        return read_name(packet, size, at + 6, name, &length) == end;
    case 16: /* TXT */
        return 1;
    }
    return 0;
}

/* The records behind a question that ends at `at`. 0: malformed, or not of the kind that is relayed as it came. */
static int scan_reply(const uint8_t *packet, int size, int at, struct found *found)
{
    int with_opt = 0;
    found->names = 0;
    found->end = size;
    memcpy(found->counts, packet + 6, 6);
    for (int section = 0; section <= ADDITIONAL; section++) {
        int count = packet[6 + 2 * section] << 8 | packet[7 + 2 * section];
        while (count-- > 0) {
            uint8_t owner[MAX_NAME + 1];
            int length = 0, start = at;
            if (with_opt)
                return 0;
            if (at + 1 < size && packet[at] == 0xC0 && packet[at + 1] == HEADER)
                at += 2; /* the name in the question, which the caller looks up */
            else if ((at = read_name(packet, size, at, owner, &length)) == 0)
                return 0;
            if (at + 10 > size)
                return 0;
            const uint8_t *fields = packet + at;
            int type = fields[0] << 8 | fields[1];
            int data = at + 10;
            at = data + (fields[8] << 8 | fields[9]);
            if (at > size)
                return 0;
            if (type == TYPE_OPT) {
                if (section != ADDITIONAL || length != 1 || fields[4] != 0)
                    return 0;
                with_opt = 1;
                found->end = start;
                if (found->counts[5]-- == 0)
                    found->counts[4]--;
                continue;
            }
            if (fields[2] != 0 || fields[3] != IN || !data_fits(packet, size, type, data, at, found))
                return 0;
            if (length && (type == 1 || type == 28)) {
                if (found->names == NAMES)
                    return 0;
                memcpy(found->name[found->names], owner, (size_t)length);
                found->length[found->names++] = length;
            }
        }
    }
    return at == size;
}

/* The question as it is forwarded, built anew (dns/wire.upstream_query). Gives its size. */
static int write_ask(uint8_t *to, const uint8_t *packet, const struct query *asked, unsigned ident, int dnssec)
{
    const uint8_t head[HEADER] = {
        (uint8_t)(ident >> 8), (uint8_t)ident, packet[2] & 0x01, packet[3] & 0x30, 0, 1, 0, 0, 0, 0, 0, 1};
    const uint8_t opt[OPT] = {0, 0, TYPE_OPT, MAX_UDP >> 8, MAX_UDP & 255, 0, 0, (uint8_t)(dnssec ? 0x80 : 0), 0, 0, 0};
    size_t question = (size_t)(asked->end - HEADER);
    memcpy(to, head, HEADER);
    memcpy(to + HEADER, packet + HEADER, question);
    memcpy(to + HEADER + question, opt, OPT);
    return asked->end + OPT;
}

/* 1: the reply repeats the question of the query in `packet`, whose name is `name`, folded. */
static int same_question(const uint8_t *reply, int size, const uint8_t *packet, const struct query *asked, const uint8_t *name)
{
    uint8_t folded[MAX_QUESTION];
    int length = asked->end - HEADER - 4;
    if (size < asked->end || memcmp(reply + asked->end - 4, packet + asked->end - 4, 4) != 0)
        return 0;
    fold_question(folded, reply, asked);
    return memcmp(folded, name, (size_t)length) == 0;
}

/* Datagrams that wait for one call. */
struct outgoing {
    int count;
    struct mmsghdr out[SLOTS];
    struct iovec part[SLOTS];
    struct sockaddr_in6 name[SLOTS]; /* or the shorter sockaddr_in */
    union control control[SLOTS];
    uint8_t packet[SLOTS][PACKET];
};

/* The next one is complete: on a connected socket, or for the name that was set. */
static void outgoing_add(struct outgoing *of, int size, unsigned name_size, unsigned control_size)
{
    int slot = of->count++;
    of->part[slot] = (struct iovec){of->packet[slot], (size_t)size};
    of->out[slot].msg_hdr = (struct msghdr){
        .msg_name = name_size ? &of->name[slot] : NULL, .msg_namelen = name_size, .msg_iov = &of->part[slot], .msg_iovlen = 1,
        .msg_control = control_size ? &of->control[slot] : NULL, .msg_controllen = control_size};
}

/* The address of the next one, from text. Gives its size; 0: not an address. */
static unsigned outgoing_name(struct outgoing *of, const char *host, int port, uint32_t flow, uint32_t scope, int is_v6)
{
    struct sockaddr_in6 *v6 = &of->name[of->count];
    struct sockaddr_in *v4 = (struct sockaddr_in *)(void *)v6;
    memset(v6, 0, sizeof *v6);
    v6->sin6_family = (sa_family_t)(is_v6 ? AF_INET6 : AF_INET);
    v6->sin6_port = htons((uint16_t)port);
    if (!is_v6)
        return inet_pton(AF_INET, host, &v4->sin_addr) == 1 ? sizeof *v4 : 0;
    v6->sin6_flowinfo = htonl(flow);
    v6->sin6_scope_id = scope;
    return inet_pton(AF_INET6, host, &v6->sin6_addr) == 1 ? sizeof *v6 : 0;
}

/* The control message of the next one. Gives its size. */
static unsigned outgoing_control(struct outgoing *of, int level, int kind, const uint8_t *data, int size)
{
    union control *control = &of->control[of->count];
    if (CMSG_SPACE((size_t)size) > CONTROL)
        return 0;
    memset(control, 0, sizeof *control);
    control->head.cmsg_len = CMSG_LEN((size_t)size);
    control->head.cmsg_level = level;
    control->head.cmsg_type = kind;
    memcpy(CMSG_DATA(&control->head), data, (size_t)size);
    return (unsigned)CMSG_SPACE((size_t)size);
}

/* Datagrams that left, or -1 with errno, which is about the first of them. */
static int outgoing_send(struct outgoing *of, int descriptor, int first)
{
    return sendmmsg(descriptor, of->out + first, (unsigned)(of->count - first), MSG_DONTWAIT);
}

struct incoming {
    struct mmsghdr in[READ];
    struct iovec part[READ];
    uint8_t packet[READ][MAX_STREAM];
};

/* Datagrams received, or -1 with errno. */
static int incoming_receive(struct incoming *of, int descriptor)
{
    for (int slot = 0; slot < READ; slot++) {
        of->part[slot] = (struct iovec){of->packet[slot], MAX_STREAM};
        of->in[slot].msg_hdr = (struct msghdr){.msg_iov = &of->part[slot], .msg_iovlen = 1};
    }
    return recvmmsg(descriptor, of->in, READ, MSG_DONTWAIT, NULL);
}
#endif
