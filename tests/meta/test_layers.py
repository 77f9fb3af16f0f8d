"""The import contracts of setup.cfg: they hold, and each of them would notice."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.tree import PACKAGE, ROOT

LINT = Path(sys.executable).with_name("lint-imports")

BAD = {
    "A line imports only the lines below it": ("mesh/view.py", "from canal_dns.server import sockets"),
    "The rule knows of DNS only what a name is": ("mesh/binding.py", "from canal_dns.dns import wire"),
    "dns, mesh and settings decide: no sockets, clocks, logs, randomness or operating system": ("dns/wire.py", "import socket"),
    "Only dns.message imports dnslib": ("dns/table.py", "import dnslib"),
    "Only app.loop imports uvloop": ("server/udp.py", "import uvloop"),
    "Only metrics and admin import prometheus_client": ("server/tcp.py", "import prometheus_client"),
    "Only server and admin open sockets": ("kube/files.py", "import socket"),
    "The packet loop is chosen in one place": ("server/udp.py", "from canal_dns.server import _batch_py"),
    "Only kube.cluster may import kubernetes_asyncio": ("kube/files.py", "import kubernetes_asyncio"),
}
"""Contract (by the beginning of its name): a module, and an import in it that breaks the contract."""

UNWELCOME = ("asyncio", "logging", "os", "pathlib", "random", "select", "ssl", "subprocess", "threading", "time")


def lint(folder):
    """{contract: kept?}, and what the linter says."""
    if not LINT.exists():
        pytest.fail("lint-imports is not installed beside this Python: pip install import-linter")
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "300", "NO_COLOR": "1"}
    done = subprocess.run([LINT, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    verdicts = {match[1].strip(): match[2] == "KEPT" for match in re.finditer(r"^(.+?) (KEPT|BROKEN)\b", text, re.MULTILINE)}
    assert (done.returncode == 0) == (bool(verdicts) and all(verdicts.values())), text
    return verdicts, text


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The package and its contracts, to be spoilt."""
    folder = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(PACKAGE, folder / "canal_dns", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def test_the_contracts_hold():
    verdicts, text = lint(ROOT)
    assert verdicts and all(verdicts.values()), text


def test_every_contract_would_notice(copied):
    """All bad imports at once: each contract must be broken, those of the standard library too."""
    for path, line in BAD.values():
        with (copied / "canal_dns" / path).open("a") as file:
            file.write(f"\n\ndef _bad() -> None:\n    {line}\n")
    verdicts, text = lint(copied)
    for contract in BAD:
        assert [held for name, held in verdicts.items() if name.startswith(contract)] == [False], f"{contract}\n{text}"
    assert len(verdicts) == len(BAD), "a contract without a row here"


def test_an_extension_is_chosen_in_one_place():
    """The linter does not see those, since they are no Python files. For a type checker they may be named anywhere."""
    unseen = re.compile(r"^if TYPE_CHECKING:\n(?:    .*\n|\n)*", re.MULTILINE)
    places = {path.stem: unseen.sub("", path.read_text()) for path in (PACKAGE / "server").glob("*.py")}
    for extension in (path.stem for path in (PACKAGE / "server").glob("*.pyx")):
        imports = re.compile(rf"import .*\b{extension}\b|\b{extension} import")
        assert len([name for name, text in places.items() if imports.search(text)]) == 1, extension


def test_the_linter_sees_the_standard_library(copied):
    (copied / "canal_dns" / "dns" / "extra.py").write_text("".join(f"import {module}\n" for module in UNWELCOME))
    _, text = lint(copied)
    for module in UNWELCOME:
        assert f"canal_dns.dns.extra -> {module}" in text, module
