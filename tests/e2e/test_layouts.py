"""Every layout, every question: bound names have the VIP, everything else is what CoreDNS alone says.

Compared with CoreDNS asked past canal-dns (`Layout.alone`), over the same transport and address family:
- the octets of the answer section, TTLs and compression included. CoreDNS counts TTLs down and turns the order of
  several addresses round, so it is asked before and after, until both agree, and where a name has several addresses
  the records are compared instead;
- authority and additional sections record by record, without OPT; the rcode and the flags, but for RA: whether
  recursion is available is what each server says of itself, and canal-dns always says yes.
Where a name does not pass through canal-dns in a layout, another cache of CoreDNS may answer: then TTLs are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import dns.flags
import pytest

from tests.e2e import cluster
from tests.e2e.ask import Answer, Record, records
from tests.e2e.cluster import BOUND, fqdn
from tests.e2e.layouts import Site

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True)
class Question:
    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name.removesuffix('.svc.cluster.local')}-{self.kind}"


BOUND_QUESTIONS = [
    Question(fqdn("helloworld.default"), "A"),
    Question(fqdn("helloworld.default"), "AAAA"),
    Question(fqdn("HelloWorld.Default"), "A"),
    Question(fqdn("cart.shop"), "A"),
    Question(fqdn("cart.shop"), "AAAA"),
    Question(fqdn("legacy.default"), "A"),
]

NODATA_QUESTIONS = [
    Question(fqdn("legacy.default"), "AAAA"),  # its gateway has no IPv6 address, though the Service has one
    Question(fqdn("helloworld.default"), "HTTPS"),
    Question(fqdn("cart.shop"), "HTTPS"),
]

TAIL_QUESTIONS = [
    Question(fqdn("alias.default"), "A"),
    Question(fqdn("alias.default"), "AAAA"),
    Question(fqdn("alias.shop"), "A"),
    Question(fqdn("alias.shop"), "AAAA"),
    Question(fqdn("far.shop"), "A"),
]

UNCHANGED_QUESTIONS = [
    Question(fqdn("plain.default"), "A"),
    Question(fqdn("plain.default"), "AAAA"),
    Question(fqdn("stock.shop"), "A"),
    Question(fqdn("stock.shop"), "AAAA"),
    Question(fqdn("single.default"), "AAAA"),  # NODATA
    Question("_http._tcp." + fqdn("plain.default"), "SRV"),
    Question("_http._tcp." + fqdn("stock.shop"), "SRV"),
    Question("_http._tcp." + fqdn("db.default"), "SRV"),
    Question(fqdn("helloworld.default"), "TXT"),
    Question(fqdn("helloworld.default"), "MX"),  # NODATA
    Question(fqdn("db.default"), "A"),  # headless: two addresses
    Question("pod-0." + fqdn("db.default"), "A"),
    Question("_tcp." + fqdn("helloworld.default"), "A"),  # empty non-terminal
    Question("default.svc.cluster.local", "A"),  # empty non-terminal
    Question("cluster.local", "SOA"),
    Question(fqdn("missing.default"), "A"),
    Question(fqdn("missing.shop"), "AAAA"),
    Question("www.example.org." + fqdn("default"), "A"),  # what a search list makes of an external name
    Question(fqdn("alias-plain.default"), "A"),
    Question(fqdn("outside.default"), "A"),  # ExternalName that leads out of the cluster
    Question("1.1.96.10.in-addr.arpa", "PTR"),
    Question("1.0.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa", "PTR"),
    Question("www.example.org", "A"),
    Question("www.example.org", "AAAA"),
    Question("nowhere.example.org", "A"),
]

each_transport = pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
each_family = pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])


def assert_unchanged(site: Site, question: Question, tcp: bool, v6: bool) -> Answer:
    """Raises AssertionError unless the chain's reply is CoreDNS's own; the reply."""
    for _ in range(20):
        before = site.ask_alone(question.name, question.kind, tcp=tcp, v6=v6)
        reply = site.ask(question.name, question.kind, tcp=tcp, v6=v6)
        after = site.ask_alone(question.name, question.kind, tcp=tcp, v6=v6)
        if all(before.octets(section) == after.octets(section) for section in ("answer", "authority")):
            break
    else:
        raise AssertionError(f"CoreDNS never says the same twice: {after.message}")
    assert reply.rcode == after.rcode
    assert {*reply.flags.split()} - {"RA"} == {*after.flags.split()} - {"RA"}
    assert reply.octets("question") == after.octets("question")
    passed = site.layout.passes(question.name)
    for section in ("answer", "authority", "additional"):  # dnspython keeps OPT apart from the additional section
        got, expected = (records(getattr(one.message, section)) for one in (reply, after))
        assert [without_ttl(record) for record in got] == [without_ttl(record) for record in expected]
        assert got == expected or not passed
    one_each = len(after.message.answer) == len(records(after.message.answer))
    if passed and one_each:
        assert reply.octets("answer") == after.octets("answer")
    return reply


def without_ttl(record: Record) -> tuple[str, str, str]:
    owner, kind, _, data = record
    return owner, kind, data


@each_family
@each_transport
@pytest.mark.parametrize("question", BOUND_QUESTIONS, ids=str)
def test_bound_name_has_the_vip(site: Site, question: Question, tcp: bool, v6: bool) -> None:
    if not site.layout.passes(question.name):
        assert_unchanged(site, question, tcp, v6)
        return
    reply = site.ask(question.name, question.kind, tcp=tcp, v6=v6)
    assert reply.rcode == "NOERROR"
    [(owner, kind, ttl, address)] = records(reply.message.answer)
    assert (owner, kind, address) == (question.name.lower() + ".", question.kind, BOUND[question.name.lower()][question.kind])
    assert ttl <= 5
    assert reply.message.edns == -1, "the client sent no OPT, so it gets none"


@each_family
@each_transport
@pytest.mark.parametrize("question", NODATA_QUESTIONS, ids=str)
def test_what_a_bound_name_does_not_have_is_nodata(site: Site, question: Question, tcp: bool, v6: bool) -> None:
    if not site.layout.passes(question.name):
        assert_unchanged(site, question, tcp, v6)
        return
    reply = site.ask(question.name, question.kind, tcp=tcp, v6=v6)
    assert (reply.rcode, reply.message.answer) == ("NOERROR", [])
    assert [kind for _, kind, _, _ in records(reply.message.authority)] == ["SOA"]


@each_family
@each_transport
@pytest.mark.parametrize("question", TAIL_QUESTIONS, ids=str)
def test_cname_whose_tail_is_bound_ends_at_the_vip(site: Site, question: Question, tcp: bool, v6: bool) -> None:
    if not site.layout.passes(question.name):
        assert_unchanged(site, question, tcp, v6)
        return
    reply = site.ask(question.name, question.kind, tcp=tcp, v6=v6)
    target = cluster.EXTERNAL_NAMES[question.name]
    found = [(owner, kind, data) for owner, kind, _, data in records(reply.message.answer)]
    assert sorted(found) == sorted(
        [(f"{question.name}.", "CNAME", f"{target}."), (f"{target}.", question.kind, BOUND[target][question.kind])]
    )


@each_family
@each_transport
@pytest.mark.parametrize("question", UNCHANGED_QUESTIONS, ids=str)
def test_everything_else_is_what_coredns_says(site: Site, question: Question, tcp: bool, v6: bool) -> None:
    assert_unchanged(site, question, tcp, v6)


@each_family
@each_transport
@pytest.mark.parametrize("service", ["helloworld.default", "cart.shop"])
def test_srv_of_a_bound_name_does_not_leak_its_own_address(site: Site, service: str, tcp: bool, v6: bool) -> None:
    name = fqdn(service)
    question = Question(f"_http._tcp.{name}", "SRV")
    if not site.layout.passes(name):
        assert_unchanged(site, question, tcp, v6)
        return
    alone = site.ask_alone(question.name, "SRV", tcp=tcp, v6=v6)
    assert {record[3] for record in records(alone.message.additional)} == {*cluster.BY_NAME[name].addresses.values()}
    reply = site.ask(question.name, "SRV", tcp=tcp, v6=v6)
    assert records(reply.message.answer) == records(alone.message.answer)
    assert {record[3] for record in records(reply.message.additional)} <= {*BOUND[name].values()}


@each_family
def test_a_reply_that_is_too_long_is_truncated_and_whole_over_tcp(site: Site, v6: bool) -> None:
    question = Question(fqdn("big.default"), "TXT")
    assert "TC" in site.ask(question.name, question.kind, v6=v6).flags.split()
    whole = assert_unchanged(site, question, tcp=True, v6=v6)
    assert len(whole.wire) > 1232


@each_family
@each_transport
def test_a_client_that_sets_do(site: Site, tcp: bool, v6: bool) -> None:
    """With the view of B, B-old and E such a client bypasses canal-dns; elsewhere it has the VIP, and DO comes back."""
    name = site.bound()
    reply = site.ask(name, "A", tcp=tcp, v6=v6, dnssec=True)
    bypassed = site.layout.name in ("B", "B-old", "E")
    assert reply.addresses() == {cluster.BY_NAME[name].v4 if bypassed else BOUND[name]["A"]}
    assert reply.message.edns == 0
    assert "DO" in dns.flags.edns_to_text(reply.message.ednsflags).split()
