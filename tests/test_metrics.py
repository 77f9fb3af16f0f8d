"""The declared metrics and the plain counters: sums, and the way from a worker and back."""

import json

import pytest

from canal_dns.metrics import BUCKETS, METRICS, Counters, Histogram, Kind, merge

REQUESTS = "canal_dns_requests_total"
READY = "canal_dns_ready"
DURATION = "canal_dns_request_duration_seconds"


def test_a_series_is_kept_and_added_to():
    counters = Counters()
    requests = counters[REQUESTS]
    requests["udp", "A"] += 1
    requests["udp", "A"] += 2
    assert counters[REQUESTS] == {("udp", "A"): 3}


@pytest.mark.parametrize("name", ["canal_dns_nothing_total", DURATION, ""])
def test_only_declared_counters_and_gauges_have_a_series(name):
    with pytest.raises(KeyError):
        Counters()[name]


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (BUCKETS[0], 0), (0.00006, 1), (BUCKETS[-1], len(BUCKETS) - 1), (99.0, len(BUCKETS))]
)
def test_an_observation_falls_into_the_bucket_whose_bound_is_not_below_it(seconds, bucket):
    histogram = Histogram()
    histogram.observe(seconds, times=2)
    assert histogram.counts[bucket] == 2 and sum(histogram.counts) == 2
    assert histogram.total == pytest.approx(2 * seconds)


def test_buckets_rise():
    assert list(BUCKETS) == sorted(set(BUCKETS))


def filled():
    counters = Counters()
    counters[REQUESTS]["udp", "A"] += 5
    counters[READY][()] = 1
    counters.histograms[DURATION]["table",].observe(0.001)
    return counters


def values(counters):
    return (
        {name: dict(series) for name, series in counters.values.items() if series},
        {
            (name, labels): (histogram.counts, histogram.total)
            for name, series in counters.histograms.items()
            for labels, histogram in series.items()
        },
    )


def test_there_and_back_as_json():
    counters = filled()
    assert values(Counters.from_plain(json.loads(json.dumps(counters.to_plain())))) == values(counters)


def test_an_unknown_metric_from_a_worker_is_an_error():
    with pytest.raises(KeyError):
        Counters.from_plain([["canal_dns_nothing_total", [], 1]])


def test_merge_adds_series_by_series():
    other = Counters()
    other[REQUESTS]["udp", "A"] += 1
    other[REQUESTS]["tcp", "A"] += 1
    other.histograms[DURATION]["table",].observe(0.001)
    whole = merge([filled(), other, Counters()])
    assert whole[REQUESTS] == {("udp", "A"): 6, ("tcp", "A"): 1}
    assert whole[READY] == {(): 1}
    histogram = whole.histograms[DURATION]["table",]
    assert sum(histogram.counts) == 2 and histogram.total == pytest.approx(0.002)


def test_merge_leaves_its_parts_alone():
    part = filled()
    before = json.dumps(part.to_plain())
    whole = merge([part, part])
    whole[REQUESTS]["udp", "A"] += 1
    whole.histograms[DURATION]["table",].observe(1.0)
    assert json.dumps(part.to_plain()) == before


def test_of_a_process_that_ended_the_counters_go_on_and_the_gauges_do_not():
    kept = filled().without_gauges()
    assert kept[REQUESTS] == {("udp", "A"): 5}
    assert kept[READY] == {}
    assert sum(kept.histograms[DURATION]["table",].counts) == 1
    kept[READY][()] += 1


def test_every_metric_is_in_exactly_one_place():
    counters = Counters()
    assert set(counters.values) == {metric.name for metric in METRICS if metric.kind is not Kind.HISTOGRAM}
    assert set(counters.histograms) == {metric.name for metric in METRICS if metric.kind is Kind.HISTOGRAM}
