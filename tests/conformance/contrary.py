"""Servers that are wrong on purpose: `python -m tests.conformance.contrary MODE FILE` in place of `canal-dns serve -c FILE`.

    yes      answers everything at once with 9.9.9.9: broken packets, replies, other opcodes
    refuse   answers everything with a well-formed REFUSED
    relay    passes octets to the upstream and back, with the client's ID, and believes whatever comes first

Each does right what the run itself leans on: HDR-01 with the fence's ID, and the probe of the way to the upstream.
A case that passes with all three demands nothing.
"""

import asyncio
import socket
import struct
import sys
from pathlib import Path

import yaml

from tests.conformance import message as dns
from tests.conformance.lab import FENCE_ID, WEB

FENCE = dns.query(WEB, ident=FENCE_ID)


def proper(wire):
    """The right answer for what the run needs to go on; None for everything else."""
    if wire == FENCE:
        return dns.reply(wire, answer=[dns.a(b"\xc0\x0c", "10.96.0.200", 5)], aa=True)
    if dns.question("probe.up.test") in wire:
        return dns.reply(wire, answer=[dns.a(b"\xc0\x0c", "192.0.2.1")])
    return None


def yes(wire):
    try:
        return dns.reply(wire, answer=[dns.a(b"\xc0\x0c", "9.9.9.9")])
    except (dns.MalformedError, IndexError):
        return wire[:2].ljust(2, b"\0") + struct.pack("!5H", 0x8180, 0, 0, 0, 0)


def refuse(wire):
    try:
        return dns.reply(wire, rcode=5)
    except (dns.MalformedError, IndexError):
        flags = 0x8185 | (wire[2] << 8 & 0x7900 if len(wire) > 2 else 0)
        return wire[:2].ljust(2, b"\0") + struct.pack("!5H", flags, 0, 0, 0, 0)


class Contrary:
    def __init__(self, mode, config):
        self.mode, self.config = mode, config
        host, _, port = config["upstreams"][0].rpartition(":")
        self.upstream = (host.strip("[]"), int(port))

    async def answer(self, wire, proto):
        known = proper(wire)
        if known is not None:
            return known
        if self.mode == "relay":
            return await (self._relay_udp if proto == "udp" else self._relay_tcp)(wire)
        return {"yes": yes, "refuse": refuse}[self.mode](wire)

    async def _relay_udp(self, wire):
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self.upstream[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            await loop.sock_sendto(client, wire, self.upstream)
            try:
                async with asyncio.timeout(3):
                    return (await loop.sock_recvfrom(client, 65535))[0]
            except TimeoutError:
                return b""

    async def _relay_tcp(self, wire):
        try:
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection(*self.upstream)
                writer.write(struct.pack("!H", len(wire)) + wire)
                reply = await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])
                writer.close()
                return reply
        except (TimeoutError, OSError, EOFError):
            return b""

    async def run(self):
        self.tasks = set()
        for listen in self.config["listen"]:
            host, _, port = listen.rpartition(":")
            host = host.strip("[]")
            one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            one.bind((host, int(port)))
            one.setblocking(False)
            asyncio.get_running_loop().add_reader(one, self._readable, one)
            await asyncio.start_server(self._stream, host, int(port))
        host, _, port = self.config["admin"].rpartition(":")
        await asyncio.start_server(self._admin, host, int(port))
        await asyncio.Event().wait()

    def _readable(self, one):
        wire, peer = one.recvfrom(65535)
        task = asyncio.ensure_future(self._datagram(one, wire, peer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _datagram(self, one, wire, peer):
        reply = await self.answer(wire, "udp")
        if reply:
            one.sendto(reply, peer)

    async def _stream(self, reader, writer):
        try:
            while True:
                wire = await reader.readexactly(struct.unpack("!H", await reader.readexactly(2))[0])
                reply = await self.answer(wire, "tcp")
                writer.write(struct.pack("!H", len(reply)) + reply)
        except (OSError, EOFError):
            await asyncio.sleep(3600)

    async def _admin(self, reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
        await writer.drain()
        writer.close()


if __name__ == "__main__":
    asyncio.run(Contrary(sys.argv[1], yaml.safe_load(Path(sys.argv[2]).read_text())).run())
