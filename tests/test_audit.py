"""The audit of dependencies: a finding fails, an advisory service that says nothing is no clean bill; the lock of the image."""

import configparser
import json
import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import audit
from tests.audit import REQUIREMENTS, ROOT

VULNERABLE = {
    "name": "aiohttp",
    "version": "3.12.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3.12.1"], "description": ""}],
}
FINE = {"name": "pyyaml", "version": "6.0.2", "vulns": []}
UNKNOWN = {"name": "uvloop", "skip_reason": "Dependency not found on PyPI and could not be audited: uvloop (0.23.0)"}
OURS = {"name": "canal-dns", "skip_reason": "not on PyPI"}


def said(*packages):
    return json.dumps({"dependencies": packages, "fixes": []})


def ended(monkeypatch, capsys, *packages, strict=False):
    """Exit status and output, when pip-audit says this of every set."""
    monkeypatch.setattr(audit, "run", lambda _: audit.read(said(*packages)))
    return audit.main(["--strict"] if strict else []), capsys.readouterr().out


def test_nothing_found(monkeypatch, capsys):
    status, out = ended(monkeypatch, capsys, FINE, OURS, strict=True)
    assert status == 0 and "requirements.txt: 1 packages asked about, 0 findings" in out


def test_a_finding_fails(monkeypatch, capsys):
    status, out = ended(monkeypatch, capsys, FINE, VULNERABLE, UNKNOWN)
    assert status == 1 and "FOUND aiohttp 3.12.0: PYSEC-1, CVE-1; mended in 3.12.1" in out


def test_a_finding_that_is_accepted_is_told_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-1": "no server of aiohttp runs here"})
    status, out = ended(monkeypatch, capsys, VULNERABLE)
    assert status == 0 and "no server of aiohttp runs here" in out and "FOUND" not in out


@pytest.mark.parametrize(("strict", "status"), [(False, 0), (True, 2)])
def test_an_index_without_advisories_is_no_clean_bill(monkeypatch, capsys, strict, status):
    ends, out = ended(monkeypatch, capsys, UNKNOWN, UNKNOWN, strict=strict)
    assert ends == status and "AUDIT NOT RUN: uvloop" in out and "0 findings" not in out


def test_a_part_that_was_not_asked_about_is_told(monkeypatch, capsys):
    status, out = ended(monkeypatch, capsys, FINE, UNKNOWN)
    assert status == 0 and "AUDIT NOT RUN for 1 of 2 packages" in out


def test_a_service_that_cannot_be_reached_is_told(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ConnectionError: no such host' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(audit.sys, "executable", str(broken))
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda _: object())
    assert audit.run(()).unknown == ["pip-audit ended with 1: ConnectionError: no such host"]


def test_without_the_program_it_is_told(monkeypatch):
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda _: None)
    assert "not installed" in audit.run(()).unknown[0]


# -- what the image has ------------------------------------------------------------------------------------------------


def locked():
    """{package: version}"""
    pins = re.findall(
        r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", REQUIREMENTS.read_text(), re.MULTILINE
    )
    return {canonicalize_name(name): version for name, version, _ in pins}


def wanted():
    """What setup.cfg asks for at run time."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return [Requirement(line) for line in parser["options"]["install_requires"].split("\n") if line]


def test_every_line_of_the_lock_is_a_version_with_hashes():
    names = re.findall(r"^([a-z][\w.-]*)", REQUIREMENTS.read_text(), re.MULTILINE | re.IGNORECASE)
    assert len(locked()) == len(names) > len(wanted())


def test_the_lock_is_what_setup_cfg_asks_for_and_what_that_needs():
    """Followed through the packages that are installed here in the locked version."""
    pins, seen, todo = locked(), set(), wanted()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        assert requirement.specifier.contains(pins[name]), f"{requirement}: locked is {pins[name]}; run `make lock`"
        if name not in seen and metadata.version(name) == pins[name]:
            seen.add(name)
            todo += map(Requirement, metadata.requires(name) or ())
