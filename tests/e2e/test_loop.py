"""Corefiles that loop: what CoreDNS sends to canal-dns comes back to it, since canal-dns asks the very block it came from.

canal-dns finds out by probes that come back, and answers SERVFAIL at once from then on: CoreDNS falls back where it can, and
what cannot be answered is not waited for. Bound names must not suffer, canal-dns must not die, and the packets of a question
must come to an end. Once the Corefile is mended, canal-dns is part of the chain again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import cluster
from tests.e2e.ask import ask
from tests.e2e.layouts import LOOP, B, Layout, Site, corefile
from tests.e2e.processes import datagrams, unchanged, until

pytestmark = pytest.mark.e2e

PLAIN, NARROW = cluster.fqdn("plain.default"), cluster.fqdn("stock.shop")
FOUND = 15.0
"""Seconds after the start in which a loop is known, asked for or not: probes that went before CoreDNS was there come again."""
DATAGRAMS = 20
"""Of one question before that, both ways, through all servers (AMP-06)."""
BOUND, OF_PROBE = 4, 4
"""Of a question for a bound name, and of a probe."""
QUICK = 0.5
"""Seconds for an answer or a SERVFAIL, once it is known."""


@dataclass(frozen=True, slots=True)
class Case:
    """A Corefile that loops. `datagrams`: of one question, once it is known; `change`: to the Corefile of the document."""

    layout: Layout
    datagrams: int
    answered: bool = False
    """CoreDNS has a way back that leads elsewhere."""
    question: str = PLAIN
    settings: dict[str, Any] = field(default_factory=dict)
    change: tuple[str, str] = ("", "")


ONE_ZONE = Layout("anti-pattern", LOOP.corefile, "B", zone=cluster.fqdn("shop"))
CASES = {
    "the stub block alone": Case(LOOP, 4),
    "a narrow zone alone": Case(ONE_ZONE, 4, question=NARROW, change=("cluster.local:53 {", "shop.svc.cluster.local:53 {")),
    "layout A asked at port 53": Case(Layout("A-at-53", ("A",), "B", alone=cluster.PLAIN_COREDNS), 6, answered=True),
    "layout B without the DO bit": Case(B, 6, answered=True, settings={"upstreamSentinel": "none"}),
}


@pytest.fixture(
    scope="module", params=[(case, workers) for case in CASES for workers in (0, 2)], ids=lambda one: f"{one[0]}, {one[1]}"
)
def looping(
    request: pytest.FixtureRequest, binary: Path, resolv_conf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Case, Site]]:
    name, workers = request.param
    case = CASES[name]
    site = Site(
        case.layout, binary, tmp_path_factory.mktemp("loop"), resolv_conf, settings={"workers": workers, **case.settings}
    )
    write(site, (site.folder / "Corefile").read_text().replace(*case.change, 1))
    try:
        site.start()
        yield case, site
    finally:
        site.end()


def write(site: Site, text: str) -> None:
    """Another Corefile, of which CoreDNS learns soon."""
    draft = site.folder / "Corefile.new"
    draft.write_text(text.replace("    reload\n", "    reload 2s 1s\n"))
    draft.replace(site.folder / "Corefile")


def processes(site: Site) -> int:
    """Those that forward."""
    return site.settings["workers"] or 1


def known(site: Site) -> bool:
    """Every process that forwards knows of the loop."""
    return site.canal_dns.series("canal_dns_forward_upstream_looping") == (processes(site),)


def outcome(site: Site, name: str, **how: Any) -> tuple[str, float]:
    """Response code, or the first address, and seconds."""
    began = time.monotonic()
    try:
        answer = site.ask(name, "A", timeout=10, **how)
        said = min(answer.addresses(), default=answer.rcode)
    except TimeoutError:
        said = "no answer"
    return said, time.monotonic() - began


def test_the_first_question_comes_to_an_end(
    looping: tuple[Case, Site], measured: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    case, site = looping
    probes, before = site.canal_dns.series("canal_dns_loop_probes_total"), datagrams()
    said, seconds = outcome(site, case.question)
    assert site.has_vip()
    sent = unchanged(datagrams, seconds=20) - before
    probed = site.canal_dns.series("canal_dns_loop_probes_total")[0] - probes[0]
    own = sent - BOUND - OF_PROBE * probed
    measured(
        f"loop ({request.node.callspec.id}): the first question: {said} after {seconds:.2f} s, {own:.0f} datagrams, and "
        f"{probed:.0f} probes"
    )
    assert own <= DATAGRAMS
    assert said == (cluster.BY_NAME[case.question].v4 if case.answered else "SERVFAIL")
    assert site.canal_dns.alive()


def test_it_is_found_told_and_no_reason_to_be_unready(looping: tuple[Case, Site]) -> None:
    case, site = looping
    if case.question == NARROW:
        # Only who asks there can know: a worker that was not asked has nothing to tell.
        until(lambda: site.canal_dns.series("canal_dns_forward_upstream_looping")[0] >= 1, FOUND, "a worker knows of the loop")
    else:
        until(lambda: known(site), FOUND, "every worker knows of the loop")
    assert site.canal_dns.ready()[0] == 200
    assert site.canal_dns.series("canal_dns_loops_total")[0] >= 1
    zone = "shop.svc.cluster.local." if case.question == NARROW else "cluster.local."
    until(lambda: f"it is not asked for names in {zone}" in site.canal_dns.log.read_text(), 5, "the log names the zone")


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_then_a_question_costs_no_time_and_few_packets(
    looping: tuple[Case, Site], tcp: bool, v6: bool, measured: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    case, site = looping
    expected = cluster.BY_NAME[case.question].v4 if case.answered else "SERVFAIL"
    # Over TCP there are datagrams only on a way back that CoreDNS takes by UDP.
    most = case.datagrams - 2 if tcp else case.datagrams
    counts = []
    for _ in range(6):
        # Probes fall into some of these, and of the narrow zone each worker has to find out for itself.
        before = datagrams()
        said, seconds = outcome(site, case.question, tcp=tcp, v6=v6)
        counts.append(unchanged(datagrams, polls=3, pause=0.01) - before)
        assert said == expected
        if counts[-1] <= most:
            break
    measured(f"loop ({request.node.callspec.id}): known: {said} after {seconds * 1e3:.0f} ms, {counts[-1]} datagrams")
    assert seconds < QUICK
    assert counts[-1] <= most, counts
    assert site.has_vip(tcp=tcp, v6=v6)
    assert site.canal_dns.alive()


def test_what_does_not_loop_is_answered(looping: tuple[Case, Site]) -> None:
    """A narrow zone alone is kept from the upstream: asked directly, canal-dns knows the rest of the cluster."""
    if looping[0].question != NARROW:
        pytest.skip("all of the cluster domain loops here")
    for _ in range(10):
        assert ask(cluster.CANAL_DNS[0], PLAIN, "A").addresses() == {cluster.BY_NAME[PLAIN].v4}


def test_a_mended_corefile_is_taken_up(
    looping: tuple[Case, Site], resolv_conf: Path, measured: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    case, site = looping
    if case.layout.alone != B.alone or case.settings:
        pytest.skip("the Corefile is not what loops here")
    began = time.monotonic()
    write(site, corefile(B, resolv_conf, site.source()))

    def mended() -> bool:
        said = outcome(site, case.question)[0]
        return said == cluster.BY_NAME[case.question].v4 and site.canal_dns.series("canal_dns_forward_upstream_looping") == (0,)

    until(mended, 60, "CoreDNS and canal-dns answer again")
    measured(f"loop ({request.node.callspec.id}): mended, and answered {time.monotonic() - began:.1f} s later")
    assert "does not send our own questions back to us any more" in site.canal_dns.log.read_text()
    assert site.has_vip()
