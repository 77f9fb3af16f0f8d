"""Token buckets and the limit of a second, with the clock passed in."""

from __future__ import annotations

import pytest

from canal_dns.dns.ratelimit import PerSecond, TokenBuckets


@pytest.mark.parametrize("limit", [0, 1, 100])
def test_no_second_of_a_flood_sees_more_than_the_limit(limit):
    per_second = PerSecond(limit)
    allowed = [0] * 5
    for tick in range(5000):
        allowed[tick // 1000] += per_second.take(50.0 + tick / 1000)
    assert allowed == [limit] * 5


def test_a_quiet_time_is_not_saved_up():
    per_second = PerSecond(2)
    assert per_second.take(0.0)
    assert [per_second.take(60.0) for _ in range(3)] == [True, True, False]


def test_a_bucket_gives_its_rate_and_counts_what_it_refused():
    buckets = TokenBuckets(10, 100)
    assert [buckets.take("a", 0.0) for _ in range(13)] == [0] * 10 + [1, 2, 3]
    assert buckets.take("b", 0.0) == 0
    assert buckets.take("a", 0.1) == 0
    assert buckets.take("a", 0.1) == 4


def test_a_bucket_never_holds_more_than_one_second_s_worth():
    buckets = TokenBuckets(10, 100)
    buckets.take("a", 0.0)
    assert sum(buckets.take("a", 3600.0) == 0 for _ in range(30)) == 10


def test_memory_is_bounded_and_the_quietest_key_is_forgotten():
    buckets = TokenBuckets(1, 3)
    for now, key in enumerate("aabacd"):
        buckets.take(key, now / 1000)
    assert len(buckets) == 3
    assert buckets.take("a", 0.01) > 0, "a was seen after b, so b was forgotten"
    assert buckets.take("b", 0.01) == 0
