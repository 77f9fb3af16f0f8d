/* The C of the extensions alone, without Python: what a client's and an upstream's octets do to _packets.h and _forward.h.
 *
 * An input is one of tests/fuzz/replies.py: an octet of circumstances (1: a stream), one that says how long the query is, the
 * query, then an upstream's packet. Built for libFuzzer (clang -fsanitize=fuzzer), or with -DALONE as a program that takes files,
 * and seconds of mutations of them; built with -fsanitize-coverage=trace-pc and count.c it counts its basic blocks, too.
 */
#define _GNU_SOURCE
#include "_forward.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { FIXED = 30000, PER_OCTET = 400, LARGEST = 1 << 17 };

/* Basic blocks that were run; count.c has it, which is built without what counts them. */
#ifdef ALONE
extern unsigned long blocks;
#else
static unsigned long blocks;
#endif

static void need(int holds, const char *text)
{
    if (!holds) {
        fprintf(stderr, "FINDING: %s\n", text);
        abort();
    }
}

/* A copy with nothing behind it. */
static uint8_t *exact(const uint8_t *octets, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    if (copy == NULL)
        abort();
    memcpy(copy, octets, size);
    return copy;
}

static struct found found;
static struct outgoing outgoing;

/* What the extension does with a query: the key of its question, a reply from a table and from a cache, the way upstream. */
static void ask(const uint8_t *packet, int size, const struct query *asked, int stream)
{
    uint8_t *key = malloc((size_t)(asked->end - HEADER));
    uint8_t *to = malloc(PACKET);
    const uint8_t counts[6] = {0, 1, 0, 0, 0, 0};
    const uint8_t body[16] = {0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 96, 0, 200};
    const uint8_t offsets[] = {6, 0};
    need(asked->end <= size && asked->end - HEADER <= MAX_QUESTION, "a question beyond its packet");
    need(asked->limit >= MIN_UDP && asked->limit <= (stream ? MAX_STREAM : MAX_UDP), "a limit that is none");
    fold_question(key, packet, asked);
    for (int at = 0; at < asked->end - HEADER - 4; at++)
        need(key[at] < 'A' || key[at] > 'Z', "a capital letter is left");
    need(memcmp(key + asked->end - HEADER - 4, packet + asked->end - 4, 4) == 0, "another type or class");
    int written = write_reply(to, packet, asked, 0x0400, counts, body, sizeof body);
    need(written == asked->end + (int)sizeof body + (asked->opt ? OPT : 0) && written <= MIN_UDP, "a reply of another size");
    need(memcmp(to, packet, 2) == 0 && memcmp(to + HEADER, packet + HEADER, (size_t)(asked->end - HEADER)) == 0, "no echo");
    reduce_ttls(to + asked->end, sizeof body, offsets, sizeof offsets, 3);
    need(to[asked->end + 9] == 2, "another TTL");
    need(write_ask(to, packet, asked, 0x4242, asked->dnssec) == asked->end + OPT, "another question is forwarded");
    free(key);
    free(to);
}

/* And with the reply to it. */
static void answer(const uint8_t *packet, const struct query *asked, const uint8_t *reply, int size)
{
    uint8_t *name = malloc(MAX_QUESTION), *to = malloc(PACKET);
    fold_question(name, packet, asked);
    if (size >= HEADER && same_question(reply, size, packet, asked, name) && scan_reply(reply, size, asked->end, &found)) {
        need(found.end >= asked->end && found.end <= size && found.names <= NAMES, "records beyond their packet");
        for (int at = 0; at < found.names; at++) {
            int end = 0;
            need(found.length[at] >= 1 && found.length[at] <= MAX_NAME, "a name that is too long");
            while (end < found.length[at] && found.name[at][end] != 0)
                end += 1 + found.name[at][end];
            need(end == found.length[at] - 1, "a name that does not end where it should");
        }
        if (found.end + (asked->opt ? OPT : 0) <= asked->limit && asked->limit <= MAX_UDP) {
            int length = write_reply(to, packet, asked, reply[3] & 15, found.counts, reply + asked->end, found.end - asked->end);
            need(length <= asked->limit, "a reply that is too long");
        }
    }
    free(name);
    free(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > LARGEST)
        return 0;
    size_t length = data[1] < size - 2 ? data[1] : size - 2;
    uint8_t *packet = exact(data + 2, length), *reply = exact(data + 2 + length, size - 2 - length);
    struct query asked;
    blocks = 0;
    if (read_query(packet, (int)length, data[0] & 1, &asked)) {
        /* A slot of the packet loop: the reply is put together where the query lies. */
        uint8_t *slot = malloc(PACKET);
        ask(packet, (int)length, &asked, data[0] & 1);
        answer(packet, &asked, reply, (int)(size - 2 - length));
        memcpy(slot, packet, length);
        const uint8_t none[6] = {0};
        need(write_reply(slot, slot, &asked, 0, none, none, 0) <= PACKET, "a reply beyond its slot");
        free(slot);
    }
    /* The same octets as a query of any size, as a stream has them. */
    if (read_query(reply, (int)(size - 2 - length), data[0] & 1, &asked))
        ask(reply, (int)(size - 2 - length), &asked, data[0] & 1);
    if (length >= 4) {
        uint32_t words;
        memcpy(&words, packet, 4);
        outgoing.count = (int)(words % SLOTS);
        outgoing_control(&outgoing, 0, 8, packet, (int)length);
        char host[64];
        snprintf(host, sizeof host, "%.*s", (int)length, (const char *)packet);
        outgoing_name(&outgoing, host, 53, 0, 0, data[0] & 2);
    }
    need(blocks <= FIXED + PER_OCTET * size, "more work than its size allows");
    free(packet);
    free(reply);
    return 0;
}

#ifdef ALONE
static uint8_t *inputs[20000];
static size_t sizes[20000];
static uint64_t state;

static uint64_t chance(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static size_t mutated(uint8_t *to, int count)
{
    static const uint8_t telling[] = {0, 1, 0x0C, 0x29, 0x3F, 0x40, 0xC0, 0xFF};
    size_t one = chance((uint64_t)count), size = sizes[one];
    memcpy(to, inputs[one], size);
    for (uint64_t changes = 1 + chance(4); changes; changes--) {
        size_t at = size ? chance(size) : 0, other = chance((uint64_t)count), part = 1 + chance(64);
        switch (chance(5)) {
        case 0: if (size) to[at] ^= (uint8_t)(1u << chance(8)); break;
        case 1: if (size) to[at] = telling[chance(sizeof telling)]; break;
        case 2: if (part < size) { size -= part; memmove(to + at % size, to + at % size + part, size - at % size); } break;
        case 3: if (size + part < 4096) { memmove(to + at + part, to + at, size - at); size += part; } break;
        default:
            if (part > sizes[other]) part = sizes[other];
            if (at + part > size) part = size - at;
            if (part) memcpy(to + at, inputs[other] + chance(sizes[other] - part + 1), part);
        }
    }
    return size;
}

/* alone SECONDS SEED FILE ... */
int main(int count, char **arguments)
{
    static uint8_t buffer[LARGEST];
    unsigned long runs = 0, most = 0;
    int known = 0;
    if (count < 4)
        return 2;
    state = strtoull(arguments[2], NULL, 10) * 2654435761u + 1;
    for (int at = 3; at < count && known < 20000; at++) {
        FILE *file = fopen(arguments[at], "rb");
        if (file == NULL)
            return 2;
        size_t size = fread(buffer, 1, sizeof buffer, file);
        fclose(file);
        if (size < 4096) {
            inputs[known] = exact(buffer, size);
            sizes[known++] = size;
        }
        LLVMFuzzerTestOneInput(buffer, size);
        if (size && blocks / size > most)
            most = blocks / size;
        runs++;
    }
    for (time_t end = time(NULL) + atoi(arguments[1]); time(NULL) < end && known;)
        for (int at = 0; at < 1000; at++, runs++) {
            size_t size = mutated(buffer, known);
            LLVMFuzzerTestOneInput(buffer, size);
            if (size > 100 && blocks / size > most)
                most = blocks / size;
        }
    printf("{\"runs\": %lu, \"blocks\": %lu}\n", runs, most);
    return 0;
}
#endif
