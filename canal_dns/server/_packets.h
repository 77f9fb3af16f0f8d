/* Datagrams in batches, and a client's query read where it lies: what the extensions share.
 *
 * Rules of this file:
 * - nothing is read that was not received, and nothing written beyond a slot: sizes are checked before octets are looked at;
 * - what is usual is what dns/responder._HEADS has, with an OPT record as dns/wire reads it; the rest is left to Python;
 * - plain C and the C library, no Python.
 */
#ifndef CANAL_DNS_PACKETS_H
#define CANAL_DNS_PACKETS_H
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

enum {
    HEADER = 12, MAX_LABEL = 63, MAX_QUESTION = 255 + 4, OPT = 11, TYPE_OPT = 41, MAX_OPTIONS = 100,
    MIN_UDP = 512, MAX_UDP = 1232, MAX_STREAM = 65535,
    SLOTS = 64,
    RECEIVED = 1024, /* octets taken of a datagram */
    PACKET = 1344,   /* a whole reply; an odd number of cache lines, or the slots would compete for a few of them */
    CONTROL = 64
};

struct query {
    int end;   /* of the question */
    int limit; /* octets that the reply may have */
    uint16_t qtype;
    uint8_t opt, dnssec, ad; /* flags; dnssec: DO */
};

static inline int options_fit(const uint8_t *packet, int at, int size)
{
    for (int number = 0; number < MAX_OPTIONS && at != size; number++) {
        if (at + 4 > size)
            return 0;
        at += 4 + (packet[at + 2] << 8 | packet[at + 3]);
    }
    return at == size;
}

/* Read a query up to where its question would be looked up; 0: not a usual one. */
static inline int read_query(const uint8_t *packet, int size, int stream, struct query *query)
{
    static const uint8_t counts[7] = {0, 1, 0, 0, 0, 0, 0};
    int at = HEADER;
    if (size < HEADER + 5 || packet[2] & 0xF8 || packet[3] & 0x0F || packet[11] > 1 || memcmp(packet + 4, counts, 7) != 0)
        return 0;
    while (packet[at] != 0) {
        if (packet[at] > MAX_LABEL)
            return 0;
        at += 1 + packet[at];
        if (at >= size)
            return 0;
    }
    at += 5;
    if (at > size || at > HEADER + MAX_QUESTION)
        return 0;
    query->end = at;
    query->qtype = (uint16_t)(packet[at - 4] << 8 | packet[at - 3]);
    query->ad = (packet[3] & 0x20) != 0;
    query->opt = packet[11];
    query->dnssec = 0;
    query->limit = stream ? MAX_STREAM : MIN_UDP;
    if (!query->opt)
        return at == size;
    /* Owner, type, payload (2 octets), upper response code, version, flags (2), length (2). */
    const uint8_t *opt = packet + at;
    if (at + OPT > size || opt[0] || opt[1] || opt[2] != TYPE_OPT || opt[6])
        return 0;
    query->dnssec = opt[7] >> 7;
    if (!stream) {
        int payload = opt[3] << 8 | opt[4];
        query->limit = payload < MIN_UDP ? MIN_UDP : payload > MAX_UDP ? MAX_UDP : payload;
    }
    int options = opt[9] << 8 | opt[10];
    if (!options)
        return at + OPT == size;
    /* Options that end in what looks like an OPT record are left to the complete reader. */
    if (at + OPT + options != size || (packet[size - 9] == TYPE_OPT && !packet[size - 1]))
        return 0;
    return options_fit(packet, at + OPT, size);
}

/* Eight octets with their capital letters made small: no sum carries into the octet above it. */
static inline uint64_t fold(uint64_t octets)
{
    const uint64_t each = 0x0101010101010101u;
    uint64_t low = octets & 0x7F * each, from_a = low + (0x80 - 'A') * each, above_z = low + (0x7F - 'Z') * each;
    return octets | (~octets & (from_a ^ above_z) & 0x80 * each) >> 2;
}

/* The question with its name lower-cased; a length octet is below every letter, so the whole name is folded at once. */
static inline void fold_question(uint8_t *to, const uint8_t *packet, const struct query *query)
{
    int size = query->end - HEADER - 4, at = 0;
    uint64_t octets = 0;
    packet += HEADER;
    for (; at + 8 <= size; at += 8) {
        memcpy(&octets, packet + at, 8);
        octets = fold(octets);
        memcpy(to + at, &octets, 8);
    }
    if (at < size) {
        size_t rest = (size_t)(size - at);
        memcpy(&octets, packet + at, rest);
        octets = fold(octets);
        memcpy(to + at, &octets, rest);
    }
    memcpy(to + size, packet + size, 4);
}

/* Put a reply together, possibly where its query lies: ID and question as there, RD and CD copied, `flags` beside QR and RA,
 * `counts` of the three sections behind the question, and an OPT record if the query has one. Gives its size. */
static inline int write_reply(uint8_t *to, const uint8_t *packet, const struct query *query, int flags,
                              const uint8_t counts[6], const uint8_t *body, int size)
{
    uint8_t opt[OPT] = {0, 0, TYPE_OPT, MAX_UDP >> 8, MAX_UDP & 255, 0, 0, (uint8_t)(query->dnssec << 7), 0, 0, 0};
    int end = query->end;
    flags |= 0x8080 | (packet[2] & 0x01) << 8 | (packet[3] & 0x10);
    if (to != packet)
        memcpy(to, packet, (size_t)end);
    to[2] = (uint8_t)(flags >> 8);
    to[3] = (uint8_t)flags;
    memcpy(to + 6, counts, 6);
    memcpy(to + end, body, (size_t)size);
    if (!query->opt)
        return end + size;
    int additionals = (counts[4] << 8 | counts[5]) + 1;
    to[10] = (uint8_t)(additionals >> 8);
    to[11] = (uint8_t)additionals;
    memcpy(to + end + size, opt, OPT);
    return end + size + OPT;
}

/* Every TTL of the records at `body` less by `age` seconds; `offsets`: 16 bits each, little endian. */
static inline void reduce_ttls(uint8_t *body, int size, const uint8_t *offsets, int octets, uint32_t age)
{
    for (int number = 0; number + 1 < octets; number += 2) {
        int at = offsets[number] | offsets[number + 1] << 8;
        if (at + 4 > size)
            return;
        uint32_t ttl = (uint32_t)body[at] << 24 | (uint32_t)body[at + 1] << 16 | (uint32_t)body[at + 2] << 8 | body[at + 3];
        ttl = htonl(ttl > age ? ttl - age : 0);
        memcpy(body + at, &ttl, 4);
    }
}

typedef int (*receive_call)(int, struct mmsghdr *, unsigned int, int, struct timespec *);
typedef int (*send_call)(int, struct mmsghdr *, unsigned int, int);

union control { struct cmsghdr head; uint8_t octets[CONTROL]; };

/* The datagrams of one batch. A reply is put together where its query lies, and goes back with the same name and control. */
struct slots {
    receive_call receive;
    send_call send;
    struct mmsghdr in[SLOTS], out[SLOTS];
    struct iovec in_part[SLOTS], out_part[SLOTS];
    struct sockaddr_in6 name[SLOTS]; /* or the shorter sockaddr_in */
    union control control[SLOTS];
    uint32_t name_size[SLOTS], control_size[SLOTS];
    int size[SLOTS], back[SLOTS]; /* octets received; slot of the query that a reply answers */
    uint8_t packet[SLOTS][PACKET];
};

static inline void slots_prepare(struct slots *slots)
{
    slots->receive = recvmmsg;
    slots->send = sendmmsg;
    for (int slot = 0; slot < SLOTS; slot++) {
        slots->in_part[slot] = (struct iovec){slots->packet[slot], RECEIVED};
        slots->in[slot].msg_hdr = (struct msghdr){
            .msg_name = &slots->name[slot], .msg_namelen = sizeof slots->name[slot], .msg_iov = &slots->in_part[slot],
            .msg_iovlen = 1, .msg_control = &slots->control[slot], .msg_controllen = CONTROL};
    }
}

/* The call that the kernel, or a sandbox, does not let us make, with errno; NULL: both can be made. */
static inline const char *slots_refused(const struct slots *slots)
{
    if (slots->receive(-1, NULL, 0, 0, NULL) != -1 || errno != EBADF)
        return "recvmmsg";
    return slots->send(-1, NULL, 0, 0) != -1 || errno != EBADF ? "sendmmsg" : NULL;
}

/* Octets of the control message that makes a reply leave from the address that was asked; by which interface, routing says. */
static inline uint32_t clear_interface(union control *control, size_t size)
{
    struct cmsghdr *head = &control->head;
    uint8_t *data = CMSG_DATA(head);
    if (size >= CMSG_LEN(sizeof(struct in_pktinfo)) && head->cmsg_level == IPPROTO_IP && head->cmsg_type == IP_PKTINFO) {
        memset(data, 0, sizeof(int));
        return CMSG_SPACE(sizeof(struct in_pktinfo));
    }
    if (size >= CMSG_LEN(20) && head->cmsg_level == IPPROTO_IPV6 && head->cmsg_type == IPV6_PKTINFO) {
        memset(data + 16, 0, sizeof(int));
        return CMSG_SPACE(20);
    }
    return 0;
}

/* Datagrams received, or -1 with errno. */
static inline int slots_receive(struct slots *slots, int descriptor, int most)
{
    int count = slots->receive(descriptor, slots->in, (unsigned)(most < SLOTS ? most : SLOTS), MSG_DONTWAIT, NULL);
    for (int slot = 0; slot < count; slot++) {
        struct msghdr *header = &slots->in[slot].msg_hdr;
        slots->size[slot] = (int)slots->in[slot].msg_len;
        slots->name_size[slot] = header->msg_namelen;
        slots->control_size[slot] = header->msg_controllen ? clear_interface(&slots->control[slot], header->msg_controllen) : 0;
        header->msg_namelen = sizeof slots->name[slot];
        header->msg_controllen = CONTROL;
    }
    return count;
}

static inline void slots_reply(struct slots *slots, int number, int slot, int size)
{
    slots->back[number] = slot;
    slots->out_part[number] = (struct iovec){slots->packet[slot], (size_t)size};
    slots->out[number].msg_hdr = (struct msghdr){
        .msg_name = &slots->name[slot], .msg_namelen = slots->name_size[slot], .msg_iov = &slots->out_part[number],
        .msg_iovlen = 1, .msg_control = &slots->control[slot], .msg_controllen = slots->control_size[slot]};
}

static inline int slots_send(struct slots *slots, int descriptor, int first, int end)
{
    return slots->send(descriptor, slots->out + first, (unsigned)(end - first), MSG_DONTWAIT);
}

static inline int slot_is_v6(const struct slots *slots, int slot)
{
    return slots->name[slot].sin6_family == AF_INET6;
}

/* Of either family. */
static inline int slot_port(const struct slots *slots, int slot)
{
    return ntohs(slots->name[slot].sin6_port);
}

/* The address and its scope in 20 octets, of which no two clients have the same: no interface has the number that an IPv4
 * address gets for its scope. */
static inline void slot_client(const struct slots *slots, int slot, uint8_t client[20])
{
    const struct sockaddr_in6 *name = &slots->name[slot];
    if (slot_is_v6(slots, slot)) {
        memcpy(client, &name->sin6_addr, 16);
        memcpy(client + 16, &name->sin6_scope_id, 4);
    } else {
        memset(client, 0, 16);
        memcpy(client, &name->sin6_flowinfo, 4); /* where sockaddr_in has its address */
        memset(client + 16, 0xFF, 4);
    }
}
#endif
