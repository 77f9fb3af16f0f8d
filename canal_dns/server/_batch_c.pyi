"""The packet loop as an extension; each function is described where its Python twin is, in `_batch_py`."""

from canal_dns.dns.access import Gate
from canal_dns.dns.cache import AnswerCache
from canal_dns.dns.table import AnswerTable
from canal_dns.metrics import Counters
from canal_dns.server.hits import Miss
from canal_dns.server.sockets import UdpSocket

CALLS: tuple[int, int]

def drain(
    sock: UdpSocket,
    table: AnswerTable | None,
    cache: AnswerCache | None,
    gate: Gate,
    budget: int,
    words: memoryview,
    counters: Counters,
    now: float,
) -> list[Miss]: ...
def answer(packet: bytes, table: AnswerTable | None, cache: AnswerCache | None, now: float, stream: bool) -> bytes | None: ...
def answer_stream(
    octets: bytes | memoryview,
    table: AnswerTable | None,
    cache: AnswerCache | None,
    now: float,
    words: memoryview,
    most: int,
) -> tuple[bytes, list[bytes], int, int]: ...
