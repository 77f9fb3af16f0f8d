"""The floor: a loop in C that sends every packet back with one record behind it (`load/echo.c`)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.load.build import ECHO, NEEDED, compiled


class _Built(Program):
    """Compiled on the spot."""

    def find(self) -> Path | None:
        return compiled(ECHO)

    def version(self, binary: Path) -> str:
        return "of this repository"


class Echo(Contender):
    key = "echo"
    program = _Built("echo", "", NEEDED)
    note = "no DNS server: `recvmmsg`, one fixed record behind each packet, `sendmmsg`, 64 at a time, blocking: the floor"

    def write(self, site: Site) -> list[str]:
        return [str(site.binary), "-p", str(site.port)]
