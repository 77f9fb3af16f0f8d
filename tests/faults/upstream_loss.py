"""A network that loses, delays, reorders and doubles packets on the way to the upstreams and back."""

from __future__ import annotations

from tests.faults.bench import Bench
from tests.faults.lossy import Lossy, Weather
from tests.faults.rows import Outcome, row
from tests.faults.upstreams import numbered, outcome, own_address, took

STORM = Weather(loss=0.05, delay=0.001, jitter=0.004, reorder=0.02, duplicate=0.01)


@row(
    "U22",
    "loss 5 %, reorder, jitter",
    "success >= 99.99 % at 5 % loss each way with 2 upstreams; p99 <= 2.2 s",
)
async def storm(bench: Bench) -> Outcome:
    upstreams = [await bench.upstream(own_address, keep=False) for _ in range(2)]
    ways = [await bench.enter(Lossy(one.endpoint, STORM, seed=seed)) for seed, one in enumerate(upstreams)]
    server = await bench.server(*ways, access={"peers": ["127.0.0.0/8"]})
    total, rate = (100_000, 700) if bench.long else (4000, 500)
    stream = await took(bench, server, numbered(total), rate)
    lost = sum(way.there.lost + way.back.lost for way in ways)
    return await outcome(
        bench,
        server,
        f"{lost} packets lost: {1 - stream.unanswered_share:.3%} answered ({stream.said()}), p99 "
        f"{stream.percentile(0.99):.2f} s, slowest {max(stream.seconds):.2f} s",
        stream.unanswered_share <= 0.0001 and stream.percentile(0.99) <= 2.2,
        streams=[stream],
        upstreams=[*ways],
    )
