"""A Corefile that loops: the stub block sends everything to canal-dns, whose upstream is that same stub block.

The document warns of it; here is what it costs. Bound names must not suffer, canal-dns must not die, and the packets of
a question must come to an end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import cluster
from tests.e2e.layouts import LOOP, Site
from tests.e2e.processes import datagrams, unchanged

pytestmark = pytest.mark.e2e

DATAGRAMS = 60  # of one question, both ways, through both servers


@pytest.fixture(scope="module", params=[0, 2], ids=["one process", "two workers"])
def looping(
    request: pytest.FixtureRequest, binary: Path, resolv_conf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    running = Site(LOOP, binary, tmp_path_factory.mktemp("loop"), resolv_conf, settings={"workers": request.param})
    try:
        running.start()
        yield running
    finally:
        running.end()


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_a_loop_ends_and_bound_names_do_not_notice(
    looping: Site, tcp: bool, v6: bool, measured: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    site = looping
    before, asked = datagrams(), site.core_dns.questions()
    began = time.monotonic()
    try:
        outcome = site.ask(cluster.fqdn("plain.default"), "A", tcp=tcp, v6=v6, timeout=10).rcode
    except TimeoutError:
        outcome = "no answer"
    seconds = time.monotonic() - began
    assert site.has_vip(tcp=tcp, v6=v6)
    sent = unchanged(datagrams, seconds=20) - before
    times = site.core_dns.questions() - asked
    way = request.node.callspec.id
    measured(f"loop ({way}): {outcome} after {seconds:.2f} s, {sent} datagrams, CoreDNS was asked {times:.0f} times")
    assert sent <= DATAGRAMS
    assert site.canal_dns.alive()
    assert site.has_vip(tcp=tcp, v6=v6)
