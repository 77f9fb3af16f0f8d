/* A kernel in a bad mood, and a clock that is set: preloaded into canal-dns (LD_PRELOAD), told what to do in a shared file.
 *
 * Rules of this file:
 * - only sends to a named address are touched: replies to clients. What goes to an upstream leaves by connected sockets;
 * - what a call reports is what a kernel would: a partial send has sent so many, an error is about the first message;
 * - everything done is counted in the file, so that each lost reply can be laid to its cause;
 * - no time but that of day is shifted: whoever uses the steady clock does not notice.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MILLION = 1000000 };

struct orders {
    int64_t offset;      /* nanoseconds that the time of day is off */
    uint64_t trouble;    /* of a million sends, so many meet some; above: every one meets EAGAIN */
    uint64_t calls, partial, passing, pending, permanent; /* of these: messages that were refused for good */
    uint64_t in_vain;    /* calls without progress, one after the other */
    uint64_t most_in_vain;
};

static struct orders nobody, *orders = &nobody;
static uint64_t state;

static int (*real_sendmmsg)(int, struct mmsghdr *, unsigned int, int);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static ssize_t (*real_sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

static const int PERMANENT[] = {EPERM, EINVAL, EMSGSIZE}, PASSING[] = {EAGAIN, ENOBUFS}, PENDING[] = {ECONNREFUSED, EINTR};

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CANAL_DNS_SHIM");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    real_sendmmsg = dlsym(RTLD_NEXT, "sendmmsg");
    real_sendmsg = dlsym(RTLD_NEXT, "sendmsg");
    real_sendto = dlsym(RTLD_NEXT, "sendto");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    state = 0x9E3779B97F4A7C15u ^ (uint64_t)getpid() << 20;
    if (file >= 0) {
        void *shared = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shared != MAP_FAILED)
            orders = shared;
        close(file);
    }
}

static uint64_t chance(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

static void add(uint64_t *to)
{
    __atomic_fetch_add(to, 1, __ATOMIC_RELAXED);
}

static int fails(uint64_t *kind, int number)
{
    add(kind);
    orders->in_vain++;
    if (orders->in_vain > orders->most_in_vain)
        orders->most_in_vain = orders->in_vain;
    errno = number;
    return -1;
}

/* -1 with errno where this send is to fail; 0: let it. */
static int mood(void)
{
    add(&orders->calls);
    if (orders->trouble > MILLION)
        return fails(&orders->passing, EAGAIN);
    if (!orders->trouble || chance(MILLION) >= orders->trouble)
        return 0;
    switch (chance(3)) {
    case 0: return fails(&orders->permanent, PERMANENT[chance(3)]);
    case 1: return fails(&orders->passing, PASSING[chance(2)]);
    default: return fails(&orders->pending, PENDING[chance(2)]);
    }
}

int sendmmsg(int descriptor, struct mmsghdr *messages, unsigned int count, int flags)
{
    int done;
    if (!count || !messages || !messages[0].msg_hdr.msg_name)
        return real_sendmmsg(descriptor, messages, count, flags);
    if (mood() < 0)
        return -1;
    if (count > 1 && orders->trouble && !chance(4)) {
        count = 1 + (unsigned)chance(count - 1);
        add(&orders->partial);
    }
    done = real_sendmmsg(descriptor, messages, count, flags);
    orders->in_vain = 0;
    return done;
}

ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags)
{
    if (message->msg_name && mood() < 0)
        return -1;
    if (message->msg_name)
        orders->in_vain = 0;
    return real_sendmsg(descriptor, message, flags);
}

ssize_t sendto(int descriptor, const void *octets, size_t size, int flags, const struct sockaddr *to, socklen_t to_size)
{
    if (to && mood() < 0)
        return -1;
    if (to)
        orders->in_vain = 0;
    return real_sendto(descriptor, octets, size, flags, to, to_size);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int result = real_clock_gettime(clock, at);
    if (result == 0 && orders->offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t whole = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec + orders->offset;
        at->tv_sec = whole / 1000000000;
        at->tv_nsec = whole % 1000000000;
    }
    return result;
}

int gettimeofday(struct timeval *at, void *zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
