"""CoreDNS: the ways in which a cluster answers a bound name today, and its `forward`.

No `errors`, `log` or `prometheus` in any Corefile: each costs it more per query than is counted here.
"""

from __future__ import annotations

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import DOMAIN, GATEWAY, TTL, VIP, hosts_file, zone_file

COREDNS = Program(
    "coredns",
    "-version",
    "https://github.com/coredns/coredns/releases, named by $CANAL_DNS_COREDNS or put into ~/.cache/canal-dns/bin",
    variable="CANAL_DNS_COREDNS",
)


class _CoreDns(Contender):
    program = COREDNS
    environment = {"GOMAXPROCS": "1"}  # noqa: RUF012 — read-only: a Mapping

    def plugins(self, site: Site) -> str:
        raise NotImplementedError

    def write(self, site: Site) -> list[str]:
        block = "".join(f"    {line}\n" for line in self.plugins(site).splitlines())
        corefile = site.write("Corefile", f".:{site.port} {{\n    bind 127.0.0.1\n{block}}}\n")
        return [str(site.binary), "-conf", str(corefile), "-quiet"]


class CoreDnsCache(_CoreDns):
    key = "coredns cache"
    scenario = "hits"
    note = "hits of `cache`, in front of `hosts`"

    def plugins(self, site: Site) -> str:
        hosts = site.write("hosts", hosts_file(site.scenario.addresses))
        return f"cache {TTL}\nhosts {hosts} {{\n    ttl {TTL}\n    reload 0\n}}"


class CoreDnsFile(_CoreDns):
    key = "coredns file"
    scenario = "hits"
    note = "`file`: zone data, 1,000 A records"

    def plugins(self, site: Site) -> str:
        zone = site.write("zone", zone_file(site.scenario.addresses))
        return f"file {zone} {DOMAIN} {{\n    reload 0\n}}"


class CoreDnsHosts(_CoreDns):
    key = "coredns hosts"
    scenario = "hits"
    note = "`hosts`: 1,000 lines, no cache"

    def plugins(self, site: Site) -> str:
        hosts = site.write("hosts", hosts_file(site.scenario.addresses))
        return f"hosts {hosts} {{\n    ttl {TTL}\n    reload 0\n}}"


class CoreDnsRewrite(_CoreDns):
    key = "coredns rewrite"
    scenario = "hits"
    note = "1,000 `rewrite name exact` lines to the gateway's name, as the Canal controller writes them; `cache` behind them"

    def plugins(self, site: Site) -> str:
        lines = "\n".join(f"rewrite name exact {name} {GATEWAY}" for name in site.scenario.addresses)
        hosts = site.write("hosts", hosts_file({GATEWAY: VIP}))
        return f"{lines}\ncache {TTL}\nhosts {hosts} {{\n    ttl {TTL}\n    reload 0\n}}"


class CoreDnsForward(_CoreDns):
    key = "coredns"
    scenario = "forward"
    note = "`forward` to one upstream, no `cache`"

    def plugins(self, site: Site) -> str:
        return f"forward . 127.0.0.1:{site.upstream_port}"
