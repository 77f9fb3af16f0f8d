"""In a pod's place: read-only root, an ordinary user, no capability, the shipped seccomp profile; and everything still works.

What the Deployment gives is given here, by tests/confined.py: the configuration and the account's token read-only, an empty
folder for the saved table, nothing else. The API server is a scripted one; the real one is asked by tests/e2e.
"""

import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import pytest
import yaml

from tests import confined, seccomp
from tests.e2e.certificates import Authority
from tests.kube.apiserver import FakeApiServer
from tests.process import DEMO, Process, Server, wait_for

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
CONFIG, SAVED = "/etc/canal-dns", "/var/lib/canal-dns"
pytestmark = pytest.mark.timeout(180)
HELLO = "helloworld.default.svc.cluster.local"
OTHER, LONG = "elsewhere.example.", "long.example."
TOKEN = "the-one-token-" + "7Qx" * 9


def impossible():
    return confined.unable() or seccomp.unable()


@pytest.fixture(scope="module", autouse=True)
def _possible():
    if why := impossible():
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(why)
        pytest.skip(why)


class Upstream(asyncio.DatagramProtocol):
    """Answers every name with one address; over UDP a long one is cut."""

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, ("127.0.0.1", self.port))

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.transport.sendto(self.answer(data, cut=True), addr)

    async def serve(self, reader, writer):
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                reply = self.answer(await reader.readexactly(length), cut=False)
                writer.write(len(reply).to_bytes(2, "big") + reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @staticmethod
    def answer(data, *, cut):
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        name = query.question[0].name
        if cut and str(name) == LONG:
            reply.flags |= dns.flags.TC
        else:
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.7"))
        return reply.to_wire()


class Confined(Server):
    """A server in the place of a pod; `extra`: between the confinement and it."""

    def __init__(self, folder, port, *, profile=seccomp.PROFILE, extra=()):
        self.config = folder / "config"
        self.config.mkdir()
        self.configure()
        prefix = confined.command(
            user=confined.NOBODY,
            read_only=True,
            volumes=[f"{self.config}:{CONFIG}", f"{folder / 'account'}:{ACCOUNT}", f":{SAVED}"],
            profile=profile,
        )
        Process.__init__(
            self, "serve", "--config", f"{CONFIG}/canal-dns.yaml", prefix=[*prefix, *extra],
            environment={"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)},
        )  # fmt: skip

    def configure(self, **changes):
        settings = {
            "listen": ["127.0.0.1:0", "[::1]:0"], "admin": "127.0.0.1:0", "source": {"cluster": {}},
            "workers": 2, "lameduck": 0,
            "upstreams": [f"127.0.0.1:{self.upstream}"], "binding": {"settle": 0}, "snapshot": {"path": f"{SAVED}/table"},
            "access": {"peers": ["127.0.0.0/8"], "rateLimit": {"perSecond": 0}}, **changes,
        }  # fmt: skip
        fresh = self.config / "fresh"
        fresh.write_text(yaml.safe_dump(settings))
        fresh.replace(self.config / "canal-dns.yaml")

    upstream = 0

    def ready(self):
        """Two interpreters and a compiler come before it, one after the other."""
        wait_for(lambda: self.popen.poll() is not None or any("bindings and reasons: " in line for line in self.lines), 60)
        assert self.popen.poll() is None, self.errors
        wait_for(lambda: self.get("/ready")[0] == 200, what="/ready")
        return self

    def processes(self):
        """Process id -> its status file, of all that belong to it."""
        pid = self.popen.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return {
            one: dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
            for one in (pid, *map(int, children))
        }

    def inside(self, path):
        """A path as the server sees it."""
        return Path(f"/proc/{self.popen.pid}/root{path}")


@pytest.fixture
async def api(folder):
    """An API server with the demo's objects, and the account of a pod."""
    authority = Authority(folder)
    authority.sign("server", "server", hosts=("127.0.0.1",))
    async with FakeApiServer(authority) as server:
        server.bearer = TOKEN
        for path in DEMO.glob("*.yaml"):
            server.put(*(one for one in yaml.safe_load_all(path.read_text()) if one))
        server.account(folder / "account")
        yield server


@pytest.fixture
async def upstream():
    made = Upstream()
    await made.start()
    yield made
    made.transport.close()
    made.server.close()


@pytest.fixture
def start(folder, api, upstream):
    def started(**options):
        Confined.upstream = upstream.port
        return Confined(folder, api.port, **options)

    return started


def everything(server, api_put):
    """All that a server does, once; `api_put`: changes an object in the API server."""
    server.ready()
    assert server.addresses(HELLO) == ["10.96.9.9"] == server.addresses(HELLO, tcp=True)
    assert server.addresses(OTHER) == server.addresses(OTHER, tcp=True) == ["192.0.2.7"]
    assert server.addresses(LONG) == ["192.0.2.7"]  # by TCP to the upstream
    api_put("10.96.9.8")
    wait_for(lambda: server.addresses(HELLO) == ["10.96.9.8"], what="a change in the API server")
    saved = server.inside(f"{SAVED}/table")
    wait_for(lambda: saved.exists() and b"10.96.9.8" in saved.read_bytes(), what="the saved table")
    server.configure(ttl=9)
    wait_for(lambda: server.ask(HELLO).answer[0].ttl == 9, what="the new configuration")
    server.configure(ttl=9, admin="127.0.0.1:0", listen=["127.0.0.1:0"])
    server.error_with("changed: listen")
    before = set(server.processes())
    os.kill(max(before), signal.SIGKILL)
    wait_for(lambda: len(server.processes()) == 3 and set(server.processes()) != before, what="another worker")
    wait_for(lambda: "canal_dns_workers 2.0" in server.get("/metrics")[1], what="two workers")
    wait_for(lambda: answers(server), what="an answer")
    assert json.loads(server.get("/bindings")[1])["bound"]


def answers(server):
    try:
        dns.query.udp(dns.message.make_query(HELLO, "A"), server.address[0], 0.5, server.address[1])
    except dns.exception.Timeout:
        return False
    return True


def change(api, loop):
    """Gives what moves the gateway's Service to another address, from any thread."""

    def put(address):
        service = dict(api.objects("services")["istio-system", "internalgateway"])
        service["spec"] = {**service["spec"], "clusterIP": address, "clusterIPs": [address]}
        loop.call_soon_threadsafe(api.put, service)

    return put


async def test_everything_works_without_a_right(start, api):
    put = change(api, asyncio.get_running_loop())

    def run():
        with start() as server:
            everything(server, put)
            for pid, status in server.processes().items():
                assert status["Uid"].split() == status["Gid"].split() == ["65532"] * 4
                assert status["Groups"].split() == []
                assert {
                    key: int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
                } == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)
                assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
                assert writable(pid) == {SAVED}
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            assert not [line for line in server.errors if "Traceback" in line or "Operation not permitted" in line]

    await asyncio.to_thread(run)


def writable(pid):
    """Mounts that are not read-only, without what every container has; the last one at a place hides the others."""
    mounts = {line.split()[4]: line.split()[5] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    return {path for path, how in mounts.items() if "rw" in how.split(",") and path.split("/")[1] not in ("proc", "sys", "dev")}


# -- what workers do not have ------------------------------------------------------------------------------------------


def memory(pid):
    """Everything that can be read in the memory of a process."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", 0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            first, last = (int(part, 16) for part in span.split("-"))
            if rights.startswith("r") and "[v" not in line:
                try:
                    file.seek(first)
                    found.append(file.read(last - first))
                except OSError:
                    continue
    return b"\0".join(found)


def traces(pid):
    """Where the token, or a library that would need it, shows in a process."""
    held = memory(pid)
    found = {word for word in (TOKEN, "kubernetes_asyncio/", "aiohttp/") if word.encode() in held}
    if TOKEN in Path(f"/proc/{pid}/environ").read_text():
        found.add("environment")
    opened = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    found |= {path for path in opened if re.search(r"serviceaccount|kubeconfig|token", path)}
    return found


async def test_workers_have_no_token(start, api):
    """The control process is looked at in the same way, or the look would prove nothing."""

    def run():
        with start(profile=None) as server:
            server.ready()
            pids = sorted(server.processes())
            assert len(pids) == 3
            assert server.popen.pid == pids[0]
            assert {TOKEN, "aiohttp/", "kubernetes_asyncio/"} <= traces(pids[0])
            assert {pid: traces(pid) for pid in pids[1:]} == {pid: set() for pid in pids[1:]}

    await asyncio.to_thread(run)


# -- the profile -------------------------------------------------------------------------------------------------------

TRIED = {
    "mount": (0, 0, 0, 0, 0), "unshare": (0x10000000,), "ptrace": (0, 0, 0, 0), "bpf": (0, 0, 0), "keyctl": (0,),
    "setns": (-1, 0), "chroot": (0,), "init_module": (0, 0, 0), "perf_event_open": (0, 0, 0, -1, 0), "io_uring_setup": (1, 0),
    "process_vm_readv": (1, 0, 0, 0, 0, 0), "userfaultfd": (0,), "setuid": (0,), "kexec_load": (0, 0, 0, 0),
}  # fmt: skip
REFUSED = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, (number, arguments) in json.loads(sys.argv[1]).items():
    found[name] = 0 if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()
print(json.dumps(found))
"""


def tried(calls):
    """{system call: errno} under the profile; 0 where it is done."""
    known = seccomp.numbers()
    given = json.dumps({name: (known[number or name], arguments) for name, (number, arguments) in calls.items()})
    command = [sys.executable, "-m", "tests.seccomp", str(seccomp.PROFILE), "--", sys.executable, "-c", REFUSED, given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=confined.ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_not_in_the_profile_is_refused_even_to_root():
    calls = {name: ("", arguments) for name, arguments in TRIED.items()}
    assert tried(calls) == dict.fromkeys(TRIED, errno.EPERM)


def test_arguments_count():
    namespace, thread = 0x10000000, 0
    assert tried(
        {
            "a user namespace": ("clone", (namespace | signal.SIGCHLD, 0, 0, 0, 0)),
            "its newer form": ("clone3", (thread, 0)),
            "a packet socket": ("socket", (17, 3, 0)),
            "a socket of the Internet": ("socket", (2, 2, 0)),
        }
    ) == {
        "a user namespace": errno.EPERM, "its newer form": errno.ENOSYS, "a packet socket": errno.EPERM,
        "a socket of the Internet": 0,
    }  # fmt: skip


def test_the_profile_is_well_formed():
    profile = json.loads(seccomp.PROFILE.read_text())
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", errno.EPERM)
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]
    allowed = [rule["names"] for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    assert all(names == sorted(set(names)) for names in allowed)
    names = {name for rule in allowed for name in rule}
    assert not names & TRIED.keys()
    assert len(names) < 150  # Docker's own profile allows more than 300


@pytest.mark.parametrize(
    "spoilt",
    [
        {"architectures": []},
        {"defaultAction": "SCMP_ACT_TRACE"},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {}}]},
        {
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GT"}]}
            ]
        },
    ],
)
def test_what_the_loader_does_not_understand_is_an_error(spoilt):
    with pytest.raises(ValueError):
        seccomp.program({**json.loads(seccomp.PROFILE.read_text()), **spoilt}, {"read": 0})
