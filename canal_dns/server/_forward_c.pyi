from canal_dns.dns import flights
from canal_dns.dns.access import Gate
from canal_dns.dns.inflight import Inflight
from canal_dns.dns.table import Addresses, TableCell
from canal_dns.dns.upstreams import Upstreams
from canal_dns.server.forwarder import Answer, Forwarder
from canal_dns.server.hits import Miss
from canal_dns.server.sockets import UdpSocket
from canal_dns.server.upstream_udp import UdpChannel, UdpChannels

class Flight(flights.Flight): ...

def relayed(asking: bytes, reply: bytes, bound: dict[bytes, Addresses]) -> bytes | None: ...

class Quick:
    def __init__(
        self, forwarder: Forwarder, inflight: Inflight, udp: UdpChannels, upstreams: Upstreams, cell: TableCell
    ) -> None: ...
    def take(
        self, misses: list[Miss], sock: UdpSocket, answer: Answer, gate: Gate, words: memoryview, now: float
    ) -> list[Miss]: ...
    def receive(self, channel: UdpChannel) -> None: ...
