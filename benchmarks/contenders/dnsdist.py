"""dnsdist: a load balancer in front of a DNS server: its packet cache for hits, plain for forwarding."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import UPSTREAM, Scenario

DNSDIST = Program("dnsdist", "--version", "Debian package dnsdist")


def _server(site: Site, more: str) -> list[str]:
    # `setUp` takes the health check out: the upstream knows only the names that are measured.
    config = site.write(
        "dnsdist.conf",
        f"""\
setSecurityPollSuffix("")
setLocal("127.0.0.1:{site.port}")
setACL({{"127.0.0.0/8"}})
newServer({{address="127.0.0.1:{site.upstream_port}", name="upstream"}})
getServer(0):setUp()
{more}""",
    )
    return [str(site.binary), "-C", str(config), "--supervised", "--disable-syslog"]


class DnsdistCache(Contender):
    key = "dnsdist cache"
    program = DNSDIST
    note = "hits of its packet cache; it keeps what the upstream says, so its answers are the Services' own addresses"

    def addresses(self, scenario: Scenario) -> Mapping[str, str]:
        return {name: UPSTREAM.addresses[name] for name in scenario.addresses}

    def write(self, site: Site) -> list[str]:
        return _server(site, 'getPool(""):setCache(newPacketCache(50000))\n')


class DnsdistForward(Contender):
    key = "dnsdist"
    program = DNSDIST
    note = "one upstream, no packet cache; its listener and its receiver are threads on the one core"

    def write(self, site: Site) -> list[str]:
        return _server(site, "")
