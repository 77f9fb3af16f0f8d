"""Every metric, once: name, kind, help and labels; and the plain counters that hold their values.

Rules of this file:
- names follow CoreDNS's; labels are bounded sets (rcode, proto, reason, upstream), never a name or a client address;
- a process counts in a `Counters` of its own, plain dictionaries of numbers: no lock, no library on the packet path;
- `Counters` of several processes are summed by `merge`; `admin` alone turns them into Prometheus text.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

Labels = tuple[str, ...]


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of time series."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Upper bounds of every latency histogram, in seconds: from one look-up in memory to the forward budget."""

_COUNTER, _GAUGE, _HISTOGRAM = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

METRICS = (
    Metric("canal_dns_requests_total", _COUNTER, "Queries received, by transport and type.", ("proto", "type")),
    Metric("canal_dns_responses_total", _COUNTER, "Replies sent, by response code.", ("rcode",)),
    Metric("canal_dns_answers_total", _COUNTER, "Replies sent, by origin: table, cache, upstream or local.", ("source",)),
    Metric("canal_dns_exempt_requests_total", _COUNTER, "Queries of gateway pods, forwarded as if nothing were bound."),
    Metric("canal_dns_dropped_total", _COUNTER, "Packets dropped without a reply, by reason.", ("reason",)),
    Metric(
        "canal_dns_truncated_total",
        _COUNTER,
        "Replies over UDP that only say to come by TCP: size, longer than this client may get; rate, above its limit.",
        ("reason",),
    ),
    Metric("canal_dns_request_duration_seconds", _HISTOGRAM, "Seconds from query to reply, by source.", ("source",)),
    Metric("canal_dns_send_errors_total", _COUNTER, "Replies that the kernel did not take, by error.", ("error",)),
    Metric("canal_dns_tcp_connections", _GAUGE, "Open client TCP connections."),
    Metric("canal_dns_tcp_closed_total", _COUNTER, "Client TCP connections closed by the server, by reason.", ("reason",)),
    Metric(
        "canal_dns_tcp_accept_errors_total",
        _COUNTER,
        "Client TCP connections that could not be accepted, by error.",
        ("error",),
    ),
    Metric(
        "canal_dns_udp_receive_dropped_total", _COUNTER, "Datagrams that the kernel dropped because a socket's buffer was full."
    ),
    Metric("canal_dns_forward_requests_total", _COUNTER, "Queries sent upstream.", ("to", "proto")),
    Metric("canal_dns_forward_responses_total", _COUNTER, "Replies accepted from upstreams.", ("to", "rcode")),
    Metric("canal_dns_forward_failures_total", _COUNTER, "Tries that an upstream did not answer, by reason.", ("to", "reason")),
    Metric("canal_dns_forward_ignored_replies_total", _COUNTER, "Packets from upstreams that match no query.", ("reason",)),
    Metric(
        "canal_dns_forward_rejected_total",
        _COUNTER,
        "Queries not forwarded, or given up for newer ones (displaced), by reason.",
        ("reason",),
    ),
    Metric("canal_dns_forward_coalesced_total", _COUNTER, "Queries that joined an identical one on its way."),
    Metric("canal_dns_forward_rewritten_total", _COUNTER, "Upstream replies whose addresses of bound names were replaced."),
    Metric("canal_dns_forward_in_flight", _GAUGE, "Upstream queries waiting for a reply."),
    Metric("canal_dns_forward_upstream_up", _GAUGE, "1 while an upstream answers, in how many processes.", ("to",)),
    Metric(
        "canal_dns_forward_upstream_looping",
        _GAUGE,
        "1 while an upstream sends our own queries back to us, in how many processes.",
        ("to",),
    ),
    Metric("canal_dns_forward_request_duration_seconds", _HISTOGRAM, "Seconds that an upstream took to answer.", ("to",)),
    Metric("canal_dns_cache_entries", _GAUGE, "Replies in the cache: success has an answer, denial has none.", ("type",)),
    Metric("canal_dns_cache_evictions_total", _COUNTER, "Replies that left the cache before their time, for want of room."),
    Metric(
        "canal_dns_cache_prefetch_total",
        _COUNTER,
        "Queries of our own for what is in the cache, asked for and about to expire.",
    ),
    Metric(
        "canal_dns_cache_served_stale_total",
        _COUNTER,
        "Replies from the cache after they had expired, all upstreams being down.",
    ),
    Metric("canal_dns_loops_total", _COUNTER, "Queries of our own, probes for loops among them, that came back to us."),
    Metric("canal_dns_loop_probes_total", _COUNTER, "Probes sent to find out whether an upstream leads back to us.", ("to",)),
    Metric("canal_dns_worker_restarts_total", _COUNTER, "Worker processes started again, by cause.", ("cause",)),
    Metric("canal_dns_workers", _GAUGE, "Worker processes that answer; 0: everything runs in one process."),
    Metric("canal_dns_table_generation", _GAUGE, "Generation of the answer table that was published last."),
    Metric("canal_dns_table_publish_duration_seconds", _HISTOGRAM, "Seconds from an object's arrival to the published table."),
    Metric("canal_dns_table_last_change_timestamp_seconds", _GAUGE, "When the answer table changed last."),
    Metric("canal_dns_rule_failures_total", _COUNTER, "Faults of ours in the rule: answers stayed what they were."),
    Metric("canal_dns_bound_names", _GAUGE, "Names that answer with a VIP."),
    Metric("canal_dns_skipped_names", _GAUGE, "Names that are not bound, by reason.", ("reason",)),
    Metric(
        "canal_dns_problems",
        _GAUGE,
        "Objects that count for nothing, or not for all they say, by reason; Conflicted: another gateway has the name.",
        ("reason",),
    ),
    Metric(
        "canal_dns_event_to_answer_seconds",
        _HISTOGRAM,
        "Seconds from an event's arrival to the table that answers by it, in every process that answers.",
    ),
    Metric("canal_dns_source_synced", _GAUGE, "1 once all objects of a kind were read.", ("kind",)),
    Metric("canal_dns_source_available", _GAUGE, "0 while a kind may not be read (RBAC) or is not installed.", ("kind",)),
    Metric("canal_dns_source_objects", _GAUGE, "Objects read, by kind.", ("kind",)),
    Metric(
        "canal_dns_source_last_event_timestamp_seconds",
        _GAUGE,
        "When the API server was heard last on a kind: a list, an event or a bookmark.",
        ("kind",),
    ),
    Metric("canal_dns_source_events_total", _COUNTER, "Events of watches.", ("kind", "type")),
    Metric("canal_dns_source_relists_total", _COUNTER, "Lists after the first one, by cause.", ("kind", "reason")),
    Metric(
        "canal_dns_source_errors_total",
        _COUNTER,
        "Requests to the API server that failed: its status, or config, connect, timeout, cut, decode.",
        ("kind", "code"),
    ),
    Metric("canal_dns_source_broken_files", _GAUGE, "Files whose last good objects are kept because they cannot be read now."),
    Metric("canal_dns_source_skipped_objects_total", _COUNTER, "Objects that were not understood.", ("kind", "reason")),
    Metric("canal_dns_snapshot_writes_total", _COUNTER, "Tables saved on disk, by result.", ("result",)),
    Metric("canal_dns_snapshot_last_write_timestamp_seconds", _GAUGE, "When the table was saved last."),
    Metric("canal_dns_snapshot_in_use", _GAUGE, "1 while answers come from the saved table, before the first sync."),
    Metric("canal_dns_log_dropped_total", _COUNTER, "Log lines lost, since nobody read them in time or nothing took them."),
    Metric("canal_dns_config_reloads_total", _COUNTER, "Reloads of the configuration, by result.", ("result",)),
    Metric("canal_dns_config_last_reload_success_timestamp_seconds", _GAUGE, "When the configuration was loaded last."),
    Metric("canal_dns_ready", _GAUGE, "1 while /ready says 200."),
    Metric("canal_dns_build_info", _GAUGE, "1, with what runs here.", ("version", "python", "loop", "batch", "forwarding")),
)

BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in METRICS}


class Histogram:
    """Counts per bucket of BUCKETS (the last one is +Inf) and the sum in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self, counts: list[int] | None = None, total: float = 0.0) -> None:
        self.counts = counts or [0] * (len(BUCKETS) + 1)
        self.total = total

    def observe(self, seconds: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += times
        self.total += seconds * times

    def add(self, other: Histogram) -> None:
        self.counts = [mine + others for mine, others in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


class Counters:
    """The values of one process: `values[metric][labels]` for counters and gauges, `histograms[metric][labels]`."""

    __slots__ = ("histograms", "values")

    def __init__(self) -> None:
        self.values: dict[str, defaultdict[Labels, float]] = {
            metric.name: defaultdict(int) for metric in METRICS if metric.kind is not _HISTOGRAM
        }
        # A counter that appears only with its first event hides that event from `increase()`.
        for metric in METRICS:
            if metric.kind is _COUNTER and not metric.labels:
                self.values[metric.name][()] = 0
        self.histograms: dict[str, defaultdict[Labels, Histogram]] = {
            metric.name: defaultdict(Histogram) for metric in METRICS if metric.kind is _HISTOGRAM
        }

    def __getitem__(self, name: str) -> defaultdict[Labels, float]:
        """The series of a counter or gauge; keep it and add to it: `requests[("udp", "A")] += 1`. KeyError: no such metric."""
        return self.values[name]

    def to_plain(self) -> list[list[Any]]:
        """Rows [metric, labels, value] or [metric, labels, counts, total]: what travels from a worker."""
        rows: list[list[Any]] = []
        for name, series in self.values.items():
            rows.extend([name, list(labels), value] for labels, value in series.items())
        for name, histograms in self.histograms.items():
            rows.extend([name, list(labels), list(one.counts), one.total] for labels, one in histograms.items())
        return rows

    @classmethod
    def from_plain(cls, rows: Iterable[list[Any]]) -> Counters:
        """The inverse of `to_plain`. Raises KeyError for an unknown metric."""
        counters = cls()
        for row in rows:
            labels: Labels = tuple(row[1])
            if len(row) == 3:
                counters.values[str(row[0])][labels] = row[2]
            else:
                counters.histograms[str(row[0])][labels] = Histogram(list(row[2]), row[3])
        return counters

    def without_gauges(self) -> Counters:
        """What remains of a process that ended: its counters go on, its gauges do not."""
        kept = Counters()
        kept.histograms = self.histograms
        kept.values = {
            name: series if BY_NAME[name].kind is _COUNTER else defaultdict(int) for name, series in self.values.items()
        }
        return kept


def merge(parts: Iterable[Counters]) -> Counters:
    """The sum, series by series."""
    whole = Counters()
    for part in parts:
        for name, series in part.values.items():
            into = whole.values[name]
            for labels, value in series.items():
                into[labels] += value
        for name, histograms in part.histograms.items():
            for labels, histogram in histograms.items():
                whole.histograms[name][labels].add(histogram)
    return whole
