"""What clients see when canal-dns stops, falls silent, comes back, or is told of changes: measured, and within bounds.

The bounds are wide (a busy machine must not fail them); what was measured is printed at the end of the run, and
docs/layouts.md says it to users.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e import cluster
from tests.e2e.layouts import A_OLD, B_OLD, A, B, E, F, Layout, Site
from tests.e2e.processes import ADMIN, http, until

pytestmark = pytest.mark.e2e

AT_ONCE = 1.0  # seconds; measured: milliseconds
READ_TIMEOUT = 2.0  # CoreDNS `forward`
SLOW_QUESTIONS = 8  # at most so many meet a silent canal-dns before CoreDNS's probes have found out

BURST = 100  # clients at the same time

Say = Callable[[str], None]
WAYS = [{"tcp": tcp, "v6": v6} for tcp in (False, True) for v6 in (False, True)]


def layouts(*which: Layout) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("site", which, ids=lambda one: one.name, indirect=True, scope="module")


behind_coredns = layouts(A, A_OLD, B, B_OLD, E)
in_front = layouts(F)


@pytest.fixture
def mended(site: Site) -> Iterator[Site]:
    """The layout, whole again after the test, whatever happened."""
    yield site
    for server in (site.canal_dns, site.core_dns):
        if server.running is not None:
            server.resume()
    cluster.write_manifests(site.manifests)
    site.start()


def plain(site: Site) -> str:
    """The bound name's own address: what CoreDNS says by itself."""
    return cluster.BY_NAME[site.bound()].v4


def milliseconds(seconds: list[float]) -> str:
    return f"{min(seconds) * 1000:.1f}-{max(seconds) * 1000:.1f} ms"


def answers_by_itself(site: Site, times: int = 5) -> list[float]:
    """Asks in every way; every reply is CoreDNS's own. The seconds each took."""
    took = []
    for _ in range(times):
        for way in WAYS:
            reply = site.ask(site.bound(), "A", **way)
            assert reply.addresses() == {plain(site)}
            took.append(reply.seconds)
            missing = site.ask("missing." + site.bound().split(".", 1)[1], "A", **way)
            assert missing.rcode == "NXDOMAIN"
            took.append(missing.seconds)
    return took


def time_until_vip(site: Site, seconds: float = 15.0, **way: Any) -> float:
    began = time.monotonic()
    until(lambda: site.has_vip(**way), seconds, "the VIP is back", pause=0.01)
    return time.monotonic() - began


@behind_coredns
def test_stopped_then_coredns_answers_by_itself_at_once(mended: Site, measured: Say) -> None:
    site = mended
    assert site.canal_dns.stop() == 0
    first = site.ask(site.bound(), "A")
    assert first.addresses() == {plain(site)}
    took = answers_by_itself(site)
    assert max(took) < AT_ONCE
    site.canal_dns.start()
    back = time_until_vip(site)
    measured(
        f"{site.layout.name}: canal-dns stopped: first answer after {first.seconds * 1000:.1f} ms, {len(took)} more "
        f"{milliseconds(took)}; VIP {back:.2f} s after it was ready again"
    )


@layouts(A, B)
def test_killed_then_coredns_answers_by_itself_at_once(mended: Site, measured: Say) -> None:
    site = mended
    site.canal_dns.kill()
    took = answers_by_itself(site, times=2)
    assert max(took) < AT_ONCE
    measured(f"{site.layout.name}: canal-dns killed: {len(took)} answers {milliseconds(took)}")


@layouts(A, B)
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_silent_then_a_few_slow_answers_and_fast_ones_after(mended: Site, tcp: bool, measured: Say) -> None:
    site = mended
    site.canal_dns.pause()
    slow: list[float] = []
    while True:
        reply = site.ask(site.bound(), "A", tcp=tcp, timeout=2 * READ_TIMEOUT)
        assert reply.addresses() == {plain(site)}
        if reply.seconds < AT_ONCE:
            break
        slow.append(reply.seconds)
        assert len(slow) <= SLOW_QUESTIONS
    assert all(seconds < READ_TIMEOUT + AT_ONCE for seconds in slow)
    took = answers_by_itself(site)
    assert max(took) < AT_ONCE
    site.canal_dns.resume()
    back = time_until_vip(site, tcp=tcp)
    assert site.canal_dns.alive()
    measured(
        f"{site.layout.name}: canal-dns silent ({'TCP' if tcp else 'UDP'}): {len(slow)} slow answers "
        f"({', '.join(f'{seconds:.2f}' for seconds in slow)} s), then {len(took)} in {milliseconds(took)}; "
        f"VIP {back:.2f} s after it woke"
    )


@layouts(A, B)
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_a_burst_of_clients_has_the_vip_to_the_last(site: Site, tcp: bool) -> None:
    """To canal-dns all clients of CoreDNS are one; `access.peers` keeps its limits per client from them."""
    with ThreadPoolExecutor(BURST) as clients:
        asked = [clients.submit(site.ask, site.bound(), "A", tcp=tcp) for _ in range(3 * BURST)]
        got = [reply.result().addresses() for reply in asked]
    assert got == [{cluster.VIP["A"]}] * len(asked)


@layouts(B, F)
def test_lameduck_answers_until_it_goes(mended: Site) -> None:
    site = mended
    site.canal_dns.signal(signal.SIGTERM)
    until(lambda: http(f"http://{ADMIN}/ready")[0] == 503, 5, "not ready after SIGTERM", pause=0.01)
    assert site.has_vip()
    assert site.has_vip(tcp=True)
    assert site.canal_dns.wait_for_end() == 0


@layouts(A, B, E, F)
def test_a_changed_manifest_changes_the_answer(mended: Site, measured: Say) -> None:
    """Unbound, bound again, another VIP: while it runs, seen by the next client."""
    site = mended
    service = site.bound().removesuffix(f".svc.{cluster.DOMAIN}")
    route = site.manifests / f"route-{service}.yaml"
    took = []

    def address_becomes(expected: str) -> None:
        began = time.monotonic()
        until(lambda: site.ask(site.bound(), "A").addresses() == {expected}, 15, f"{site.bound()} is {expected}", pause=0.02)
        took.append(time.monotonic() - began)

    route.unlink()
    address_becomes(plain(site))
    cluster.write(route, cluster.virtual_service(service, "internalgateway"))
    address_becomes(cluster.VIP["A"])
    cluster.write(route, cluster.virtual_service(service, "internalgateway-v4"))
    address_becomes(cluster.VIP_V4_ONLY["A"])
    measured(f"{site.layout.name}: manifest removed, back, moved: {', '.join(f'{seconds:.2f}' for seconds in took)} s")


@in_front
def test_in_front_and_stopped_clients_are_refused_at_once(mended: Site, measured: Say) -> None:
    site = mended
    assert site.canal_dns.stop() == 0
    began = time.monotonic()
    for way in WAYS:
        with pytest.raises(ConnectionRefusedError):
            site.ask(site.bound(), "A", **way)
    took = (time.monotonic() - began) / len(WAYS)
    assert took < AT_ONCE
    assert site.ask_alone(site.bound(), "A").addresses() == {plain(site)}
    site.canal_dns.start()
    back = time_until_vip(site)
    measured(
        f"F: canal-dns stopped: every client refused after {took * 1000:.1f} ms; VIP {back:.2f} s after it was ready again"
    )


@in_front
def test_in_front_and_silent_clients_wait(mended: Site, measured: Say) -> None:
    site = mended
    site.canal_dns.pause()
    for way in WAYS:
        with pytest.raises(TimeoutError):
            site.ask(site.bound(), "A", timeout=1, **way)
    site.canal_dns.resume()
    back = time_until_vip(site)
    assert site.canal_dns.alive()
    measured(f"F: canal-dns silent: no answer at all; VIP {back:.2f} s after it woke")


@in_front
@pytest.mark.parametrize("fault", ["stopped", "silent"])
def test_in_front_of_a_coredns_that_is_gone(mended: Site, fault: str, measured: Say) -> None:
    """Bound names do not need CoreDNS; the rest is SERVFAIL with an extended error, inside the budget, never silence."""
    site = mended
    if fault == "stopped":
        site.core_dns.kill()
    else:
        site.core_dns.pause()
    other = cluster.fqdn("plain.default")
    took = []
    for way in WAYS:
        assert site.has_vip(**way)
        reply = site.ask(other, "A", dnssec=True, **way)
        assert reply.rcode == "SERVFAIL"
        assert [option.otype.name for option in reply.message.options] == ["EDE"]
        took.append(reply.seconds)
    if fault == "stopped":
        site.core_dns.start()
    else:
        site.core_dns.resume()
    began = time.monotonic()
    until(lambda: site.ask(other, "A").rcode == "NOERROR", 15, "CoreDNS is used again", pause=0.02)
    back = time.monotonic() - began
    measured(f"F: CoreDNS {fault}: SERVFAIL after {milliseconds(took)}; used again {back:.2f} s after it came back")
