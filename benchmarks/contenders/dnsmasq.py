"""dnsmasq: a hosts file for hits; forwarding with a cache and without."""

from __future__ import annotations

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import TTL, hosts_file

DNSMASQ = Program("dnsmasq", "--version", "Debian package dnsmasq-base")


def _server(site: Site, more: str) -> list[str]:
    config = site.write(
        "dnsmasq.conf",
        f"""\
port={site.port}
listen-address=127.0.0.1
bind-interfaces
keep-in-foreground
user={site.user}
pid-file=
log-facility={site.folder}/log
no-resolv
no-hosts
{more}""",
    )
    return [str(site.binary), "-C", str(config)]


class Dnsmasq(Contender):
    key = "dnsmasq"
    program = DNSMASQ
    note = "a line of `addn-hosts` for each name"

    def write(self, site: Site) -> list[str]:
        hosts = site.write("hosts", hosts_file(site.scenario.addresses))
        return _server(site, f"addn-hosts={hosts}\nlocal-ttl={TTL}\n")


class DnsmasqForward(Contender):
    key = "dnsmasq"
    program = DNSMASQ
    note = "`cache-size=0`, `dns-forward-max=1000` (its default of 150 is less than the queries kept open)"

    def write(self, site: Site) -> list[str]:
        return _server(site, f"cache-size=0\ndns-forward-max=1000\nserver=127.0.0.1#{site.upstream_port}\n")


class DnsmasqCache(Contender):
    key = "dnsmasq"
    program = DNSMASQ
    note = "hits of its cache: `cache-size=10000`, `dns-forward-max=1000`"

    def write(self, site: Site) -> list[str]:
        return _server(site, f"cache-size=10000\ndns-forward-max=1000\nserver=127.0.0.1#{site.upstream_port}\n")
