"""The array of counters: its layout, and that it says the same as the series that it stands for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from canal_dns.dns.codes import Rcode, Type, rcode_text, type_label
from canal_dns.dns.responder import Source
from canal_dns.metrics import BUCKETS, Counters
from canal_dns.server import tally
from canal_dns.server.tally import Tally


def counted(one: Tally) -> Counters:
    counters = Counters()
    one.add_to(counters)
    return counters


def test_the_layout_is_what_native_code_has_been_told():
    assert (tally.REQUESTS_UDP, tally.REQUESTS_TCP, tally.RESPONSES) == (0, 257, 514)
    assert (tally.ANSWERS, tally.DURATIONS, tally.DURATION, tally.SIZE) == (538, 542, 17, 640)
    assert tally.REQUESTS_ABOVE + 2 * len(tally.ABOVE) <= tally.SIZE
    assert len(Tally().words) == tally.SIZE


def test_every_response_code_and_source_has_a_place():
    assert max(Rcode) < tally.RCODES
    assert {source.value for source in Source} <= set(tally.SOURCES)


def test_nothing_counted_is_no_series():
    assert counted(Tally()).to_plain() == Counters().to_plain()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("qtype", [0, 1, 28, 99, 131, 255, 256, 257, 258, 65535])
def test_requests_by_transport_and_type(qtype, stream):
    one = Tally()
    for _ in range(3):
        one.request(qtype, stream=stream)
    assert counted(one)["canal_dns_requests_total"] == {("tcp" if stream else "udp", type_label(qtype)): 3}


def test_every_type_with_a_label_keeps_it():
    one = Tally()
    for qtype in Type:
        one.request(qtype, stream=False)
    assert counted(one)["canal_dns_requests_total"] == {("udp", type_label(qtype)): 1 for qtype in Type}


@pytest.mark.parametrize("rcode", [0, 3, 5, 11, 16, 23])
@pytest.mark.parametrize("source", range(len(tally.SOURCES)))
def test_replies_by_source_and_code(source, rcode):
    one = Tally()
    one.reply(source, rcode, 0.0)
    counters, name = counted(one), (tally.SOURCES[source],)
    assert counters["canal_dns_responses_total"] == {(rcode_text(rcode),): 1}
    assert counters["canal_dns_answers_total"] == {name: 1}
    assert list(counters.histograms["canal_dns_request_duration_seconds"]) == [name]


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(-1.0, 0), (0.0, 0), (0.00005, 0), (0.00006, 1), (0.003, 6), (2.0, len(BUCKETS) - 1), (2.5, len(BUCKETS))],
)
def test_durations_stand_in_their_bucket_and_their_sum(seconds, bucket, monkeypatch):
    monkeypatch.setattr(tally.time, "monotonic", lambda: seconds)
    one = Tally()
    one.reply(tally.CACHE, 0, 0.0)
    one.reply(tally.CACHE, 0, 0.0)
    histogram = counted(one).histograms["canal_dns_request_duration_seconds"][("cache",)]
    assert [place for place, count in enumerate(histogram.counts) if count] == [bucket]
    assert histogram.counts[bucket] == 2
    assert histogram.total == pytest.approx(max(0.0, 2 * seconds))


def test_what_is_there_already_is_added_to():
    one = Tally()
    one.request(1, stream=False)
    one.reply(tally.TABLE, 0, 0.0)
    counters = counted(one)
    one.add_to(counters)
    assert counters["canal_dns_requests_total"] == {("udp", "A"): 2}
    assert sum(counters.histograms["canal_dns_request_duration_seconds"][("table",)].counts) == 2
    assert sum(one.words) == counted(one).histograms["canal_dns_request_duration_seconds"][("table",)].total * 1e9 + 4


def test_another_process_counts_and_is_killed_and_nothing_is_lost():
    script = """
import os, signal, sys
from canal_dns.server.tally import Tally
one = Tally(int(sys.argv[1]))
for _ in range(1000):
    one.request(1, stream=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with tally.memory() as descriptor:
        mine = Tally(descriptor)
        done = subprocess.run([sys.executable, "-c", script, str(descriptor)], pass_fds=(descriptor,), check=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert done.returncode == -9
    assert counted(mine)["canal_dns_requests_total"] == {("tcp", "A"): 1000}


@pytest.mark.parametrize("refused", [lambda flags: not flags & 8, lambda flags: flags & 8], ids=["noexec=2", "old kernel"])
def test_there_is_memory_whatever_the_kernel_wants_to_be_told(refused, monkeypatch):
    create = os.memfd_create

    def picky(name, flags=os.MFD_CLOEXEC):
        if refused(flags):
            raise OSError(13 if flags & 8 == 0 else 22, "refused")
        return create(name)

    monkeypatch.setattr(tally.os, "memfd_create", picky)
    with tally.memory() as descriptor:
        assert not os.get_inheritable(descriptor)
        Tally(descriptor).request(1, stream=False)
