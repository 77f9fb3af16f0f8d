"""The parts of `benchmarks/scale` that need no cluster."""

from __future__ import annotations

import struct

import pytest

from benchmarks import readme
from benchmarks.scale import __main__ as scale
from benchmarks.scale import content, fill, render
from benchmarks.scale.content import Size
from benchmarks.scale.noise import _number
from benchmarks.scale.probe import _is_whole, percentile, question
from benchmarks.scale.results import BUSY, QUIET, read
from benchmarks.scale.upstream import OTHER, answer
from canal_dns.mesh.binding import bind
from canal_dns.mesh.records import Skip
from canal_dns.mesh.resources import parse
from canal_dns.mesh.view import View
from canal_dns.settings import BindingSettings, InternalGateway
from tests.e2e.sites import GATEWAY

SIZE = Size(300, 60, 20)


def test_every_virtual_service_binds_the_service_of_its_number() -> None:
    things = [*content.gateway(), *content.namespaces(SIZE), *content.rest(SIZE)]
    for number, thing in enumerate(things):
        if thing["kind"] == "Service" and thing["spec"].get("clusterIP") != "None":
            thing["spec"].setdefault("clusterIP", f"10.96.{number // 250}.{number % 250}")
    records = [record for record in map(parse, things) if record is not None]
    assert not any(isinstance(record, Skip) for record in records)
    namespace, name = GATEWAY.split("/")
    result = bind(View(records), BindingSettings(gateways=(InternalGateway(namespace, name),)))
    assert {*result.bound} == {SIZE.host_of(number) for number in range(SIZE.virtual_services)}


def test_what_is_restored_is_what_the_server_would_have_made() -> None:
    first, second = content.service(SIZE, 61), content.service(SIZE, 62)
    made = {**first, "spec": {**first["spec"], "type": "ClusterIP"}, "status": {"loadBalancer": {}}}
    made["metadata"] = {**first["metadata"], "uid": "1", "managedFields": [{"manager": "test"}]}
    restored = fill._like(made, second)
    assert restored["spec"] == {**second["spec"], "type": "ClusterIP"}
    assert restored["metadata"] == {**second["metadata"], "uid": "1", "managedFields": [{"manager": "test"}]}
    assert restored["status"] == {"loadBalancer": {}}


def test_a_reply_of_the_api_server_is_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    assert [_is_whole(reply) for reply in (b"HTTP/1.1 200", head, head + b"{", head + b"{}")] == [False, False, False, True]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
    assert not _is_whole(chunked)
    assert _is_whole(chunked + b"0\r\n\r\n")


def test_the_upstream_answers_whatever_it_is_asked() -> None:
    query = b"\x12\x34" + question("svc.ns.svc.cluster.local")
    reply = answer(query + b"\0\0\x29\x04\xd0\0\0\0\0\0\0")
    assert struct.unpack("!6H", reply[:12]) == (0x1234, 0x8480, 1, 1, 0, 0)
    assert reply[12 : len(query)] == query[12:]
    assert reply.endswith(OTHER)


def test_numbers_of_objects_come_from_their_keys() -> None:
    name = content.service_name(17)
    assert _number(f"/registry/services/specs/{SIZE.namespace_of(17)}/{name}") == 17
    assert _number("/registry/services/specs/default/kubernetes") == -1


@pytest.mark.parametrize(("share", "expected"), [(0.5, 100), (0.99, 198), (1.0, 200)])
def test_percentiles_are_figures_that_were_measured(share: float, expected: int) -> None:
    assert percentile(range(1, 201), share) == expected


def test_the_goal_is_judged_by_all_quiet_changes_together() -> None:
    """Two slow ones of 400 are beyond the p99; in their own hundred they would be it. What is busy does not count."""
    results = read(render.HERE / "results" / "scale.json")
    quiet, busy = ([one for one in results.changes if (one.key, one.load) == (render.OURS, load)] for load in (QUIET, BUSY))
    for one in quiet:
        one.seconds[:] = [0.0004] * len(one.seconds)
    for one in busy:
        one.seconds[:] = [1.0] * len(one.seconds)
    quiet[0].seconds[:2] = [1.0, 1.0]
    goals = render.report(results).partition("## Start and memory")[0]
    assert "| event to answer, p50, ms | <= 1 | 0.40 | met |" in goals
    assert "| event to answer, p99, ms | <= 5 | 0.40 | met |" in goals
    assert f"the {sum(len(one.seconds) for one in quiet):,} quiet changes of canal-dns taken together" in goals


def test_the_report_is_that_of_the_committed_measurement() -> None:
    stored = read(render.HERE / "results" / "scale.json")
    assert (render.HERE / "SCALE.md").read_text() == render.report(stored)
    written = readme.FILE.read_text()
    assert written == readme.filled(written, "scale", render.summary(stored)), "run python -m benchmarks.scale.render"


def test_the_command_that_is_told_names_no_folder_of_this_machine() -> None:
    told = scale.repetition(scale._options(["--keep", "/srv/x", "--services", "400", "--virtual-services", "100", "--quick"]))
    assert told == "python -m benchmarks.scale --services 400 --virtual-services 100 --quick"
    assert scale.repetition(scale._options(["--output", "/srv/y"])) == "python -m benchmarks.scale"
