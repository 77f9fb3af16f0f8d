"""Programs in C that are compiled on first use: into the cache folder, under the digest of their source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.machine import cache_folder

FLOOD = Path(__file__).with_name("flood.c")
ECHO = Path(__file__).with_name("echo.c")
NEEDED = "a C compiler (Debian: gcc libc6-dev)"


def compiled(source: Path) -> Path | None:
    """The program; None where there is no compiler. Raises BenchError when the compiler refuses the source."""
    compiler = os.environ.get("CC") or next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)
    if compiler is None:
        return None
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    binary = cache_folder() / f"{source.stem}-{digest}"
    if binary.exists():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    fresh = binary.with_name(f"{binary.name}.{os.getpid()}")
    argv = [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-o", str(fresh), str(source)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise BenchError(f"{compiler} cannot build {source.name}: {done.stderr.strip()[:300]}")
    fresh.replace(binary)
    return binary
