"""The helm test: `ask.py SERVER PORT NAME READY-URL`; exit status 1, and why, where an answer is missing."""

import socket
import sys
import urllib.request

from dnslib import DNSRecord

server, port, name, ready = sys.argv[1:]
query = DNSRecord.question(name, "A")
family = socket.AF_INET6 if ":" in server else socket.AF_INET


def over_udp():
    with socket.socket(family, socket.SOCK_DGRAM) as channel:
        channel.settimeout(3)
        channel.connect((server, int(port)))
        for _ in range(3):
            channel.send(query.pack())
            try:
                return channel.recv(4096)
            except TimeoutError:
                continue
    raise TimeoutError("no answer to three questions")


def over_tcp():
    with socket.create_connection((server, int(port)), 5) as channel, channel.makefile("rb") as stream:
        packet = query.pack()
        channel.sendall(len(packet).to_bytes(2, "big") + packet)
        return stream.read(int.from_bytes(stream.read(2), "big"))


failed = False
for transport, ask in (("UDP", over_udp), ("TCP", over_tcp)):
    try:
        reply = DNSRecord.parse(ask())
        said = ", ".join(str(record) for record in reply.rr) or f"rcode {reply.header.rcode} and no answer"
        failed |= reply.header.id != query.header.id or not reply.rr
    except Exception as problem:
        said, failed = f"{type(problem).__name__}: {problem}", True
    print(f"{name} from {server}:{port} over {transport}: {said}")
try:
    with urllib.request.urlopen(ready, timeout=5) as answer:  # noqa: S310 - the chart names it
        print(f"{ready}: {answer.status}")
except Exception as problem:
    print(f"{ready}: {problem}")
    failed = True
sys.exit(failed)
