"""values.yaml as the table of the chart's README, and its "# --" comments as descriptions.

Rules of this file:
- a description is the block of "# --" lines right above its key;
- a row is a key whose value is not a mapping, and a mapping that is described itself (its value is then one).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from manifests.tools.places import CHART, MADE

BEGIN, END = f"<!-- values: {MADE} -->", "<!-- end of values -->"


def descriptions(text: str) -> dict[str, str]:
    """{dotted key: description}."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    pending: list[str] = []
    for line in text.splitlines():
        if comment := re.match(r" *# -- (.*)$", line):
            pending.append(comment[1])
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            indent = len(match[1])
            above = [(level, name) for level, name in above if level < indent] + [(indent, match[2])]
            if pending:
                found[".".join(name for _, name in above)] = " ".join(pending)
            pending = []
        else:
            pending = []
    return found


def table() -> str:
    """The Markdown table of all values."""
    text = (CHART / "values.yaml").read_text()
    described = descriptions(text)
    lines = ["| value | default | |", "|---|---|---|"]
    for where, value in _rows("", yaml.safe_load(text), described):
        default = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| `{where}` | `{default}` | {described.get(where, '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _rows(path: str, values: dict[str, Any], described: dict[str, str]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        where = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value and where not in described and not _is_kubernetes(where):
            rows += _rows(where, value, described)
        else:
            rows.append((where, value))
    return rows


def _is_kubernetes(where: str) -> bool:
    """Mappings that are handed on as they are make one row."""
    return where.startswith("probes.") or where.rpartition(".")[2] in ("nodeSelector", "resources", "securityContext", "labels")


def make() -> dict[Path, str]:
    path = CHART / "README.md"
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return {path: f"{before}{BEGIN}\n{table()}\n{END}{after}"}
