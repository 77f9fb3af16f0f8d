"""Writes requirements.txt, what the image is built with: `python -m tests.lock`, or `make lock`.

Rules of this file:
- versions and hashes of every platform's files, chosen by pip-tools from setup.cfg, newest first;
- on the lowest Python that is supported: what only older ones need does no harm on newer ones, the reverse would be missing;
- where packages come from is this machine's business and not written down.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.audit import REQUIREMENTS, ROOT

LOWEST = (3, 11)
HEAD = "# What the image has, with hashes, for every platform: made by `make lock` of setup.cfg, not by hand.\n"
OPTIONS = ("--quiet", "--upgrade", "--generate-hashes", "--strip-extras", "--no-annotate", "--no-header", "--no-emit-options")


def main() -> int:
    if sys.version_info[:2] != LOWEST:
        print(f"this is Python {sys.version_info.major}.{sys.version_info.minor}: the lock is made on {LOWEST[0]}.{LOWEST[1]}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "requirements.txt"
        subprocess.run(
            [sys.executable, "-m", "piptools", "compile", *OPTIONS, "-o", str(made), "setup.cfg"], cwd=ROOT, check=True
        )
        REQUIREMENTS.write_text(HEAD + made.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
