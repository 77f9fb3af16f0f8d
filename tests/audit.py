"""Known vulnerabilities of what canal-dns is made with: `python -m tests.audit`, or `make audit`.

Looked at are requirements.txt, which is what the image has, and the packages of this environment, which is what the tests ran
with. pip-audit asks the advisory service of the package index.

Rules of this file:
- a finding ends with status 1, until it is mended or stands in ACCEPTED with the reason;
- what could not be asked is no "nothing found": it is said loudly, and ends with 0, or with 2 where `--strict` was given. A
  package index that knows no advisories answers pip-audit as if it had none.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements.txt"

ACCEPTED: Mapping[str, str] = {}
"""Advisory (its id, or an alias) -> why it does not concern canal-dns."""

SETS: Mapping[str, Sequence[str]] = {
    "requirements.txt": ("--requirement", str(REQUIREMENTS), "--require-hashes", "--disable-pip", "--no-deps"),
    "this environment": ("--local", "--skip-editable"),
}
_OURS = "canal-dns"
_TIME = 300.0


@dataclass
class Audit:
    """What was found out about one set of packages."""

    packages: int = 0
    findings: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Packages that were not asked about, and why; or why nothing was."""


def read(said: str) -> Audit:
    """pip-audit's JSON. Raises ValueError."""
    audit = Audit()
    for package in json.loads(said)["dependencies"]:
        name = package["name"]
        if name == _OURS:
            continue
        audit.packages += 1
        if "skip_reason" in package:
            audit.unknown.append(f"{name}: {package['skip_reason']}")
            continue
        for one in package["vulns"]:
            _judge(audit, name, package["version"], one)
    return audit


def _judge(audit: Audit, name: str, version: str, one: Mapping[str, Any]) -> None:
    ids = [one["id"], *one.get("aliases", ())]
    reason = next((ACCEPTED[each] for each in ids if each in ACCEPTED), "")
    mended = f"; mended in {', '.join(one['fix_versions'])}" if one.get("fix_versions") else ""
    line = f"{name} {version}: {', '.join(ids)}{mended}"
    if reason:
        audit.accepted.append(f"{line}: {reason}")
    else:
        audit.findings.append(line)


def run(arguments: Sequence[str]) -> Audit:
    """Ask about one set."""
    if importlib.util.find_spec("pip_audit") is None:
        return Audit(unknown=["pip-audit is not installed (it is in the extra `audit`)"])
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
        *arguments,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIME, check=False)
    except subprocess.TimeoutExpired:
        return Audit(unknown=[f"no answer within {_TIME:g} s"])
    try:
        return read(done.stdout)
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Audit(unknown=[f"pip-audit ended with {done.returncode}: {last[:300]}"])


def report(name: str, audit: Audit) -> list[str]:
    """Lines for people."""
    known = audit.packages - len(audit.unknown)
    lines = [f"{name}: FOUND {one}" for one in audit.findings]
    lines += [f"{name}: accepted: {one}" for one in audit.accepted]
    if audit.unknown:
        what = "NOT RUN" if known <= 0 else f"NOT RUN for {len(audit.unknown)} of {audit.packages} packages"
        lines.append(f"!!! {name}: AUDIT {what}: {audit.unknown[0]}")
    if known > 0:
        lines.append(f"{name}: {known} packages asked about, {len(audit.findings)} findings")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("--strict", action="store_true", help="status 2 where a package could not be asked about")
    strict = parser.parse_args(argv).strict
    audits = {name: run(arguments) for name, arguments in SETS.items()}
    for name, audit in audits.items():
        print("\n".join(report(name, audit)), flush=True)
    if any(audit.findings for audit in audits.values()):
        return 1
    if any(audit.unknown for audit in audits.values()):
        print("What was not asked about may have known vulnerabilities: run this where advisories can be asked for.")
        return 2 if strict else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
