"""The time series of each upstream, looked up once: their labels are made when an upstream is first used."""

from __future__ import annotations

from canal_dns.dns.upstreams import Upstream
from canal_dns.dns.wire import rcode_text
from canal_dns.metrics import Counters


class Series:
    """Labels of the counters of one upstream, and its histogram."""

    __slots__ = ("duration", "rcodes", "tcp", "udp")

    def __init__(self, upstream: Upstream, counters: Counters) -> None:
        self.udp = (upstream.text, "udp")
        self.tcp = (upstream.text, "tcp")
        self.rcodes = [(upstream.text, rcode_text(rcode)) for rcode in range(16)]
        self.duration = counters.histograms["canal_dns_forward_request_duration_seconds"][(upstream.text,)]


class SeriesOf(dict[Upstream, Series]):
    """By upstream; replies may still come from one that is no longer configured."""

    def __init__(self, counters: Counters) -> None:
        super().__init__()
        self._counters = counters

    def __missing__(self, upstream: Upstream) -> Series:
        series = self[upstream] = Series(upstream, self._counters)
        return series
