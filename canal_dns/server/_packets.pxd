# cython: language_level=3
"""What the extensions use of `_packets.h`, where each part is described."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "_packets.h" nogil:
    enum:
        HEADER, MAX_STREAM, MIN_UDP, OPT, RECEIVED, SLOTS

    struct query:
        int end, limit
        uint16_t qtype
        uint8_t opt, dnssec, ad

    struct sockaddr_in6:
        uint32_t sin6_flowinfo, sin6_scope_id

    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level, cmsg_type

    union control:
        cmsghdr head

    struct slots:
        void *receive
        void *send
        sockaddr_in6 name[1]
        control control[1]
        uint32_t control_size[1]
        int size[1]
        int back[1]
        uint8_t packet[1][1344]

    int read_query(const uint8_t *packet, int size, bint stream, query *asked)
    void fold_question(uint8_t *to, const uint8_t *packet, const query *asked)
    int write_reply(uint8_t *to, const uint8_t *packet, const query *asked, int flags, const uint8_t *counts,
                    const uint8_t *body, int size)
    void reduce_ttls(uint8_t *body, int size, const uint8_t *offsets, int octets, uint32_t age)

    void slots_prepare(slots *of)
    const char *slots_refused(const slots *of)
    int slots_receive(slots *of, int descriptor, int most)
    void slots_reply(slots *of, int number, int slot, int size)
    int slots_send(slots *of, int descriptor, int first, int end)
    bint slot_is_v6(const slots *of, int slot)
    int slot_port(const slots *of, int slot)
    void slot_client(const slots *of, int slot, uint8_t *client)
    unsigned char *CMSG_DATA(cmsghdr *head)
    uint32_t ntohl(uint32_t number)
