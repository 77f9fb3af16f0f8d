"""NSD: an authoritative server; the upstream of everybody who forwards where Knot is missing."""

from __future__ import annotations

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import DOMAIN, zone_file

NSD = Program("nsd", "-v", "Debian package nsd")


class Nsd(Contender):
    key = "nsd"
    program = NSD
    note = "authoritative, an A record for each name in a zone; one server process"

    def write(self, site: Site) -> list[str]:
        site.write("zone", zone_file(site.scenario.addresses))
        config = site.write(
            "nsd.conf",
            f"""\
server:
    server-count: 1
    tcp-count: 100
    tcp-query-count: 0
    ip-address: 127.0.0.1@{site.port}
    username: "{site.user}"
    chroot: ""
    zonesdir: "{site.folder}"
    database: ""
    logfile: "{site.folder}/log"
    pidfile: "{site.folder}/pid"
    xfrdfile: "{site.folder}/xfrd"
    xfrdir: "{site.folder}"
    zonelistfile: "{site.folder}/zones"
remote-control:
    control-enable: no
zone:
    name: {DOMAIN}
    zonefile: zone
""",
        )
        return [str(site.binary), "-d", "-c", str(config)]
