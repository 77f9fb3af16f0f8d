"""The benchmark without a measurement: configurations, load generator, figures, report; and once through with stand-ins.

What the figures are is not tested: the machine is shared.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import delta, figures, machine, measurement, plot, readme, render, results, run, server
from benchmarks.contenders import CONTENDERS, UPSTREAMS
from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.contenders.canal_dns import FROM_FILE, MMSG, NATIVE, PURE, CanalDns, manifests
from benchmarks.contenders.echo import Echo
from benchmarks.errors import BenchError
from benchmarks.load import generators
from benchmarks.load.build import ECHO, FLOOD, compiled
from benchmarks.progress import Progress
from benchmarks.results import CALM, HALF, SATURATED, Contestant, Deltas, LeftOut, Method, Results, Sample
from benchmarks.scenarios import (
    BLOCKS,
    FORWARD,
    HITS,
    HOT,
    MIXED,
    NAMES,
    SCENARIOS,
    SIZED,
    SIZES,
    VIP,
    Shape,
    own_address,
    zone_file,
)
from benchmarks.server import free_port, running
from canal_dns import settings
from canal_dns.app import loop, snapshot
from canal_dns.mesh.binding import bind
from canal_dns.mesh.records import Skip
from canal_dns.mesh.resources import parse
from canal_dns.mesh.view import View

STORED = Path(run.__file__).parent
COMPILER = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
needs_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed")


# Contenders


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda one: f"{one.scenario}-{one.key}")
def test_every_contender_writes_its_configuration(contender: Contender, tmp_path: Path) -> None:
    scenario = SCENARIOS[contender.scenario]
    site = Site(tmp_path, Path("/bin/server"), 10053, 10055, 10056, 10054, scenario, "somebody")
    commands = contender.commands(site)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert all(argv[0] in ("/bin/server", sys.executable) for argv in commands.values())
    assert "10053" in written + " ".join(word for argv in commands.values() for word in argv)
    assert contender.note
    ours = contender.key.startswith(figures.OURS)
    assert contender.program.install or ours
    if scenario.block in ("forward", "cached", "mix"):
        assert "10054" in written
    elif contender.key not in ("echo", "dnsdist cache") and not ours:
        some = list(scenario.addresses)[:: max(1, len(scenario.addresses) // 20)]
        assert [name for name in some if name not in written] == []


def test_a_key_is_used_once_in_a_scenario() -> None:
    keys = [(contender.scenario, contender.key) for contender in CONTENDERS]
    assert len(keys) == len(set(keys))
    own = {name for name, scenario in SCENARIOS.items() if not scenario.served_by}
    assert {scenario for scenario, _ in keys} == own
    assert all((scenario, figures.OURS) in keys for scenario in own - {"chain"})
    assert all(one.served_by in own and one.block == SCENARIOS[one.served_by].block for one in (HOT,))


@pytest.mark.parametrize("cache", [True, False])
def test_the_configuration_of_canal_dns_is_one(tmp_path: Path, cache: bool) -> None:
    yaml = pytest.importorskip("yaml")
    CanalDns("hits", NATIVE, cache=cache).write(Site(tmp_path, Path("python"), 10053, 10055, 10056, 10054, HITS, "somebody"))
    parsed = settings.parse(yaml.safe_load((tmp_path / "canal-dns.yaml").read_text()))
    assert parsed.listen.workers == 1
    assert parsed.health.admin is not None
    assert (parsed.cache.size > 0) is cache
    assert not parsed.snapshot.path


def test_a_large_table_is_a_saved_one(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    count = FROM_FILE + 1
    CanalDns("hits", NATIVE, count).write(Site(tmp_path, Path("python"), 10053, 10055, 10056, 10054, HITS, "somebody"))
    parsed = settings.parse(yaml.safe_load((tmp_path / "canal-dns.yaml").read_text()))
    saved = snapshot.read(Path(parsed.snapshot.path))
    assert saved is not None
    wanted = snapshot.Wanted(
        f"manifests {parsed.source.manifests}", "cluster.local", frozenset({"istio-system/internalgateway"}), 3600
    )
    answers = snapshot.usable(saved, tmp_path / "table", wanted, saved.written)
    assert len(answers) == count
    assert {one.v4 for one in answers.values()} == {(socket.inet_aton(VIP),)}


@needs_cores
def test_canal_dns_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packet loop is asked for: only plain Python is everywhere."""
    monkeypatch.setattr(server, "START_LIMIT", 45.0)  # other tests run on that core
    right = CanalDns("hits", PURE, 10)
    wrong = CanalDns("hits", NATIVE, 10)
    wrong.environment = right.environment
    small = dataclasses.replace(SIZED[0])
    with running(right, Path(sys.executable), small, tmp_path / "right", 0, free_port()) as started:
        assert set(started.usage().cpu) == set(started.resident_kib()) == {"control", "workers"}
    with (
        pytest.raises(BenchError, match="its batch is 'pure', not 'native'"),
        running(wrong, Path(sys.executable), small, tmp_path / "wrong", 0, free_port()),
    ):
        pass


def test_where_nothing_is_compiled_nothing_compiled_is_found() -> None:
    text = "from canal_dns.server import batch; print(batch.IMPLEMENTATION)"
    environment = {**os.environ, **CanalDns("hits", MMSG).environment}
    environment.pop("CANAL_DNS_NO_EXTENSIONS", None)
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == MMSG


def test_the_manifests_bind_every_name() -> None:
    view = View()
    for record in map(parse, manifests(NAMES)):
        assert record is not None
        assert not isinstance(record, Skip)
        view.apply(record)
    gateway = settings.InternalGateway("istio-system", "internalgateway")
    bound = bind(view, settings.BindingSettings(gateways=(gateway,))).bound
    assert {name: one.v4 for name, one in bound.items()} == dict.fromkeys(HITS.addresses, (VIP,))


def test_the_names_and_their_addresses() -> None:
    assert len(HITS.addresses) == len(FORWARD.addresses) == NAMES
    assert set(HITS.addresses.values()) == {VIP}
    assert len(set(FORWARD.addresses.values())) == NAMES
    assert not HITS.addresses.keys() & FORWARD.addresses.keys()
    assert zone_file(FORWARD.addresses).count("\n") == NAMES + 5
    assert len({own_address(number, "bound") for number in range(SIZES[-1])}) == SIZES[-1]
    assert [len(one.addresses) for one in SIZED] == list(SIZES)


def test_the_mix_is_the_one_of_the_goal() -> None:
    asked = [line.split()[0] for line in MIXED.asked]
    assert sum(name in HITS.addresses for name in asked) / len(asked) == 0.6
    assert MIXED.missing == 0.3
    assert MIXED.empty == 0.35


def test_a_program_is_found_by_its_variable_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\necho 'server version 4.5.6, built today'\n")
    binary.chmod(0o755)
    program = Program("server", "-v", "somewhere", variable="SERVER_BINARY")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert program.find() is None
    monkeypatch.setenv("SERVER_BINARY", str(binary))
    assert program.find() == binary
    assert program.version(binary) == "4.5.6"
    monkeypatch.setenv("SERVER_BINARY", str(tmp_path / "missing"))
    assert program.find() is None


# The load generator


class StandIn:
    """A DNS server of few words: every reply is the query with QR set and one A record; every n-th query gets none."""

    def __init__(self, silent_every: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.seen = 0
        self._silent_every = silent_every
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            packet, client = self.socket.recvfrom(4096)
            if not packet:
                return
            self.seen += 1
            if self._silent_every and self.seen % self._silent_every == 0:
                continue
            record = b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + socket.inet_aton(VIP)
            self.socket.sendto(packet[:2] + b"\x85\x80\0\1\0\1\0\0\0\0" + packet[12:] + record, client)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self.socket.close()


class Stream:
    """The same over TCP, a connection after the other in threads; each is closed after so many messages."""

    def __init__(self, closes_after: int = 0) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._closes_after = closes_after
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            if self.port == 0:
                connection.close()
                return
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        record = b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + socket.inet_aton(VIP)
        seen = 0
        with connection, connection.makefile("rb") as reader:
            while len(head := reader.read(2)) == 2:
                packet = reader.read(int.from_bytes(head, "big"))
                reply = packet[:2] + b"\x85\x80\0\1\0\1\0\0\0\0" + packet[12:] + record
                try:
                    connection.sendall(len(reply).to_bytes(2, "big") + reply)
                except OSError:
                    return
                seen += 1
                if seen == self._closes_after:
                    return

    def close(self) -> None:
        port, self.port = self.port, 0
        socket.create_connection(("127.0.0.1", port)).close()
        for thread in self._threads:
            thread.join()
        self.socket.close()


NARROW = Shape("udp", 8, 16)


@pytest.fixture(scope="module")
def flood() -> Path:
    binary = compiled(FLOOD)
    assert binary is not None
    return binary


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries"
    HITS.write_queries(path)
    return path


@pytest.fixture
def stand_in(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    server = StandIn(getattr(request, "param", 0))
    yield server
    server.close()


@needs_compiler
@pytest.mark.parametrize("source", [FLOOD, ECHO], ids=lambda source: source.stem)
def test_programs_in_c_compile_without_a_warning(tmp_path: Path, source: Path) -> None:
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    assert COMPILER
    subprocess.run([COMPILER, "-O2", "-std=gnu11", *warnings, "-o", tmp_path / "program", source], check=True)


@needs_compiler
def test_flood_keeps_a_window_open_and_loses_nothing(flood: Path, queries: Path, stand_in: StandIn) -> None:
    load = generators.Flood(flood, 0).saturate(stand_in.port, queries, 0.2, NARROW)
    assert load.answered > 100
    assert load.rcodes == {"0": load.answered}
    assert load.lost == 0
    assert load.sent == stand_in.seen
    assert load.p50_us
    assert load.p99_us
    assert load.p50_us <= load.p99_us
    assert not {"strays", "empty"} & load.problems.keys()


@needs_compiler
@pytest.mark.parametrize("calm", [True, False])
def test_flood_keeps_to_a_rate(flood: Path, queries: Path, stand_in: StandIn, calm: bool) -> None:
    load = generators.Flood(flood, 0).paced(stand_in.port, queries, 0.5, Shape(), 200, calm=calm)
    assert 50 <= load.sent <= 101
    assert load.p999_us
    assert load.answered == load.sent


@needs_compiler
@pytest.mark.parametrize("stand_in", [10], indirect=True)
def test_flood_counts_what_is_lost(flood: Path, queries: Path, stand_in: StandIn) -> None:
    argv = [flood, "-p", str(stand_in.port), "-f", queries, "-t", "0.3", "-w", "8", "-s", "2", "-T", "200"]
    plain = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    assert plain["lost"] >= stand_in.seen // 10 > 0
    assert plain["sent"] == plain["answered"] + plain["lost"] == stand_in.seen


@needs_compiler
@pytest.mark.parametrize("closes_after", [0, 50])
def test_flood_keeps_connections_full_and_opens_them_again(flood: Path, queries: Path, closes_after: int) -> None:
    server = Stream(closes_after)
    try:
        load = generators.Flood(flood, 0).saturate(server.port, queries, 0.3, Shape("tcp", 4, 32))
    finally:
        server.close()
    assert load.answered > 100
    assert load.rcodes == {"0": load.answered}
    assert load.sent == load.answered + load.lost
    assert bool(load.problems.get("closed")) is bool(closes_after)
    assert bool(load.lost) is bool(closes_after)


@needs_compiler
@needs_cores
def test_the_echo_answers_everything_with_an_address(flood: Path, queries: Path, tmp_path: Path) -> None:
    binary = Echo("hits").program.find()
    assert binary is not None
    with running(Echo("hits"), binary, HITS, tmp_path / "echo", 0, 0) as server:
        load = generators.Flood(flood, 1).saturate(server.site.port, queries, 0.2, Shape())
    assert load.answered > 100
    assert load.rcodes == {"0": load.answered}
    assert not {"strays", "empty", "truncated"} & load.problems.keys()


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["-a", "192.0.2.1", "-p", "53"], 2, "not a loopback address"),
        (["-a", "2001:db8::1", "-p", "53"], 2, "not a loopback address"),
        (["-a", "localhost", "-p", "53"], 2, "not an IP address"),
        (["-p", "0"], 2, "-p PORT"),
        (["-p", "53", "-w", "4", "-s", "8"], 2, "window"),
        (["-p", "53", "-m", "quic"], 2, "-m is udp or tcp"),
        (["-p", "53", "-f", "/nowhere"], 2, "/nowhere"),
        ([], 2, "usage"),
    ],
)
def test_flood_refuses(flood: Path, queries: Path, arguments: list[str], code: int, text: str) -> None:
    argv = [flood, "-f", queries, "-t", "0.1", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert text in done.stderr
    assert not done.stdout


@needs_compiler
@pytest.mark.parametrize("line", ["a..b A", f"{'x' * 64}.b A", "a.b MX", ""])
def test_flood_refuses_what_is_no_query(flood: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "queries"
    path.write_text(f"{line}\n")
    done = subprocess.run([flood, "-p", "53", "-f", path, "-t", "0.1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2


@needs_compiler
@pytest.mark.parametrize("shape", [Shape("udp", 8, 16), Shape("tcp", 8, 16)])
def test_flood_says_when_nobody_listens(flood: Path, queries: Path, shape: Shape) -> None:
    with pytest.raises(BenchError, match="nobody listens"):
        generators.Flood(flood, 0).saturate(free_port(), queries, 5, shape)


DNSPERF = """\
DNS Performance Testing Tool
Version 2.10.0
> NOERROR bound-0000.team-00.svc.cluster.local A 0.000100
> NOERROR bound-0001.team-01.svc.cluster.local A 0.000300
> NXDOMAIN bound-0002.team-02.svc.cluster.local A 0.000200
> T bound-0003.team-03.svc.cluster.local A
Statistics:

  Queries sent:         4
  Queries completed:    3 (75.00%)
  Queries lost:         1 (25.00%)

  Response codes:       NOERROR 2 (66.67%), NXDOMAIN 1 (33.33%)
  Average packet size:  request 54, response 70
  Run time (s):         2.000000
  Queries per second:   1.500000
"""


def test_what_dnsperf_prints() -> None:
    load = generators.parse_dnsperf(DNSPERF)
    assert (load.sent, load.answered, load.lost, load.seconds, load.qps) == (4, 3, 1, 2.0, 1.5)
    assert load.rcodes == {"0": 2, "3": 1}
    assert load.p50_us == pytest.approx(200)
    assert load.p99_us == pytest.approx(300)
    with pytest.raises(BenchError, match="Queries sent"):
        generators.parse_dnsperf("unable to connect")


def test_without_any_generator_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="Debian: dnsperf"):
        generators.find_generators(0)


# Figures and report


def sample(
    key: str,
    number: int,
    cpu_us: float,
    kind: str = SATURATED,
    scenario: str = "hits",
    qps: float = 1e5,
    parts: tuple[str, ...] = (),
) -> Sample:
    answered = 100_000
    parts = parts or (("control", "workers") if key.startswith("canal-dns") else (key,))
    return Sample(
        key=key,
        scenario=scenario,
        kind=kind,
        round=number,
        rate=0 if kind == SATURATED else 5000,
        generator="flood",
        sent=answered + 10,
        answered=answered,
        lost=10,
        seconds=1.0,
        qps=qps,
        cpu_seconds=cpu_us * answered / 1e6,
        foreign_seconds=0.0,
        cpu_by_part={part: cpu_us * answered / 1e6 / len(parts) for part in parts},
        rss_by_part=dict.fromkeys(parts, 40_000),
        p50_us=100.0,
        p99_us=200.0 if key == "knot" else 250.0,
        p999_us=900.0,
        rcodes={"0": answered},
        problems={},
    )


def measured(samples: list[Sample], left_out: list[LeftOut] | None = None, deltas: list[Deltas] | None = None) -> Results:
    keys = dict.fromkeys((one.scenario, one.key) for one in samples)
    return Results(
        schema=results.SCHEMA,
        taken="2026-11-21T08:00:00Z",
        commit="0123456789",
        command="python -m benchmarks.run",
        machine={
            "cpu": "A CPU", "cores": 2, "server_core": 0, "load_core": 1, "siblings": "0", "memory_mib": 1024,
            "kernel": "6.1", "system": "Debian",
        },
        software={"python": "CPython 3.11"},
        method=Method(2, 1, 1.0, 2.0, list(BLOCKS), "flood", "knot 3", 12.5),
        contestants=[Contestant(key, scenario, "1.0", "as it comes") for scenario, key in keys],
        left_out=left_out or [],
        samples=samples,
        deltas=deltas or [],
        comparison=[],
    )  # fmt: skip


MEASURED = measured(
    [
        *(sample("knot", number, 2.0 * number) for number in (1, 2, 3)),
        *(sample("canal-dns", number, 5.0 * number) for number in (1, 2, 3)),
        *(sample("coredns cache", number, 12.5 * number) for number in (1, 2, 3)),
        *(sample("coredns file", number, 75.0 * number) for number in (1, 2, 3)),
        *(sample(key, 1, 50.0, kind) for key in ("knot", "canal-dns", "coredns cache") for kind in (HALF, CALM)),
        *(sample("canal-dns", 1, 5.0, scenario=one.name) for one in (*SIZED, HOT)),
        *(sample("coredns rewrite", 1, 10.0 + at, scenario=one.name) for at, one in enumerate(SIZED[:3])),
        *(sample(key, 1, 20.0, scenario="forward") for key in ("canal-dns", "dnsdist")),
        *(sample("coredns", 1, 20.0, kind, "chain") for kind in (SATURATED, CALM)),
        *(sample("coredns + canal-dns", 1, 60.0, kind, "chain", parts=("coredns", "canal-dns")) for kind in (SATURATED, CALM)),
    ],
    [LeftOut("nsd", "hits", "not installed", "Debian package nsd")],
    [Deltas(1, 10_000, 2, 500, 0.05, 0.025)],
)  # fmt: skip


def test_a_ratio_is_taken_within_a_round() -> None:
    # The machine slows down threefold from the first round to the last; the ratio does not notice.
    over, under = figures.Run("hits", "coredns cache"), figures.Run("hits", "canal-dns")
    assert figures.ratio(MEASURED, over, under) == figures.Spread(2.5, 2.5, 2.5)
    assert figures.ratio(MEASURED, figures.Run("tcp", "coredns"), under) is None
    assert [row.key for row in figures.rows(MEASURED, "hits")] == ["knot", "canal-dns", "coredns cache", "coredns file"]


def test_every_goal_names_who_is_measured() -> None:
    """A measurement of everybody leaves no goal open."""
    everybody = [
        sample(contender.key, 1, 5.0, kind, scenario.name)
        for contender in CONTENDERS
        for scenario in SCENARIOS.values()
        if contender.scenario in (scenario.name, scenario.served_by)
        for kind in scenario.kinds
    ]
    whole = measured(everybody, deltas=[Deltas(1, 10_000, workers, 500, 0.05, 0.02) for workers in measurement.DELTA_WORKERS])
    assert [goal.work for goal in figures.GOALS if goal.figure(whole) is None] == []
    assert {goal.command for goal in figures.GOALS} <= set(BLOCKS)
    assert "| not measured |" not in render.report(whole)


def test_the_report_says_what_was_met_missed_and_left_out() -> None:
    text = render.report(MEASURED)
    assert "| hits, extension | >= 4 times CoreDNS `cache` | 2.50 (2.50..2.50) | **missed, by 38%** |" in text
    assert "| hits, extension | >= 12 times CoreDNS zone data | 15.00 (15.00..15.00) | met, by 25% |" in text
    assert "| p99 at half of the peak rate | <= 1.2 of Knot's | 1.25 (1.25..1.25) | **missed, by 4%** |" in text
    assert "| RSS of a worker, 10,000 names | <= 45 MB | 41.0 (41.0..41.0) | met, by 9% |" in text
    assert "| change of one name, two workers | <= 0.2 ms of CPU | 0.150 (0.150..0.150) | met, by 25% |" in text
    assert "| TCP, 16 connections, 32 in flight each | >= 3 times CoreDNS | - | not measured |" in text
    assert "- nsd (hits): not installed; to have it: Debian package nsd" in text


def test_the_report_tells_parts_apart() -> None:
    text = render.report(MEASURED)
    assert "| 60.0 (coredns 30.0 + canal-dns 30.0) |" in text
    assert "| 82 (control 41 + workers 41) |" in text
    assert "| 1,000 of 100,000 |" in text


def test_the_table_of_the_readme() -> None:
    text = render.speed(MEASURED)
    assert "| hits, extension | **2.50** times CoreDNS `cache` | >= 4 | `make bench ONLY=hits` |" in text
    assert "TCP" not in text
    filled = readme.filled("a\n<!-- speed -->\nold\n<!-- end of speed -->\nz\n", "speed", "new\n")
    assert filled == "a\n<!-- speed -->\nnew\n<!-- end of speed -->\nz\n"
    with pytest.raises(BenchError, match="no place"):
        readme.filled("nothing", "speed", "new")


def test_the_report_marks_who_was_not_saturated() -> None:
    text = render.report(measured([sample("knot", 1, 5.0)]))
    assert "100,000 † |" in text
    assert "(knot 50%)" in text


def test_the_report_says_when_the_machine_was_not_quiet() -> None:
    disturbed = dataclasses.replace(sample("knot", 1, 5.0), foreign_seconds=0.4)
    calm = dataclasses.replace(disturbed, foreign_seconds=0.05)
    assert "**The machine was not quiet**: others used 40%" in render.report(measured([disturbed]))
    assert "not quiet" not in render.report(measured([calm]))
    both = dataclasses.replace(measured([disturbed]), comparison=[disturbed, calm])
    assert "others used up to 40% of the server's core meanwhile" in render.report(both)


@pytest.mark.parametrize("draw", [plot.bars, plot.sizes])
def test_a_plot_is_a_drawing_with_every_contender_in_it(draw: Callable[[Results], str]) -> None:
    root = ET.fromstring(draw(MEASURED))  # noqa: S314 — our own drawing
    texts = " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    wanted = {"canal-dns 5.0", "coredns rewrite 12.0"} if draw is plot.sizes else {"knot", "coredns file", "10.0", "150"}
    assert [one for one in wanted if one not in texts] == []
    assert draw(measured([sample("knot", 1, 5.0)])).endswith("</svg>\n")


def test_a_bar_that_would_dwarf_the_others_is_cut() -> None:
    drawing = plot.bars(measured([sample("knot", 1, 2.0), sample("nsd", 1, 3.0), sample("dnsmasq", 1, 150.0)]))
    assert drawing.count("<polygon") == 1
    assert ">150<" in drawing


def test_a_measurement_comes_back_from_its_file(tmp_path: Path) -> None:
    MEASURED.write(tmp_path / "latest.json")
    assert results.read(tmp_path / "latest.json") == MEASURED


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 0}, "not a measurement of schema"),
        ({"more": 1}, "more"),
        ({"taken": 5}, "taken"),
        ({"samples": [{"key": "knot"}]}, r"samples\[0\]"),
        ({"left_out": {}}, "left_out"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    path = tmp_path / "latest.json"
    path.write_text(json.dumps(dataclasses.asdict(MEASURED) | change))
    with pytest.raises(BenchError, match=text):
        results.read(path)


def test_the_committed_report_is_the_committed_measurement() -> None:
    stored = results.read(STORED / "results" / "latest.json")
    assert (STORED / "RESULTS.md").read_text() == render.report(stored)
    assert (STORED / "results" / "cpu.svg").read_text() == plot.bars(stored)
    assert (STORED / "results" / "sizes.svg").read_text() == plot.sizes(stored)
    assert not [one for one in stored.left_out if one.key == figures.OURS]


def test_the_table_of_the_readme_is_the_committed_measurement() -> None:
    stored = results.read(STORED / "results" / "latest.json")
    written = readme.FILE.read_text()
    assert written == readme.filled(written, "speed", render.speed(stored)), "run python -m benchmarks.render"


# Processes and the run


def test_what_a_change_of_the_table_costs() -> None:
    spent = loop.run(delta.measure(20, 1, 10))
    assert spent["control"] > 0
    assert spent["workers"] > 0


def test_the_cpu_time_of_this_process_grows() -> None:
    before = machine.cpu_seconds(os.getpid())
    sum(range(100_000))
    assert machine.cpu_seconds(os.getpid()) > before
    with pytest.raises(BenchError, match="ended"):
        machine.cpu_seconds(2**22 + 1)


@pytest.mark.parametrize(("live", "ending"), [(True, ""), (False, "\n")])
def test_progress_is_one_live_line_on_a_terminal_and_plain_lines_in_a_pipe(live: bool, ending: str) -> None:
    out = io.StringIO()
    out.isatty = lambda: live  # type: ignore[method-assign]
    progress = Progress(out)
    progress.expect(2)
    progress.step("one")
    progress.step("two")
    assert ("\r" in out.getvalue()) is live
    assert out.getvalue().endswith(f"[  2/2] 0:00 two{ending}")


SERVER = """\
import json, socket, sys
addresses = json.load(open(sys.argv[2]))
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
while True:
    packet, client = server.recvfrom(4096)
    labels, at = [], 12
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\5\\0\\4" + socket.inet_aton(addresses[".".join(labels)])
    server.sendto(packet[:2] + b"\\x85\\x80\\0\\1\\0\\1\\0\\0\\0\\0" + packet[12:] + record, client)
"""


class Python(Program):
    def find(self) -> Path | None:
        return Path(sys.executable) if self.install != "never" else None


class Small(Contender):
    """A server in a few lines of Python, for whoever is to be measured."""

    program = Python("python", "-V", "python.org")
    note = "a stand-in"

    def __init__(self, key: str = "small", scenario: str = "hits", code: str = SERVER, install: str = "python.org") -> None:
        self.key = key
        self.scenario = scenario
        self.program = Python("python", "-V", install)
        self._code = code

    def write(self, site: Site) -> list[str]:
        addresses = site.write("addresses", json.dumps(site.scenario.addresses))
        return [str(site.binary), str(site.write("server.py", self._code)), str(site.port), str(addresses)]


def run_with(monkeypatch: pytest.MonkeyPatch, contenders: tuple[Contender, ...], *arguments: str) -> int:
    monkeypatch.setattr(run, "CONTENDERS", contenders)
    monkeypatch.setattr(run, "UPSTREAMS", (Small("upstream"),))
    monkeypatch.setattr(measurement, "WARM_UP", 0.05)
    return run.main(["--rounds", "1", "--seconds", "0.1", *arguments])


@needs_cores
@needs_compiler
def test_once_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = SERVER.replace("addresses[", "'192.0.2.1' or addresses[") + "    break\n"
    contenders = (
        Small("knot"),
        Small("canal-dns"),
        Small("canal-dns", "forward"),
        Small("crash", code="raise SystemExit('no such option')"),
        Small("wrong", code=wrong),
        Small("missing", install="never"),
    )
    assert run_with(monkeypatch, contenders, "--only", "hits,forward", "--output", str(tmp_path)) == 0
    taken = results.read(tmp_path / "results" / "latest.json")
    assert (tmp_path / "RESULTS.md").read_text() == render.report(taken)
    assert [(one.key, one.scenario) for one in taken.contestants] == [
        ("knot", "hits"), ("canal-dns", "hits"), ("canal-dns", "forward"),
    ]  # fmt: skip
    assert {one.kind for one in taken.samples} == {SATURATED, HALF, CALM}
    assert all(one.cpu_us > 0 and one.rss_kib > 1000 for one in taken.samples)
    why = {one.key: one.why for one in taken.left_out}
    assert "no such option" in why["crash"]
    assert "192.0.2.1" in why["wrong"]
    assert why["missing"] == "not installed"
    assert "round 1 of 1, saturated: knot (hits)" in capsys.readouterr().err


@needs_cores
@needs_compiler
def test_a_run_without_canal_dns_fails_and_so_does_one_with_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crash = Small("canal-dns", code="raise SystemExit('no such option')")
    assert run_with(monkeypatch, (Small("knot"), crash), "--quick", "--only", "hits") == 1
    assert "## Left out\n\n- canal-dns (hits)" in capsys.readouterr().out
    assert run_with(monkeypatch, (crash,), "--only", "hits") == 1
    assert "nothing measured: nobody can be measured: canal-dns" in capsys.readouterr().err


@needs_cores
def test_a_server_is_stopped_with_all_its_processes(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    with running(Small(code=child + SERVER), Path(sys.executable), HITS, tmp_path / "site", 0, 0) as server:
        pids = server.usage().pids
        assert len(pids) == 2
    for pid in pids:
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


@needs_cores
def test_a_server_that_moves_to_another_core_is_brought_back(tmp_path: Path) -> None:
    first, second = machine.two_cores()
    mover = f"import os, threading; os.sched_setaffinity(0, {{{second}}})\n"
    mover += "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    with running(Small(code=mover + SERVER), Path(sys.executable), HITS, tmp_path / "site", first, 0) as server:
        threads = [int(task.name) for pid in server.usage().pids for task in Path(f"/proc/{pid}/task").iterdir()]
        assert len(threads) == 2
        assert [os.sched_getaffinity(thread) for thread in threads] == [{first}, {first}]


@pytest.mark.parametrize("arguments", [["--only", "bind"], ["--rounds", "0"], ["--seconds", "0"], ["--scenario", "tcp"]])
def test_bad_use(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_one_core_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    with pytest.raises(BenchError, match="two cores"):
        machine.two_cores()


def test_the_list_names_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(contender.key in listed for contender in CONTENDERS + UPSTREAMS)
