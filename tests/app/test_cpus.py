"""What `workers: auto` means under the limits that containers have: made-up trees of cgroups and what /proc says of them."""

import os

import pytest

from canal_dns.app import cpus


@pytest.fixture
def affinity(monkeypatch):
    def allow(count):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))

    allow(16)
    return allow


@pytest.fixture
def host(tmp_path):
    """Writes /proc/self/cgroup and mountinfo, and files of cgroups; gives the /proc/self."""

    def make(cgroup, mounts, files):
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text(cgroup)
        lines = [
            f"{number} 1 0:{number} {root} {tmp_path}{at} rw,nosuid - {kind} {kind} rw,{options}\n"
            for number, (kind, root, at, options) in enumerate(mounts)
        ]
        (proc / "mountinfo").write_text("23 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "".join(lines))
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return proc

    return make


V2 = [("cgroup2", "/", "/sys", "nsdelegate")]
V1 = [("cgroup", "/", "/sys/memory", "memory"), ("cgroup", "/", "/sys/cpu,cpuacct", "cpu,cpuacct")]
HYBRID = [*V1, ("cgroup2", "/", "/sys/unified", "")]


def period(quota):
    return {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}


def v1(folder, quota):
    return {f"{folder}/{name}": text for name, text in period(quota).items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", 16), ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000", 1), ("2500000 100000", 16),
        ("1 100000", 1), ("", 16), ("garbage\n", 16), ("100000 0", 16), ("max", 16),
    ],
)  # fmt: skip
def test_the_quota_of_cgroup_v2(host, affinity, text, expected):
    assert cpus.usable(host("0::/\n", V2, {"sys/cpu.max": text})) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("50000", 1), ("250000", 3), ("", 16), ("0", 16)])
def test_the_quota_of_cgroup_v1(host, affinity, quota, expected):
    assert cpus.usable(host("4:memory:/a\n1:cpu,cpuacct:/\n", V1, v1("sys/cpu,cpuacct", quota))) == expected


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({"a/b": "300000 100000"}, 3),
        ({"a/b": "max 100000", "a": "400000 100000"}, 4),
        ({"a/b": "500000 100000", "a": "200000 100000"}, 2),
        ({"a/b": "max 100000", "a": "max 100000"}, 16),
        ({"a": "700000 100000"}, 7),
        ({"a/b/c": "100000 100000", "x": "100000 100000"}, 16),
    ],
)
def test_quotas_hold_for_what_is_below(host, affinity, levels, expected):
    """The pod's cgroup has the limit, its containers' have none, or a smaller one."""
    (files := {f"sys/{folder}/cpu.max": text for folder, text in levels.items()})["sys/a/b/cgroup.procs"] = ""
    assert cpus.usable(host("0::/a/b\n", V2, files)) == expected


def test_nested_cgroups_v1(host, affinity):
    files = v1("sys/cpu,cpuacct/kubepods/pod7", "600000") | v1("sys/cpu,cpuacct/kubepods/pod7/c1", "-1")
    assert cpus.usable(host("1:cpu,cpuacct:/kubepods/pod7/c1\n", V1, files)) == 6


def test_a_hybrid_host_has_its_quota_in_v1(host, affinity):
    files = {"sys/unified/cgroup.procs": ""} | v1("sys/cpu,cpuacct", "500000")
    assert cpus.usable(host("1:cpu,cpuacct:/\n0::/\n", HYBRID, files)) == 5


@pytest.mark.parametrize(
    ("path", "root"),
    [
        # A private cgroup namespace; the host's paths with the container's own cgroup mounted; one that was moved away.
        ("/", "/"),
        ("/kubepods/pod7/c1", "/kubepods/pod7/c1"),
        ("/kubepods/pod7/c1", "/"),
        ("/../other", "/"),
        ("/system/other", "/kubepods/pod7/c1"),
    ],
)
def test_what_a_container_sees_of_itself(host, affinity, path, root):
    proc = host(f"0::{path}\n", [("cgroup2", root, "/sys", "")], {"sys/cpu.max": "200000 100000"})
    assert cpus.usable(proc) == 2


def test_a_cgroup_below_the_mounted_one(host, affinity):
    files = {"sys/inner/cpu.max": "100000 100000", "sys/cpu.max": "300000 100000"}
    assert list(cpus.quotas(host("0::/pod/inner\n", [("cgroup2", "/pod", "/sys", "")], files))) == [1.0, 3.0]


def test_the_smaller_of_quota_and_affinity(host, affinity):
    proc = host("0::/\n", V2, {"sys/cpu.max": "400000 100000"})
    for count, expected in ((1, 1), (3, 3), (4, 4), (8, 4)):
        affinity(count)
        assert cpus.usable(proc) == expected


def test_no_cgroup_is_no_limit(tmp_path, affinity, host):
    assert cpus.usable(tmp_path / "absent") == 16
    assert cpus.usable(host("garbage\n\n::\n", [], {})) == 16


def test_on_this_machine():
    assert 1 <= cpus.usable() <= len(os.sched_getaffinity(0))
