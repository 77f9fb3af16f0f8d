"""CoreDNS: the ways in which a cluster answers a bound name today, its `forward`, and the stub block.

No `errors`, `log` or `prometheus` in any Corefile: each costs it more per query than is counted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import DOMAIN, GATEWAY, TTL, UPSTREAM, VIP, Scenario, hosts_file, zone_file

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
    note = "hits of `cache`, in front of `hosts`"

    def plugins(self, site: Site) -> str:
        return f"cache {TTL}\n{_hosts(site, site.scenario.addresses)}"


class CoreDnsFile(_CoreDns):
    key = "coredns file"
    note = "`file`: zone data, an A record for each name"

    def plugins(self, site: Site) -> str:
        zone = site.write("zone", zone_file(site.scenario.addresses))
        return f"file {zone} {DOMAIN} {{\n    reload 0\n}}"


class CoreDnsHosts(_CoreDns):
    key = "coredns hosts"
    note = "`hosts`: a line for each name, no cache"

    def plugins(self, site: Site) -> str:
        return _hosts(site, site.scenario.addresses)


class CoreDnsRewrite(_CoreDns):
    key = "coredns rewrite"
    note = (
        "a `rewrite name exact` line for each name, to the gateway's, as the Canal controller writes them; `cache` behind them"
    )

    def plugins(self, site: Site) -> str:
        lines = "\n".join(f"rewrite name exact {name} {GATEWAY}" for name in site.scenario.addresses)
        return f"{lines}\ncache {TTL}\n{_hosts(site, {GATEWAY: VIP})}"


class CoreDnsForward(_CoreDns):
    key = "coredns"
    note = "`forward` to one upstream, no `cache`"

    def plugins(self, site: Site) -> str:
        return f"forward . 127.0.0.1:{site.upstream_port}"


class CoreDnsForwardCache(_CoreDns):
    key = "coredns cache"
    note = "hits of `cache` in front of `forward`, negative answers too: its answers are the Services' own addresses"

    def addresses(self, scenario: Scenario) -> Mapping[str, str]:
        return {name: UPSTREAM.addresses[name] for name in scenario.addresses}

    def plugins(self, site: Site) -> str:
        # Room for everything: what is measured is hits.
        cache = f"cache {TTL} {{\n    success 50000\n    denial 50000\n}}"
        return f"{cache}\nforward . 127.0.0.1:{site.upstream_port}"


class CoreDnsAlone(_CoreDns):
    key = "coredns"
    note = "alone: `hosts` in place of `kubernetes`, which costs as much; no `cache`, as kubeadm has it for the cluster's names"

    def addresses(self, scenario: Scenario) -> Mapping[str, str]:
        return {name: UPSTREAM.addresses[name] for name in scenario.addresses}

    def plugins(self, site: Site) -> str:
        return _hosts(site, self.addresses(site.scenario))


def stub_corefile(site: Site, canal_dns_port: int) -> Path:
    """Layout B of docs/layouts.md: one block before the vendor's, which stays as it is."""
    services = {name: UPSTREAM.addresses[name] for name in site.scenario.addresses}
    block = "".join(f"    {line}\n" for line in _hosts(site, services).splitlines())
    return site.write(
        "Corefile",
        f"""\
{DOMAIN}:{site.port} {{
    bind 127.0.0.1
    view through-canal {{
        expr !do()
    }}
    forward . 127.0.0.1:{canal_dns_port} {{
        policy sequential
        max_fails 1
        health_check 500ms
        failover SERVFAIL REFUSED NOTIMP
    }}
}}
.:{site.port} {{
    bind 127.0.0.1
{block}}}
""",
    )


def _hosts(site: Site, addresses: Mapping[str, str]) -> str:
    hosts = site.write("hosts", hosts_file(addresses))
    return f"hosts {hosts} {{\n    ttl {TTL}\n    reload 0\n}}"
