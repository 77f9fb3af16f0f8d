"""Who is measured, in the order of a round: one file per program, listed here and nowhere else."""

from __future__ import annotations

from benchmarks.contenders.base import Contender
from benchmarks.contenders.canal_dns import CanalDnsForward, CanalDnsHits
from benchmarks.contenders.coredns import CoreDnsCache, CoreDnsFile, CoreDnsForward, CoreDnsHosts, CoreDnsRewrite
from benchmarks.contenders.dnsdist import DnsdistCache, DnsdistForward
from benchmarks.contenders.dnsmasq import Dnsmasq, DnsmasqForward
from benchmarks.contenders.knot import Knot
from benchmarks.contenders.nsd import Nsd
from benchmarks.contenders.unbound import Unbound, UnboundForward

CONTENDERS: tuple[Contender, ...] = (
    Knot(),
    Nsd(),
    Unbound(),
    CanalDnsHits(),
    Dnsmasq(),
    DnsdistCache(),
    CoreDnsCache(),
    CoreDnsFile(),
    CoreDnsHosts(),
    CoreDnsRewrite(),
    CanalDnsForward(),
    DnsdistForward(),
    DnsmasqForward(),
    UnboundForward(),
    CoreDnsForward(),
)
UPSTREAMS: tuple[Contender, ...] = (Knot(), Nsd(), Unbound())
"""What may stand behind the forwarding contenders, the fastest first: the same configuration, on the load's core."""
