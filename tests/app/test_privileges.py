"""Root becomes an ordinary user: what is left of its rights, when it stays root, and what it says.

As root on Linux only; the processes run in a mount namespace of their own (tests/confined.py), where a user who is nobody may
come to this Python, wherever it is.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest
import yaml

from canal_dns.app import needs, privileges
from canal_dns.cli import main
from canal_dns.errors import ConfigError, PrivilegeError
from canal_dns.settings import ClusterSettings, ProcessSettings, Settings, SnapshotSettings, SourceSettings, User
from tests import confined
from tests.process import DEMO, Process, Server, wait_for

HELLO = "helloworld.default.svc.cluster.local"
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
NET_BIND_SERVICE = f"{1 << 10:016x}"
NOTHING = f"{0:016x}"


@pytest.fixture(scope="module", autouse=True)
def _possible():
    if why := confined.unable():
        if os.environ.get("CI") == "true" and os.geteuid() == 0:
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture
def config(folder):
    def write(**settings):
        fresh = folder / "fresh"
        fresh.write_text(
            yaml.safe_dump(
                {
                    "upstreams": ["127.0.0.1:9"], "source": {"manifests": str(DEMO)}, "workers": 1, "lameduck": 0,
                    "listen": ["127.0.0.1:0"], "admin": "127.0.0.1:0", "binding": {"settle": 0}, **settings,
                }
            )
        )  # fmt: skip
        fresh.chmod(0o644)
        return fresh.rename(folder / "canal-dns.yaml")

    return write


class Configured(Server):
    def __init__(self, path, *arguments, prefix=None):
        Process.__init__(self, "serve", "-c", str(path), *arguments, prefix=confined.command() if prefix is None else prefix)

    def ready(self):
        """Workers have the table, too."""
        super().ready()
        wait_for(lambda: self.get("/ready")[0] == 200, what="/ready")
        return self


def status(pid):
    return {
        key: value.split()
        for key, _, value in (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    }


def workers(server):
    return [int(pid) for pid in Path(f"/proc/{server.popen.pid}/task/{server.popen.pid}/children").read_text().split()]


def everybody(server):
    return [server.popen.pid, *workers(server)]


def check(pid, user, capabilities=NOTHING):
    said = status(pid)
    assert (said["Uid"], said["Gid"], said["Groups"]) == ([str(user.uid)] * 4, [str(user.gid)] * 4, [])
    assert {key: said[key] for key in CAPABILITIES} == {key: [capabilities] for key in CAPABILITIES}
    assert said["NoNewPrivs"] == ["1"]


def low_port():
    """A port that only root may bind, free for UDP and TCP."""
    for port in range(1023, 600, -1):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def test_root_becomes_nobody_and_all_rights_go(config):
    with Configured(config()) as server:
        server.ready()
        assert "user 65532:65532 without capabilities" in server.lines[0]
        assert len(workers(server)) == 1
        for pid in everybody(server):
            check(pid, privileges.NOBODY)
        assert Path(f"/proc/{server.popen.pid}/mem").stat().st_uid == 0, "others of that user may read its memory"
        assert server.addresses(HELLO) == ["10.96.9.9"]
        assert not [line for line in server.errors if "root" in line]


def test_a_port_below_1024_keeps_the_right_to_bind_and_no_other(config):
    """Also in a worker that is started later, and binds again."""
    with Configured(config(listen=[f"127.0.0.1:{low_port()}"])) as server:
        server.ready()
        assert "user 65532:65532 with capability NET_BIND_SERVICE" in server.lines[0]
        (first,) = workers(server)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: workers(server) not in ([first], []), what="another worker")
        for pid in everybody(server):
            check(pid, privileges.NOBODY, NET_BIND_SERVICE)
        wait_for(lambda: answers(server), what="an answer")
        assert server.addresses(HELLO, tcp=True) == ["10.96.9.9"]


def answers(server):
    """A question that comes while there is no worker is lost."""
    try:
        dns.query.udp(dns.message.make_query(HELLO, "A"), server.address[0], 0.5, server.address[1])
    except dns.exception.Timeout:
        return False
    return True


def test_a_low_port_of_the_admin_endpoints_counts_too(config):
    with Configured(config(admin=f"127.0.0.1:{low_port()}", workers=0)) as server:
        server.ready()
        check(server.popen.pid, privileges.NOBODY, NET_BIND_SERVICE)
        assert server.get("/ready")[0] == 200


def test_a_user_of_ones_own(config):
    with Configured(config(user="1234:1235")) as server:
        server.ready()
        for pid in everybody(server):
            check(pid, User(1234, 1235))


def test_root_that_is_meant_says_nothing(config):
    with Configured(config(workers=0), "--user", "0") as server:
        server.ready()
        assert status(server.popen.pid)["Uid"] == ["0"] * 4
        assert "user 0:0" in server.lines[0]
        assert not [line for line in server.errors if "root" in line]


# -- what is in the way ------------------------------------------------------------------------------------------------


@pytest.fixture
def obstacle(request, folder, config):
    """(configuration, the path that is in the way)"""
    match request.param:
        case "the configuration":
            path = config()
            path.chmod(0o600)
            return path, path
        case "its folder":
            path = config()
            folder.chmod(0o700)
            return path, folder
        case "a manifest":
            copied = shutil.copytree(DEMO, folder / "manifests")
            (copied / "gateway.yaml").chmod(0o600)
            return config(source={"manifests": str(copied)}), copied / "gateway.yaml"
        case "the folder of the saved table":
            (folder / "saved").mkdir()
            return config(snapshot={"path": str(folder / "saved" / "table")}), folder / "saved"
        case "the saved table":
            (folder / "saved").mkdir()
            (folder / "saved").chmod(0o777)
            (folder / "saved" / "table").touch(0o600)
            return config(snapshot={"path": str(folder / "saved" / "table")}), folder / "saved" / "table"
        case "a kubeconfig":
            path = kubeconfig(folder)
            path.chmod(0o600)
            return config(source={"cluster": {"kubeconfig": str(path)}}), path
        case "a key beside it":
            path = kubeconfig(folder)
            (folder / "client.key").touch(0o600)
            return config(source={"cluster": {"kubeconfig": str(path)}}), folder / "client.key"
    raise AssertionError(request.param)


def kubeconfig(folder):
    path = folder / "kubeconfig"
    cluster = {"server": "https://127.0.0.1:1"}
    user = {"client-key": "client.key", "client-certificate": "gone.crt", "exec": {"command": "true"}}
    path.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path


OBSTACLES = pytest.mark.parametrize(
    "obstacle",
    [
        "the configuration", "its folder", "a manifest", "the folder of the saved table", "the saved table", "a kubeconfig",
        "a key beside it",
    ],
    indirect=True,
)  # fmt: skip


@pytest.mark.parametrize("obstacle", ["its folder", "the folder of the saved table"], indirect=True)
def test_by_itself_it_stays_root_and_names_what_is_in_the_way(obstacle):
    path, culprit = obstacle
    with Configured(path) as server:
        line = server.error_with("this process stays root")
        server.line_with("listening on")
        assert "WARNING" in line and str(culprit) in line and 'user: "0"' in line
        assert status(server.popen.pid)["Uid"] == ["0"] * 4
        assert len([line for line in server.errors if "stays root" in line]) == 1


@OBSTACLES
def test_a_user_that_is_named_must_be_possible(obstacle):
    path, culprit = obstacle
    with Configured(path, "--user", "65532") as server:
        assert server.wait() == 2
        assert len(server.errors) == 1 and server.errors[0].startswith("canal-dns: user: '65532:65532' is not usable; ")
        assert str(culprit) in server.errors[0]


def test_the_saved_table_is_written_by_the_new_user(folder, config):
    saved = folder / "saved"
    saved.mkdir()
    os.chown(saved, 65532, 65532)
    with Configured(config(snapshot={"path": str(saved / "table")})) as server:
        server.ready()
        wait_for((saved / "table").exists, what="a saved table")
        assert (saved / "table").stat().st_uid == 65532


def test_a_python_that_nobody_can_run_is_in_the_way():
    """As most are that stand in root's home."""
    locked = Path(sys.executable).resolve()
    if all(parent.stat().st_mode & 0o001 for parent in locked.parents):
        pytest.skip("everybody may run this Python")
    with Server(prefix=()) as server:
        assert f"cannot run {sys.executable}" in server.error_with("this process stays root")


def test_root_that_may_not_become_anybody_stays_root(config):
    """A container that was left root, but none of root's capabilities."""
    prefix = [*confined.command(), "setpriv", "--bounding-set=-setuid,-setgid"]
    with Configured(config(), prefix=prefix) as server:
        assert "cannot be had here (Operation not permitted)" in server.error_with("this process stays root")
        server.ready()
    with Configured(config(user="65532"), prefix=prefix) as server:
        assert server.wait() == 2


def test_without_the_right_to_shrink_the_bounding_set_the_rest_goes(config):
    prefix = [*confined.command(), "setpriv", "--bounding-set=-setpcap"]
    with Configured(config(), prefix=prefix) as server:
        server.ready()
        said = status(server.popen.pid)
        assert said["Uid"] == ["65532"] * 4
        assert {key: said[key] for key in ("CapPrm", "CapEff", "CapAmb", "NoNewPrivs")} == {
            "CapPrm": [NOTHING], "CapEff": [NOTHING], "CapAmb": [NOTHING], "NoNewPrivs": ["1"],
        }  # fmt: skip


# -- who is not root ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--user", "65532")])
def test_an_ordinary_user_stays_what_it_is(config, arguments):
    with Configured(config(), *arguments, prefix=confined.command(user=65532)) as server:
        server.ready()
        assert "user 65532:65532 without capabilities" in server.lines[0]
        assert not [line for line in server.errors if "root" in line]


@pytest.mark.parametrize("wish", ["0", "65532:1"])
def test_an_ordinary_user_cannot_become_another(config, wish):
    with Configured(config(), "--user", wish, prefix=confined.command(user=65532)) as server:
        assert server.wait() == 2
        assert "this process was started as 65532:65532, and only root can become another" in server.errors[0]


# -- later -------------------------------------------------------------------------------------------------------------


def test_a_reload_does_not_change_it(config):
    with Configured(config(workers=0)) as server:
        server.ready()
        config(workers=0, user="1234", ttl=9)
        assert "a change of the user needs a restart" in server.error_with("was not taken over")
        assert server.ask(HELLO).answer[0].ttl == 5


def test_a_change_that_did_not_work_is_the_end(monkeypatch):
    """Nothing was changed: the kernel lets the process become root, since it is."""
    monkeypatch.setattr(privileges, "_rehearse", lambda *_: "")
    monkeypatch.setattr(privileges, "_become", lambda *_: None)
    with pytest.raises(PrivilegeError, match="the way back to root is open"):
        privileges.leave_root(Settings(SourceSettings(manifests=str(DEMO))), None)


def in_a_process(code):
    """Run with the module imported, as root, in a namespace of its own; gives what it printed."""
    lines = f"import ctypes, os\nfrom canal_dns.app import privileges\nfrom canal_dns.settings import User\n{code}"
    done = subprocess.run([*confined.command(), sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("os.setresgid(7, 7, 7); os.setresuid(7, 7, 7)", "Groups is '0' in"),
        ("os.setgroups([]); os.setresuid(7, 7, 7)", "Gid is '0"),
        ("os.setgroups([]); os.setresgid(7, 7, 7); os.setresuid(7, 7, 7)", "NoNewPrivs is '0' in"),
        ("privileges._become(User(7, 7), 1 << 10)", "CapInh is '0000000000000400' in"),
        ("privileges._become(User(7, 7), 0)", "None"),
    ],
)
def test_half_a_change_is_seen(step, said):
    """A thread that the change did not reach would be seen in the same way: all of them are looked at."""
    assert said in in_a_process(f"os.setgroups([0])\n{step}\nprint(privileges._verify(User(7, 7), 0))")


def test_who_asked_to_be_followed_into_death_still_does():
    code = """
libc = ctypes.CDLL(None)
libc.prctl(1, 9, 0, 0, 0)
privileges._become(User(7, 7), 0)
number = ctypes.c_int()
libc.prctl(2, ctypes.byref(number), 0, 0, 0)
print(number.value)
"""
    assert in_a_process(code) == "9"


@pytest.mark.parametrize(
    "argv",
    [
        ["demo", "--once"], ["table", "--manifests", str(DEMO)], ["explain", HELLO, "--manifests", str(DEMO)],
        ["check", "-c", str(confined.ROOT / "config" / "canal-dns.yaml")],
    ],
    ids=lambda argv: argv[0],
)  # fmt: skip
def test_only_the_server_gives_anything_up(argv, monkeypatch):
    def never(*_):
        raise AssertionError("privileges were touched")

    monkeypatch.setattr(privileges, "leave_root", never)
    assert main(argv) == 0


# -- without any process -----------------------------------------------------------------------------------------------


def test_only_the_user_that_is_named_is_strict(monkeypatch):
    monkeypatch.setattr(privileges, "_rehearse", lambda *_: "cannot read a.yaml")
    settings = Settings(SourceSettings(manifests=str(DEMO)))
    assert "user 65532:65532 cannot read a.yaml" in privileges.leave_root(settings, None)
    with pytest.raises(ConfigError, match=r"user: '7:8' is not usable; cannot read a\.yaml"):
        privileges.leave_root(Settings(settings.source, process=ProcessSettings(User(7, 8))), None)


def test_a_child_that_dies_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(privileges, "_try", lambda *_: os._exit(3))
    assert privileges._rehearse(privileges.NOBODY, 0, []) == "cannot be tried here"


def needed(folder, settings, config=None):
    return {need for need in needs.files(settings, config) if Path(need.path).is_relative_to(folder)}


def test_what_is_not_there_yet_may_come(tmp_path):
    """The way to it must be open, as far as there is one."""
    settings = Settings(SourceSettings(manifests=str(tmp_path / "gone" / "manifests")))
    assert needs.Need(str(tmp_path), needs.Act.PASS) in needed(tmp_path, settings, tmp_path / "gone.yaml")


def test_a_folder_of_manifests_is_needed_with_all_that_is_read_of_it(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one.yaml", "a/b/two.json", "a/notes.txt", ".hidden.yaml"):
        (tmp_path / name).touch()
    folders = {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    files = {tmp_path / "one.yaml", tmp_path / "a" / "b" / "two.json"}
    assert needed(tmp_path, Settings(SourceSettings(manifests=str(tmp_path)))) == {
        *(needs.Need(str(path), needs.Act.LIST) for path in folders),
        *(needs.Need(str(path), needs.Act.READ) for path in files),
    }


def test_a_saved_table_is_replaced_in_a_folder_where_only_owners_may(tmp_path):
    (tmp_path / "table").touch()
    settings = Settings(SourceSettings(manifests="/gone"), snapshot=SnapshotSettings(path=str(tmp_path / "table")))
    assert needs.Act.REPLACE not in {need.act for need in needed(tmp_path, settings)}
    tmp_path.chmod(0o1777)
    assert needs.Need(str(tmp_path / "table"), needs.Act.REPLACE) in needed(tmp_path, settings)


def test_a_kubeconfig_is_needed_with_its_files_and_its_program(tmp_path):
    path = kubeconfig(tmp_path)
    (tmp_path / "client.key").touch()
    settings = Settings(SourceSettings(cluster=ClusterSettings(kubeconfig=str(path))))
    assert needed(tmp_path, settings) == {
        needs.Need(str(path), needs.Act.READ),
        needs.Need(str(tmp_path / "client.key"), needs.Act.READ),
        needs.Need(str(tmp_path), needs.Act.PASS),
    }
    assert needs.Need(shutil.which("true"), needs.Act.RUN) in needs.files(settings, None)


@pytest.mark.parametrize("text", ["", "[]", "users: {}", "users: [1, {user: 2}, {user: {exec: x}}]", "{", "\0"])
def test_a_kubeconfig_that_is_none_is_somebody_elses_to_tell(tmp_path, text):
    (tmp_path / "kubeconfig").write_text(text)
    settings = Settings(SourceSettings(cluster=ClusterSettings(kubeconfig=str(tmp_path / "kubeconfig"))))
    assert needed(tmp_path, settings) == {needs.Need(str(tmp_path / "kubeconfig"), needs.Act.READ)}


def test_what_root_cannot_do_either_is_no_need(monkeypatch, tmp_path):
    monkeypatch.setattr(needs.os, "access", lambda *_: False)
    assert needs.files(Settings(SourceSettings(manifests=str(tmp_path))), None) == []
