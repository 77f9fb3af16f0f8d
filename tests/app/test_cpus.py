"""What `workers: auto` means under the limits that containers have."""

import os

import pytest

from canal_dns.app import cpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", None), ("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("", None), ("garbage\n", None)],
)
def test_cgroup_v2_quota(tmp_path, text, expected):
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert cpus.quota_v2(path) == expected


def test_no_cgroup_is_no_limit(tmp_path):
    assert cpus.quota_v2(tmp_path / "absent") is None
    assert cpus.quota_v1(tmp_path / "absent") is None


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("50000", 0.5), ("250000", 2.5)])
def test_cgroup_v1_quota(tmp_path, quota, expected):
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu.cfs_period_us").write_text("100000")
    assert cpus.quota_v1(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "affinity", "expected"),
    [("50000 100000", 8, 1), ("250000 100000", 8, 3), ("900000 100000", 4, 4), ("max 1", 6, 6)],
)
def test_the_smaller_of_quota_and_affinity(tmp_path, monkeypatch, quota, affinity, expected):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(cpus, "CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(cpus, "CGROUP_V1", tmp_path / "absent")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    assert cpus.usable() == expected
