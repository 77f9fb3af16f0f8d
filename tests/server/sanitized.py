"""`python -m tests.server.sanitized`: the tests of the extensions, built with gcc's address and undefined behaviour sanitizers.

Rules of this file:
- everything happens in a copy: the extensions that are installed stay what they are;
- the first error of a sanitizer ends the run; leaks are not looked for, they have a test of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("canal_dns", "config", "tests", "setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
TESTS = ("test_batch.py", "test_exempt.py", "test_udp.py", "test_forwarding.py", "../fuzz/test_corpus.py")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="canal-dns-sanitized-") as name:
        folder = Path(name)
        for part in COPIED:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copy(ROOT / part, folder)
        environment = os.environ | {"CANAL_DNS_SANITIZE": "1", "CANAL_DNS_STRICT": "1", "PYTHONPATH": name}
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=environment, check=True)
        libraries = [
            subprocess.run(["cc", f"-print-file-name={library}"], capture_output=True, text=True, check=True).stdout.strip()
            for library in ("libasan.so", "libubsan.so")
        ]
        environment |= {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONMALLOC": "malloc",
            "CANAL_DNS_REQUIRE_NATIVE": "1",
        }
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=300"]
        pytest += [f"tests/server/{test}" for test in TESTS if (ROOT / "tests" / "server" / test).exists()]
        return subprocess.run([*pytest, *sys.argv[1:]], cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
