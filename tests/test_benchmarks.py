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
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import figures, machine, plot, render, results, run
from benchmarks.contenders import CONTENDERS, UPSTREAMS
from benchmarks.contenders.base import Contender, Program, Site
from benchmarks.contenders.canal_dns import CanalDnsHits, manifests
from benchmarks.errors import BenchError
from benchmarks.load import generators
from benchmarks.progress import Progress
from benchmarks.results import SATURATED, STEADY, Contestant, LeftOut, Method, Results, Sample
from benchmarks.scenarios import FORWARD, HITS, NAMES, SCENARIOS, VIP, zone_file
from benchmarks.server import free_port, running
from canal_dns import settings
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
    site = Site(tmp_path, Path("/bin/server"), 10053, 10054, SCENARIOS[contender.scenario], "somebody")
    argv = contender.write(site)
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert argv[0] == "/bin/server"
    assert "10053" in written
    assert contender.note
    assert contender.program.install or contender.key == "canal-dns"
    if contender.scenario == FORWARD.name:
        assert "10054" in written
    else:
        assert all(name in written for name in HITS.addresses) or contender.key in ("canal-dns", "dnsdist cache")


def test_a_key_is_used_once_in_a_scenario() -> None:
    keys = [(contender.scenario, contender.key) for contender in CONTENDERS]
    assert len(keys) == len(set(keys))
    assert {scenario for scenario, _ in keys} == set(SCENARIOS)
    assert all((target.scenario, target.peer) in keys for target in figures.TARGETS)
    assert all((scenario, figures.OURS) in keys for scenario in SCENARIOS)


def test_the_configuration_of_canal_dns_is_one(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    CanalDnsHits().write(Site(tmp_path, Path("python"), 10053, 10054, HITS, "somebody"))
    parsed = settings.parse(yaml.safe_load((tmp_path / "canal-dns.yaml").read_text()))
    assert parsed.listen.workers == 1
    assert parsed.health.admin is None


def test_the_manifests_bind_every_name() -> None:
    view = View()
    for record in map(parse, manifests()):
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


@pytest.fixture(scope="module")
def flood() -> Path:
    binary = generators.build_flood()
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
def test_flood_compiles_without_a_warning(tmp_path: Path) -> None:
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    assert COMPILER
    subprocess.run([COMPILER, "-O2", "-std=gnu11", *warnings, "-o", tmp_path / "flood", generators.SOURCE], check=True)


@needs_compiler
def test_flood_keeps_a_window_open_and_loses_nothing(flood: Path, queries: Path, stand_in: StandIn) -> None:
    load = generators.Flood(flood, 0, 16).saturate(stand_in.port, queries, 0.2)
    assert load.answered > 100
    assert load.rcodes == {"0": load.answered}
    assert load.lost == 0
    assert load.sent == stand_in.seen
    assert load.p50_us
    assert load.p99_us
    assert load.p50_us <= load.p99_us
    assert not {"strays", "empty"} & load.problems.keys()


@needs_compiler
def test_flood_keeps_to_a_rate(flood: Path, queries: Path, stand_in: StandIn) -> None:
    load = generators.Flood(flood, 0, 16).steady(stand_in.port, queries, 0.5, 200)
    assert 50 <= load.sent <= 101
    assert load.answered == load.sent


@needs_compiler
@pytest.mark.parametrize("stand_in", [10], indirect=True)
def test_flood_counts_what_is_lost(flood: Path, queries: Path, stand_in: StandIn) -> None:
    argv = [flood, "-p", str(stand_in.port), "-f", queries, "-t", "0.3", "-w", "8", "-s", "2", "-T", "200"]
    plain = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    assert plain["lost"] >= stand_in.seen // 10 > 0
    assert plain["sent"] == plain["answered"] + plain["lost"] == stand_in.seen


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["-a", "192.0.2.1", "-p", "53"], 2, "not a loopback address"),
        (["-a", "2001:db8::1", "-p", "53"], 2, "not a loopback address"),
        (["-a", "localhost", "-p", "53"], 2, "not an IP address"),
        (["-p", "0"], 2, "-p PORT"),
        (["-p", "53", "-w", "4", "-s", "8"], 2, "window"),
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
def test_flood_says_when_nobody_listens(flood: Path, queries: Path) -> None:
    with pytest.raises(BenchError, match="nobody listens"):
        generators.Flood(flood, 0, 16).saturate(free_port(), queries, 5)


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
        generators.find_generators(0, 16)


# Figures and report


def sample(key: str, number: int, cpu_us: float, kind: str = SATURATED, scenario: str = "hits", qps: float = 1e5) -> Sample:
    answered = 100_000
    return Sample(
        key=key,
        scenario=scenario,
        kind=kind,
        round=number,
        generator="flood",
        sent=answered + 10,
        answered=answered,
        lost=10,
        seconds=1.0,
        qps=qps,
        cpu_seconds=cpu_us * answered / 1e6,
        foreign_seconds=0.0,
        rss_kib=2048,
        processes=1,
        p50_us=100.0,
        p99_us=200.0,
        rcodes={"0": answered},
        problems={},
    )


def measurement(samples: list[Sample], left_out: list[LeftOut] | None = None) -> Results:
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
        method=Method(2, 1, 1.0, 192, 8, 1000, "flood", "knot 3", {"hits": 5000, "forward": 4000}),
        contestants=[Contestant(key, scenario, "1.0", "as it comes") for scenario, key in keys],
        left_out=left_out or [],
        samples=samples,
        comparison=[],
    )  # fmt: skip


MEASURED = measurement(
    [
        *(sample("knot", number, 2.0 * number) for number in (1, 2, 3)),
        *(sample("canal-dns", number, 5.0 * number) for number in (1, 2, 3)),
        *(sample("coredns cache", number, 12.5 * number) for number in (1, 2, 3)),
        *(sample("coredns file", number, 25.0 * number) for number in (1, 2, 3)),
        *(sample(key, 1, 50.0, STEADY) for key in ("knot", "canal-dns", "coredns cache", "coredns file")),
    ],
    [LeftOut("nsd", "hits", "not installed", "Debian package nsd")],
)  # fmt: skip


def test_a_ratio_is_taken_within_a_round() -> None:
    # The machine slows down threefold from the first round to the last; the ratio does not notice.
    assert figures.ratio(MEASURED, "hits", "coredns cache", "canal-dns") == figures.Spread(2.5, 2.5, 2.5)
    assert figures.ratio(MEASURED, "forward", "coredns", "canal-dns") is None
    assert [row.key for row in figures.rows(MEASURED, "hits")] == ["knot", "canal-dns", "coredns cache", "coredns file"]


def test_the_report_says_what_was_met_missed_and_left_out() -> None:
    text = render.report(MEASURED)
    assert "| than CoreDNS, cache (hits) | 2 | 2.50 (2.50..2.50) | met, by 25% |" in text
    assert "| than CoreDNS, file (hits) | 6 | 5.00 (5.00..5.00) | **missed, by 17%** |" in text
    assert "| than CoreDNS, forward (forward) | 2 | - | not measured |" in text
    assert "- nsd (hits): not installed; to have it: Debian package nsd" in text
    assert "5,000 queries/s" in text


def test_the_report_marks_who_was_not_saturated() -> None:
    text = render.report(measurement([sample("knot", 1, 5.0)]))
    assert "100,000 † |" in text
    assert "(knot 50%)" in text


def test_the_report_says_when_the_machine_was_not_quiet() -> None:
    disturbed = dataclasses.replace(sample("knot", 1, 5.0), foreign_seconds=0.4)
    calm = dataclasses.replace(disturbed, foreign_seconds=0.05)
    assert "**The machine was not quiet**: others used 40%" in render.report(measurement([disturbed]))
    assert "not quiet" not in render.report(measurement([calm]))
    both = dataclasses.replace(measurement([disturbed]), comparison=[disturbed, calm])
    assert "others used up to 40% of the server's core meanwhile" in render.report(both)


def test_the_plot_is_a_drawing_with_every_contender_in_it() -> None:
    root = ET.fromstring(plot.svg(MEASURED))  # noqa: S314 — our own drawing
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"knot", "canal-dns", "coredns cache", "coredns file", "10.0", "50.0"} <= texts


def test_a_bar_that_would_dwarf_the_others_is_cut() -> None:
    drawing = plot.svg(measurement([sample("knot", 1, 2.0), sample("nsd", 1, 3.0), sample("coredns rewrite", 1, 150.0)]))
    assert drawing.count("<polygon") == 1
    assert ">150<" in drawing


def test_the_steady_rate_is_half_of_what_the_slowest_can_do() -> None:
    samples = [sample("knot", 1, 2.0, qps=300_000.0), sample("coredns file", 1, 50.0, qps=20_300.0)]
    assert run.steady_rates(samples) == {"hits": 10_100}
    assert run.steady_rates([sample("slow", 1, 1e4, qps=50.0)]) == {"hits": 100}


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
    assert (STORED / "results" / "cpu.svg").read_text() == plot.svg(stored)
    assert not [one for one in stored.left_out if one.key == figures.OURS]


# Processes and the run


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
    monkeypatch.setattr(run, "WARM_UP", 0.05)
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
    assert run_with(monkeypatch, contenders, "--output", str(tmp_path)) == 0
    measured = results.read(tmp_path / "results" / "latest.json")
    assert (tmp_path / "RESULTS.md").read_text() == render.report(measured)
    assert [(one.key, one.scenario) for one in measured.contestants] == [
        ("knot", "hits"), ("canal-dns", "hits"), ("canal-dns", "forward"),
    ]  # fmt: skip
    assert {one.kind for one in measured.samples} == {SATURATED, STEADY}
    assert all(one.cpu_us > 0 and one.rss_kib > 1000 for one in measured.samples)
    why = {one.key: one.why for one in measured.left_out}
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
    assert run_with(monkeypatch, (Small("knot"), crash), "--quick") == 1
    assert "## Left out\n\n- canal-dns (hits)" in capsys.readouterr().out
    assert run_with(monkeypatch, (crash,)) == 1
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
