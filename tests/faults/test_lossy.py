"""The relay of the fault bench does what its weather says, and counts it; the books of a row do not balance by themselves."""

from __future__ import annotations

import pytest

from tests.faults.bench import bench
from tests.faults.clients import Question, Stream
from tests.faults.lossy import Lossy, Passed, Weather
from tests.faults.upstreams import numbered, outcome, own_address
from tests.server.scripted import Scripted, eventually
from tests.server.serving import ask, connected, query


async def flood(way: Lossy, count: int = 400) -> Stream:
    """So many queries through it, until nothing is on its way any more."""

    def over() -> bool:
        there, back = way.there, way.back
        came = there.came == stream.sent == count and back.came == there.went and there.missing == back.missing == 0
        return came and back.went == stream.answered + stream.strays

    async with Stream(way.endpoint, numbered(count), 4000, sockets=4, total=count, patience=0) as stream:
        await eventually(over, 20.0)
    return stream


async def test_calm_weather_passes_everything():
    async with Scripted(own_address) as upstream, Lossy(upstream.endpoint) as way:
        stream = await flood(way)
        assert stream.right == 400
        assert way.there == way.back == Passed(came=400, went=400)
        async with connected(way.endpoint) as client:
            assert len(await client.ask(query("n-1.up.test"))) > 30


async def test_what_is_lost_is_counted():
    async with Scripted(own_address) as upstream, Lossy(upstream.endpoint, Weather(loss=0.2)) as way:
        stream = await flood(way)
        assert stream.lost == way.there.lost + way.back.lost
        assert 80 < stream.lost < 220
        assert way.there.missing == way.back.missing == 0


async def test_doubled_and_delayed():
    weather = Weather(delay=0.02, jitter=0.01, reorder=0.1, duplicate=0.5)
    async with Scripted(own_address) as upstream, Lossy(upstream.endpoint, weather) as way:
        stream = await flood(way)
        await eventually(lambda: way.there.missing == way.back.missing == 0)
        assert stream.right == 400
        assert min(stream.seconds) >= 0.04
        assert upstream.received == 400 + way.there.doubled
        assert 100 < way.there.doubled < 300


async def test_a_black_hole_swallows_old_flows_and_no_new_ones():
    async with Scripted(own_address) as upstream, Lossy(upstream.endpoint) as way:
        async with Stream(way.endpoint, numbered(10), 1000, sockets=1, patience=0.2) as old:
            await eventually(lambda: old.right > 0)
            way.black_hole()
            right = old.right
            await eventually(lambda: way.there.swallowed > 10)
        assert old.right <= right + 10 and old.lost > 0
        assert await ask(way.endpoint, query("n-1.up.test"))


@pytest.mark.parametrize("fault", ["lost", "unasked"])
async def test_what_is_unaccounted_for_is_a_miss(fault):
    async with bench(long=False) as given:
        upstream = await given.upstream(own_address)
        server = await given.server(upstream, watched=False)
        stream = Stream(server.endpoint, [Question("n-1.up.test")], 1)
        if fault == "lost":
            stream.lost = 1
        else:
            upstream.received += 1
        ended = await outcome(given, server, "fine", True, streams=[stream], upstreams=[upstream])
        assert not ended.met and "unaccounted for" in ended.measured
