"""What shim.c does to a canal-dns that it is preloaded into, ordered and counted through a file that both have in memory.

Rules of this file:
- compiled on first use, into the cache folder, under the digest of its source; without a compiler the row is not run;
- one object for one server, and all of its workers.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from benchmarks.load.build import NEEDED
from benchmarks.machine import cache_folder
from tests.faults.rows import NotRunError

SOURCE = Path(__file__).with_name("shim.c")
MILLION = 1_000_000
ALWAYS = MILLION + 1
"""As `trouble`: the kernel takes nothing at all."""
_FIELDS = ("offset", "trouble", "calls", "partial", "passing", "pending", "permanent", "in_vain", "most_in_vain")
_FORM = struct.Struct("=q8Q")


class Shim:
    """`environment` is what the server is started with."""

    def __init__(self, folder: Path) -> None:
        """Raises NotRunError where it cannot be compiled."""
        path = folder / "shim"
        path.write_bytes(bytes(_FORM.size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _FORM.size)
        self.environment = {"LD_PRELOAD": str(_library()), "CANAL_DNS_SHIM": str(path)}

    def set(self, field: str, value: int) -> None:
        """Order `offset` (nanoseconds) or `trouble` (of a million sends)."""
        struct.pack_into("=q", self._shared, 8 * _FIELDS.index(field), value)

    def __getitem__(self, field: str) -> int:
        """What it has counted."""
        return int(dict(zip(_FIELDS, _FORM.unpack(self._shared[:]), strict=True))[field])


def _library() -> Path:
    compiler = next((found for found in map(shutil.which, ("cc", "gcc", "clang")) if found), None)
    if compiler is None:
        raise NotRunError(f"{NEEDED} is needed for what is preloaded")
    library = cache_folder() / f"shim-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        fresh = library.with_suffix(".fresh")
        argv = [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(fresh), str(SOURCE), "-ldl"]
        subprocess.run(argv, check=True, timeout=60)
        fresh.replace(library)
    return library
