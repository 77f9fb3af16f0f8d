"""The blocks of docs/layouts.md, and what a test must change in a Corefile to run it on one machine.

Rules of this file:
- a fenced block is named by its info string: "corefile A", "yaml B"; every name stands once;
- `runnable` makes these changes and no others: `kubernetes` becomes zone files, or is told its kubeconfig;
  /etc/resolv.conf becomes the test's own; and each server block is told its addresses (`bind`), because all pods share one
  network namespace here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

PATH = Path(__file__).parents[2] / "docs" / "layouts.md"

_FENCE = re.compile(r"^```(\w+) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_KUBERNETES = re.compile(r"^( *kubernetes [^{\n]*\{\n)([^}]*\}\n)", re.MULTILINE)
_OPENING = re.compile(r"^(\S+):(\d+) \{\n", re.MULTILINE)


def blocks(language: str) -> dict[str, str]:
    """All blocks of one language ("corefile", "yaml") by name. Raises ValueError when a name stands twice."""
    found: dict[str, str] = {}
    for kind, name, text in _FENCE.findall(PATH.read_text()):
        if kind == language:
            if name in found:
                raise ValueError(f"{PATH}: two blocks are called `{language} {name}`")
            found[name] = text
    return found


def openings(corefile: str) -> list[str]:
    """The keys of the server blocks, in order: ["cluster.local:53", ".:53"]."""
    return [f"{zone}:{port}" for zone, port in _OPENING.findall(corefile)]


def server_block(corefile: str, opening: str) -> str:
    """One server block of a Corefile, found by its keys (".:8053")."""
    match = re.search(rf"^{re.escape(opening)} \{{\n.*?^\}}\n", corefile, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError(f"no server block {opening!r}")
    return match[0]


def with_zones(lines: str) -> Callable[[str], str]:
    """For `runnable`: zone files, these lines of the Corefile, stand for the `kubernetes` plugin."""
    return lambda corefile: _KUBERNETES.sub(lambda _: lines, corefile)


def with_kubeconfig(path: Path) -> Callable[[str], str]:
    """For `runnable`: the `kubernetes` plugin itself, outside of a pod."""
    return lambda corefile: _KUBERNETES.sub(lambda found: f"{found[1]}        kubeconfig {path}\n{found[2]}", corefile)


def runnable(corefile: str, *, bind: Mapping[str, str], source: Callable[[str], str], resolv_conf: Path) -> str:
    """The Corefile as CoreDNS can run it here. `bind`: port -> addresses, separated by blanks."""
    text = source(corefile).replace("/etc/resolv.conf", str(resolv_conf))
    return _OPENING.sub(lambda found: f"{found[0]}    bind {bind[found[2]]}\n", text)
