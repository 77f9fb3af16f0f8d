"""What a contender is: a program that may be installed, and how to write its configuration for one scenario.

Rules of this file:
- a contender writes files into the folder it is given and says what to start; it starts nothing itself;
- its server gets one worker or thread, no logs, no metrics: what it needs to answer, and nothing more;
- `note` says in the report what was configured, so that a reader can object.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import cache_folder
from benchmarks.scenarios import Scenario

_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, slots=True)
class Program:
    """A server program: where it may be, how it tells its version, how to get it."""

    binary: str
    version_argument: str
    install: str
    """What to do where it is missing, as the report says it."""
    variable: str = ""
    """An environment variable that names the binary, before all other places."""

    def find(self) -> Path | None:
        """The variable, then PATH and the folders for system programs, then the cache folder."""
        if self.variable and (named := os.environ.get(self.variable)):
            return Path(named) if os.access(named, os.X_OK) else None
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM, str(cache_folder())])
        found = shutil.which(self.binary, path=path)
        return Path(found) if found else None

    def version(self, binary: Path) -> str:
        """The first thing in its output that looks like a version; "unknown" when nothing does."""
        done = subprocess.run([binary, self.version_argument], capture_output=True, text=True, timeout=20, check=False)
        found = re.search(r"\d+\.\d+(\.\d+)?\S*", done.stdout + done.stderr)
        return found.group(0).rstrip(",)") if found else "unknown"


@dataclass(frozen=True, slots=True)
class Site:
    """Where one contender runs: its folder, its ports on 127.0.0.1, the upstream's port, and what it must answer."""

    folder: Path
    binary: Path
    port: int
    second_port: int
    third_port: int
    """For whatever else it has to listen on."""
    upstream_port: int
    scenario: Scenario
    user: str
    """Who runs the benchmark: servers that would change their user stay this one."""

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path


class Contender(ABC):
    """One program in one scenario. `key` is unique in its scenario and names it everywhere: report, JSON, --contender."""

    key: str
    program: Program
    note: str
    environment: Mapping[str, str] = {}
    children: str = ""
    """What processes are that it starts itself; empty: the same as their parent."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario

    def addresses(self, scenario: Scenario) -> Mapping[str, str]:
        """What it must answer: the scenario's addresses, unless its way of answering needs others."""
        return scenario.addresses

    @abstractmethod
    def write(self, site: Site) -> list[str]:
        """Writes the configuration into the site's folder; the command to start, in the foreground."""

    def commands(self, site: Site) -> dict[str, list[str]]:
        """What it is -> the command, all to be started, in this order: one, as a rule."""
        return {self.key: self.write(site)}

    def verify(self, site: Site) -> None:  # noqa: B027 - most have nothing to prove
        """Called once it answers: raises BenchError when it is not what `key` says."""
