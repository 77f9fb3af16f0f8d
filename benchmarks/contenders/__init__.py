"""Who is measured, in the order of a round: one file per program, listed here and nowhere else."""

from __future__ import annotations

from benchmarks.contenders.base import Contender
from benchmarks.contenders.canal_dns import MMSG, NATIVE, PURE, CanalDns, Chain
from benchmarks.contenders.coredns import (
    CoreDnsAlone,
    CoreDnsCache,
    CoreDnsFile,
    CoreDnsForward,
    CoreDnsForwardCache,
    CoreDnsHosts,
    CoreDnsRewrite,
)
from benchmarks.contenders.dnsdist import DnsdistCache, DnsdistForward
from benchmarks.contenders.dnsmasq import Dnsmasq, DnsmasqCache, DnsmasqForward
from benchmarks.contenders.echo import Echo
from benchmarks.contenders.knot import Knot
from benchmarks.contenders.nsd import Nsd
from benchmarks.contenders.unbound import Unbound, UnboundCache, UnboundForward
from benchmarks.scenarios import SIZES

_FILLINGS = (NATIVE, MMSG, PURE)
_LARGEST = f"names-{SIZES[-1]}"


def _ours(scenario: str, *, cache: bool = False) -> tuple[Contender, ...]:
    return tuple(CanalDns(scenario, filling, cache=cache) for filling in _FILLINGS)


CONTENDERS: tuple[Contender, ...] = (
    Echo("hits"),
    *_ours("hits"),
    *(one("hits") for one in (Knot, Nsd, Unbound, Dnsmasq, DnsdistCache, CoreDnsCache, CoreDnsFile, CoreDnsHosts)),
    *(CanalDns(f"names-{size}", NATIVE, size) for size in SIZES),
    *(CanalDns(f"names-{size}", PURE, size) for size in (100, SIZES[-1])),
    *(Knot(f"names-{size}") for size in (100, SIZES[-1])),
    Nsd(_LARGEST),
    CoreDnsFile(_LARGEST),
    CoreDnsHosts(_LARGEST),
    *(CoreDnsRewrite(f"names-{size}") for size in (10, 100, 1000)),
    *_ours("mix", cache=True),
    *(one("mix") for one in (DnsdistCache, UnboundCache, CoreDnsForwardCache)),
    *_ours("forward"),
    *(one("forward") for one in (DnsdistForward, DnsmasqForward, UnboundForward, CoreDnsForward)),
    *_ours("cached", cache=True),
    *(one("cached") for one in (DnsdistCache, DnsmasqCache, UnboundCache, CoreDnsForwardCache)),
    *_ours("tcp"),
    *(one("tcp") for one in (Knot, Nsd, Unbound, DnsdistCache, CoreDnsCache)),
    CoreDnsAlone("chain"),
    Chain("chain", cache=True),
    Chain("chain", cache=False),
)
UPSTREAMS: tuple[Contender, ...] = tuple(one("upstream") for one in (Knot, Nsd, Unbound))
"""What may stand behind those that forward, the fastest first: the same configuration, on the load's core."""
