"""Unbound: local data for hits; a forward zone, with its cache and without."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import DOMAIN, TTL, UPSTREAM, Scenario

UNBOUND = Program("unbound", "-V", "Debian package unbound")


def _server(site: Site, more: str) -> list[str]:
    config = site.write(
        "unbound.conf",
        f"""\
server:
    interface: 127.0.0.1
    port: {site.port}
    access-control: 127.0.0.0/8 allow
    num-threads: 1
    incoming-num-tcp: 100
    do-daemonize: no
    username: ""
    chroot: ""
    directory: "{site.folder}"
    pidfile: ""
    use-syslog: no
    logfile: ""
    verbosity: 0
    module-config: "iterator"
    do-not-query-localhost: no
{more}""",
    )
    return [str(site.binary), "-d", "-c", str(config)]


class Unbound(Contender):
    key = "unbound"
    program = UNBOUND
    note = "`local-data` for each name; one thread"

    def write(self, site: Site) -> list[str]:
        lines = "".join(
            f'    local-data: "{name}. {TTL} IN A {address}"\n' for name, address in site.scenario.addresses.items()
        )
        return _server(site, f'    local-zone: "{DOMAIN}." static\n{lines}')


class UnboundForward(Contender):
    key = "unbound"
    program = UNBOUND
    note = "`forward-zone` with `forward-no-cache: yes`; a validating resolver's machinery for what only forwards; one thread"

    def write(self, site: Site) -> list[str]:
        return _server(site, _forward_zone(site) + "    forward-no-cache: yes\n")


class UnboundCache(Contender):
    key = "unbound"
    program = UNBOUND
    note = "`forward-zone`, hits of its message cache; one thread"

    def addresses(self, scenario: Scenario) -> Mapping[str, str]:
        return {name: UPSTREAM.addresses[name] for name in scenario.addresses}

    def write(self, site: Site) -> list[str]:
        return _server(site, _forward_zone(site))


def _forward_zone(site: Site) -> str:
    return f'forward-zone:\n    name: "."\n    forward-addr: 127.0.0.1@{site.upstream_port}\n'
