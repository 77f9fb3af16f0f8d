"""No loop: the packets of a question are counted, and the count is exact.

Over UDP by the kernel (datagrams sent in the namespace); over TCP, where segments say little, by what CoreDNS's server
blocks and canal-dns count as questions. After all of it the figures stand still. canal-dns's own probes for loops, one for
each process every half a minute, are taken off: they are counted by themselves.
"""

from __future__ import annotations

import pytest

from tests.e2e.cluster import fqdn
from tests.e2e.layouts import Site
from tests.e2e.processes import datagrams, unchanged, until

pytestmark = pytest.mark.e2e

QUESTIONS = [
    (fqdn("cart.shop"), "A", True),
    (fqdn("cart.shop"), "AAAA", True),
    (fqdn("cart.shop"), "HTTPS", True),
    (fqdn("cart.shop"), "TXT", False),
    (fqdn("stock.shop"), "A", False),
    (fqdn("stock.shop"), "AAAA", False),
    (fqdn("stock.shop"), "MX", False),
    ("_http._tcp." + fqdn("stock.shop"), "SRV", False),
    ("_http._tcp." + fqdn("cart.shop"), "SRV", False),
    (fqdn("alias.shop"), "A", False),
    (fqdn("missing.shop"), "A", False),
    (fqdn("missing.shop"), "AAAA", False),
]
"""Name, type, answered by canal-dns itself. All of them pass through canal-dns in every layout."""


OF_PROBE = 2
"""Datagrams of a probe for loops."""


def probes(site: Site) -> float:
    return site.canal_dns.series("canal_dns_loop_probes_total")[0]


def others(site: Site) -> float:
    """Datagrams without those of probes."""
    return datagrams() - OF_PROBE * probes(site)


@pytest.fixture(autouse=True)
def quiet(site: Site) -> None:
    """CoreDNS's own `loop` probe (HINFO, counted as "other"), some seconds after the start, is over: nobody else talks."""
    until(lambda: site.core_dns.questions(type="other") >= 1, 30, "the probe of the `loop` plugin")
    unchanged(lambda: others(site), polls=3)


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_datagrams_of_a_question_over_udp(site: Site, v6: bool) -> None:
    for name, kind, own in QUESTIONS:
        before = unchanged(lambda: others(site), polls=3, pause=0.01)
        site.ask(name, kind, v6=v6)
        sent = unchanged(lambda: others(site), polls=3, pause=0.01) - before
        assert sent == (site.layout.datagrams_bound if own else site.layout.datagrams_forwarded), f"{name} {kind}"
    unchanged(lambda: others(site))


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_each_server_is_asked_once_over_tcp(site: Site, v6: bool) -> None:
    def questions() -> tuple[float, float, float]:
        canal = site.canal_dns.series("canal_dns_requests_total", "canal_dns_forward_requests_total")
        return site.core_dns.questions() - probes(site), *canal

    in_front = site.layout.name == "F"
    before = unchanged(questions, polls=3, pause=0.01)
    for name, kind, own in QUESTIONS:
        site.ask(name, kind, tcp=True, v6=v6)
        after = unchanged(questions, polls=3, pause=0.01)
        core, canal, forwarded = (now - then for now, then in zip(after, before, strict=True))
        assert (canal, forwarded) == (1, 0 if own else 1), f"{name} {kind}"
        assert core == (0 if in_front else 1) + forwarded, f"{name} {kind}"
        before = after
    assert unchanged(questions) == before


def test_nothing_is_said_when_nobody_asks(site: Site) -> None:
    """Health probes start only after an error, so an idle chain is silent but for probes for loops."""
    before = unchanged(lambda: others(site), polls=3)
    assert unchanged(lambda: others(site), polls=15) == before


def test_no_probe_comes_back(site: Site) -> None:
    """Every process that forwards has probed, at its start and since, and no layout of the document is taken for a loop."""
    until(lambda: probes(site) >= 2 * (site.settings["workers"] or 1), 45, "every process has probed")
    unchanged(lambda: others(site), polls=3)
    assert site.canal_dns.series("canal_dns_loops_total", "canal_dns_forward_upstream_looping") == (0, 0)
