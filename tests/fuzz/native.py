"""The C of the extensions without Python (harness.c), under the address and undefined behaviour sanitizers.

Guided by coverage where clang has libFuzzer; the corpus, what grew of it, and mutations of both then run in a build that counts
basic blocks, which shows that work grows no faster than the input.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.faults.rows import NotRunError, Outcome
from tests.fuzz.targets import CORPUS, load

ROOT = Path(__file__).resolve().parents[2]
HARNESS, COUNT = (Path(__file__).with_name(name) for name in ("harness.c", "count.c"))
FLAGS = (
    "-g", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-function", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all", f"-I{ROOT / 'canal_dns' / 'server'}",
)  # fmt: skip
_BOUNDS = {"ASAN_OPTIONS": "abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}


class BuildError(Exception):
    """The compiler refuses; the text is its own."""


def compiler() -> str | None:
    return os.environ.get("CC") or next((found for found in map(shutil.which, ("gcc", "cc", "clang")) if found), None)


def build(folder: Path) -> Path:
    """The program that takes files. Raises NotRunError, and BuildError."""
    cc = compiler()
    if cc is None:
        raise NotRunError("no C compiler (Debian: gcc libc6-dev)")
    counting, program = folder / "count.o", folder / "alone"
    _compile([cc, "-O1", "-c", "-o", str(counting), str(COUNT)])
    _compile([cc, *FLAGS, "-DALONE", "-fsanitize-coverage=trace-pc", "-o", str(program), str(HARNESS), str(counting)])
    return program


def build_guided(folder: Path) -> Path | None:
    """The program that libFuzzer drives; None where there is none."""
    clang = shutil.which("clang")
    if clang is None:
        return None
    program = folder / "guided"
    try:
        _compile([clang, *FLAGS, "-fsanitize=fuzzer", "-o", str(program), str(HARNESS)])
    except BuildError:
        return None
    return program


def _compile(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise BuildError(f"{argv[0]} cannot build it: {done.stderr.strip()[:500]}")


def replay(program: Path, files: list[Path], seconds: int, seed: int = 1) -> dict[str, int]:
    """Run files and mutations of them: how many runs, and most basic blocks per octet. Raises AssertionError for a finding."""
    argv = [str(program), str(seconds), str(seed), *map(str, files)]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=seconds + 120, check=False, env={**os.environ, **_BOUNDS}
    )
    assert done.returncode == 0, f"{program.name}: {done.stderr[-2000:]}"
    return dict(json.loads(done.stdout.splitlines()[-1]))


def inputs() -> list[Path]:
    """What the targets in Python have of its form."""
    return sorted((CORPUS / "replies").glob("*"))


def measure(folder: Path, seconds: int) -> Outcome:
    """A run. Raises NotRunError, BuildError, AssertionError for a finding."""
    folder.mkdir(parents=True, exist_ok=True)
    alone, guided = build(folder), build_guided(folder)
    grown, found = folder / "grown", folder / "found"
    for one in (grown, found):
        one.mkdir(exist_ok=True)
    told = "no libFuzzer here (clang is missing): mutations alone"
    if guided is not None:
        flags = [f"-max_total_time={seconds}", "-max_len=2048", f"-artifact_prefix={found}/", "-print_final_stats=1"]
        argv = [str(guided), *flags, str(grown), str(CORPUS / "replies")]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds + 120, check=False, env={**os.environ, **_BOUNDS}
        )
        assert done.returncode == 0, f"libFuzzer: {done.stderr[-2000:]}"
        runs = re.search(r"Done (\d+) runs", done.stderr)
        reached = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
        told = f"{runs[1] if runs else '?'} inputs guided by coverage, {reached[-1][0] if reached else '?'} edges"
    counted = replay(alone, [*inputs(), *_families(folder), *sorted(grown.glob("*"))], max(1, seconds // 4))
    return Outcome(
        f"{told}; {counted['runs']} by mutation; at most {counted['blocks']} basic blocks per octet; no error", met=True
    )


def _families(folder: Path) -> list[Path]:
    """The inputs that are made to cost as much as they can."""
    made = []
    for family in load()["replies"].families:
        for size in (1000, 16_000, 60_000):
            path = folder / f"{family.__name__}-{size}"
            path.write_bytes(family(size))
            made.append(path)
    return made
