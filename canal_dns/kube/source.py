"""What gives objects: an API server that is watched, or a folder of manifests. Both look like this from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from canal_dns.metrics import Counters

OnChange = Callable[[float | None], None]
"""Called after the view has changed, with `time.monotonic()` of the first octet's arrival; None: not known."""


class Source(Protocol):
    """Fills a view with objects and keeps it up to date."""

    @property
    def place(self) -> str:
        """Where the objects come from, for people: `manifests /etc/x`, `cluster https://10.96.0.1:443`."""

    @property
    def synced(self) -> bool:
        """True once the view was filled with every kind that the rule cannot do without; it stays so."""

    @property
    def skips(self) -> Sequence[object]:
        """Objects that are there and not used; `str()` of one is a line for people."""

    def waiting(self) -> list[str]:
        """Why it is not synced yet, one line per kind or file; empty once it is."""

    def problems(self) -> list[str]:
        """What is wrong now, synced or not, one line each: broken files, kinds that may not be read, a server that is away."""

    def is_current(self) -> bool:
        """What was read is what there is, as far as anybody can know: the other side is there, and lets itself be read."""

    def to_plain(self) -> dict[str, Any]:
        """Its part of `/bindings`, fit for JSON."""

    def observe(self, counters: Counters) -> None:
        """Bring the gauges and counters of this source up to date."""

    async def read(self) -> None:
        """Read everything once. Raises ManifestError, ClusterError when nothing can be read."""

    async def run(self, on_change: OnChange) -> NoReturn:
        """Follow the objects until cancelled; nothing that the other side does ends it."""
