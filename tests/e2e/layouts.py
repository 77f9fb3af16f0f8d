"""The layouts of docs/layouts.md as something that runs: who stands at which address, and what a question costs.

Rules of this file:
- Corefiles and canal-dns settings come from the document; here stands only where the servers are and what is expected;
- `alone` is how to ask CoreDNS past canal-dns, and is the yardstick for everything that canal-dns must not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.e2e import cluster, document
from tests.e2e.ask import Answer, ask
from tests.e2e.processes import CanalDns, CoreDns, datagrams, unchanged, until

_LOOPBACK = "127.0.0.1 ::1"


@dataclass(frozen=True, slots=True)
class Layout:
    name: str
    corefile: tuple[str, ...]
    """Blocks of the document, in order; what an earlier one defines for a zone and port, a later one does not replace."""
    settings: str
    """The block with canal-dns's settings."""
    canal_dns: tuple[str, ...] = cluster.CANAL_DNS
    """Where canal-dns listens."""
    core_dns: tuple[str, ...] = cluster.KUBE_DNS
    """Where CoreDNS listens."""
    alone: tuple[str, ...] = cluster.KUBE_DNS
    """Where CoreDNS is asked past canal-dns..."""
    alone_dnssec: bool = True
    """...with DO=1: CoreDNS caches such answers apart, and canal-dns asks in this way, so both see the same TTL."""
    zone: str = cluster.DOMAIN
    """Names that pass through canal-dns end in this; "": all of them."""
    fallback: bool = True
    """CoreDNS answers by itself when canal-dns does not."""
    datagrams_bound: int = 4
    """UDP packets of one question for a bound name: client, CoreDNS, canal-dns, and back."""
    datagrams_forwarded: int = 6
    """UDP packets of one question for another name of `zone`: canal-dns asks CoreDNS."""
    workers: int = 0

    def passes(self, name: str) -> bool:
        return name.lower().endswith(self.zone)


A = Layout("A", ("A",), "A", alone=cluster.PLAIN_COREDNS)
A_OLD = Layout("A-old", ("A-old", "A"), "A", alone=cluster.PLAIN_COREDNS)
B = Layout("B", ("B", "vendor"), "B", workers=2)
B_OLD = Layout("B-old", ("B-old", "vendor"), "B")
E = Layout("E", ("E", "vendor"), "B", zone=cluster.fqdn("shop"))
F = Layout(
    "F",
    ("vendor",),
    "F",
    canal_dns=cluster.KUBE_DNS,
    core_dns=cluster.PLAIN_COREDNS,
    alone=cluster.PLAIN_COREDNS,
    alone_dnssec=False,
    zone="",
    fallback=False,
    datagrams_bound=2,
    datagrams_forwarded=4,
    workers=2,
)
ALL = (A, A_OLD, B, B_OLD, E, F)
LOOP = Layout("anti-pattern", ("loop", "vendor"), "B")


class Site:
    """One layout, running."""

    def __init__(
        self, layout: Layout, binary: Path, folder: Path, resolv_conf: Path, *, settings: Mapping[str, Any] | None = None
    ):
        """`settings`: canal-dns's, in place of those of the document."""
        self.layout = layout
        self.folder = folder
        self.manifests = folder / "manifests"
        self.settings = {
            "workers": layout.workers,
            **yaml.safe_load(document.blocks("yaml")[layout.settings]),
            **(settings or {}),
        }
        written = corefile(layout, resolv_conf, self.source())
        self.core_dns = CoreDns(binary, folder, written, (*layout.core_dns, *layout.alone))
        self.canal_dns = self.make_canal_dns()

    def source(self) -> Callable[[str], str]:
        """What stands for the cluster in the Corefile."""
        return document.with_zones(cluster.zone_lines(self.folder))

    def make_canal_dns(self) -> CanalDns:
        self.manifests.mkdir()
        cluster.write_manifests(self.manifests)
        # What is asked twice is to take its whole way twice: packets are counted here.
        ours = cluster.settings(self.manifests) | {"cache": {"size": 0}}
        return CanalDns(self.folder, self.layout.canal_dns, ours | self.settings)

    def start(self) -> None:
        """What is not running; canal-dns first, so that CoreDNS finds it and has nothing to probe."""
        for server in (self.canal_dns, self.core_dns):
            if server.running is None:
                server.start()
        self.wait_for_vip()

    def end(self) -> None:
        self.canal_dns.kill()
        self.core_dns.kill()
        written = self.canal_dns.log.read_text()
        assert "Traceback" not in written, written

    def ask(
        self, name: str, kind: str, *, tcp: bool = False, v6: bool = False, dnssec: bool = False, timeout: float = 5.0
    ) -> Answer:
        """As a pod does: kube-dns's address."""
        return ask(cluster.KUBE_DNS[v6], name, kind, tcp=tcp, dnssec=dnssec, timeout=timeout)

    def ask_alone(self, name: str, kind: str, *, tcp: bool = False, v6: bool = False) -> Answer:
        """CoreDNS past canal-dns; for a name that does not pass through canal-dns, CoreDNS as it is."""
        return ask(self.layout.alone[v6], name, kind, tcp=tcp, dnssec=self.layout.alone_dnssec and self.layout.passes(name))

    def bound(self) -> str:
        """A bound name that passes through canal-dns in this layout."""
        return next(name for name in cluster.BOUND if self.layout.passes(name) and cluster.BOUND[name] is cluster.VIP)

    def has_vip(self, **how: Any) -> bool:
        try:
            return self.ask(self.bound(), "A", **how).addresses() == {cluster.VIP["A"]}
        except (TimeoutError, ConnectionError):
            return False

    def wait_for_vip(self, seconds: float = 15) -> None:
        """Until a bound name has its VIP, in every way of asking, and no packet is on its way any more."""
        for tcp in (False, True):
            for v6 in (False, True):
                until(partial(self.has_vip, tcp=tcp, v6=v6), seconds, f"{self.bound()} has its VIP")
        unchanged(datagrams, polls=4, pause=0.05)


def corefile(layout: Layout, resolv_conf: Path, source: Callable[[str], str]) -> str:
    """The Corefile of a layout, as it runs here. `source`: what is made of the `kubernetes` plugin."""
    blocks = document.blocks("corefile")
    # the way back of B comes in on 127.0.0.1:53, so CoreDNS must listen there
    bind = {"53": f"{' '.join(layout.core_dns)} {_LOOPBACK}", "8053": _LOOPBACK}
    text = "".join(block for block in _server_blocks(blocks[name] for name in layout.corefile))
    made = document.runnable(text, bind=bind, source=source, resolv_conf=resolv_conf)
    if layout.alone == cluster.PLAIN_COREDNS and ".:8053 {" in text:
        # the Service `coredns-plain` maps port 53 of its address to 8053; without kube-proxy the block has to stand twice
        back = document.server_block(text, ".:8053").replace(".:8053", ".:53")
        bind = {"53": " ".join(cluster.PLAIN_COREDNS)}
        made += document.runnable(back, bind=bind, source=source, resolv_conf=resolv_conf)
    return made


def _server_blocks(texts: Any) -> list[str]:
    found: dict[str, str] = {}
    for text in texts:
        for opening in document.openings(text):
            found.setdefault(opening, document.server_block(text, opening))
    return [*found.values()]
