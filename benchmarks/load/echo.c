/*
 * echo: the floor. No DNS server can answer with fewer instructions than a loop that sends back what it received.
 *
 *   echo -p PORT
 *
 * recvmmsg, sendmmsg, batches of 64, one blocking socket. A reply is the query with QR, AA and RA set, and 16 octets behind it: one A
 * record with a fixed address, as long as the answer that everybody else has to find. Nothing is looked at: no name, no type, no length.
 *
 * Rules of this file: 127.0.0.1 only; it runs until it is killed. Exit code: 1 cannot listen, 2 bad use.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, ROOM = 512 };

static const uint8_t RECORD[16] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 10, 96, 9, 9}; /* the question's name, A, IN, 3600 s, 10.96.9.9 */

static uint8_t packets[BATCH][ROOM];
static struct sockaddr_in peers[BATCH];
static struct iovec vectors[BATCH];
static struct mmsghdr messages[BATCH];

int main(int argc, char **argv)
{
    int port = 0, socket_fd = socket(AF_INET, SOCK_DGRAM, 0);
    for (int option; (option = getopt(argc, argv, "p:")) != -1;)
        port = option == 'p' ? atoi(optarg) : 0;
    if (port < 1 || port > 65535) {
        fprintf(stderr, "usage: echo -p PORT\n");
        return 2;
    }
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (socket_fd < 0 || bind(socket_fd, (struct sockaddr *)&here, sizeof here) < 0) {
        perror("echo");
        return 1;
    }
    for (int i = 0; i < BATCH; i++) {
        vectors[i].iov_base = packets[i];
        messages[i].msg_hdr.msg_name = &peers[i];
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            vectors[i].iov_len = ROOM - sizeof RECORD;
            messages[i].msg_hdr.msg_namelen = sizeof peers[i];
        }
        int count = recvmmsg(socket_fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (count <= 0)
            continue;
        for (int i = 0; i < count; i++) {
            size_t length = messages[i].msg_len;
            packets[i][2] = 0x85;
            packets[i][3] = 0x80;
            packets[i][7] = 1;
            memcpy(packets[i] + length, RECORD, sizeof RECORD);
            vectors[i].iov_len = length + sizeof RECORD;
        }
        for (int done = 0; done < count;) {
            int sent = sendmmsg(socket_fd, messages + done, (unsigned)(count - done), 0);
            done += sent > 0 ? sent : 1;
        }
    }
}
