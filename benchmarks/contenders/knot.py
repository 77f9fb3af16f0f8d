"""Knot DNS: an authoritative server, and the yardstick; also the upstream of everybody who forwards."""

from __future__ import annotations

from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.scenarios import DOMAIN, zone_file

KNOT = Program("knotd", "-V", "Debian package knot")


class Knot(Contender):
    key = "knot"
    program = KNOT
    note = "authoritative, an A record for each name in a zone; one UDP worker, one TCP worker"

    def write(self, site: Site) -> list[str]:
        site.write("zone", zone_file(site.scenario.addresses))
        config = site.write(
            "knot.conf",
            f"""\
server:
    rundir: "{site.folder}"
    listen: 127.0.0.1@{site.port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: "{site.folder}"
template:
  - id: default
    storage: "{site.folder}"
    journal-content: none
    zonefile-sync: -1
zone:
  - domain: {DOMAIN}
    file: zone
""",
        )
        return [str(site.binary), "-c", str(config)]
