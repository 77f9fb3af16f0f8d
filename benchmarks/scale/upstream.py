"""Stands behind canal-dns: `python -m benchmarks.scale.upstream ADDRESS PORT` answers every question with 192.0.2.1.

It needs less than any real server, so that a name which is no longer bound is seen as such without waiting for somebody else.
"""

from __future__ import annotations

import socket
import sys

OTHER = b"\xc0\x00\x02\x01"
_RECORD = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04" + OTHER


def answer(query: bytes) -> bytes:
    """The question again, with one A record; whatever else the query carries is left out."""
    end = query.index(0, 12) + 5
    return query[:2] + b"\x84\x80\x00\x01\x00\x01\x00\x00\x00\x00" + query[12:end] + _RECORD


def main(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        while True:
            query, client = server.recvfrom(4096)
            server.sendto(answer(query), client)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
