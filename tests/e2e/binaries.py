"""Finds the programs of the end-to-end tests, or makes them: `python -m tests.e2e.binaries [NAME...]` prints their paths.

Rules of this file:
- looked for in this order: the program's own variable ($CANAL_DNS_COREDNS, ...), PATH, the cache folder
  ($XDG_CACHE_HOME or ~/.cache, then canal-dns/bin); a file counts only when it *runs* and says the version of `programs`;
- made in a temporary folder of the cache, renamed into place when it has said its version;
- one builder at a time: the others wait for the lock and then find what it made;
- nothing here knows of pytest; `MissingError` carries what a person has to do. Progress goes to standard error.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.programs import ALL, Program
from tests.e2e.workshop import MissingError, Workshop, say


def cached(program: Program, environ: Mapping[str, str]) -> Path:
    """Where a program that was made is kept."""
    folder = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "canal-dns" / "bin" / program.name


def find(program: Program, environ: Mapping[str, str]) -> Path | None:
    """One of the right version that is already there. Raises MissingError when the program's variable names a wrong one."""
    if named := environ.get(program.variable):
        said = program.says(Path(named))
        if said != program.version:
            what = f"{program.title} {said}" if said else f"no {program.title} that runs"
            raise MissingError(f"{program.variable}={named} is {what}; {program.version} is needed")
        return Path(named).absolute()
    on_path = shutil.which(program.name, path=environ.get("PATH"))
    candidates = [Path(on_path)] if on_path else []
    for candidate in [*candidates, cached(program, environ)]:
        if program.says(candidate) == program.version:
            return candidate
    return None


def find_or_make(program: Program, environ: Mapping[str, str]) -> Path:
    """The path of a program of the right version. Raises MissingError."""
    found = find(program, environ)
    if found is not None:
        return found
    target = cached(program, environ)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(".lock")):
            if program.says(target) != program.version:
                _make(program, target, environ)
    except OSError as problem:
        raise MissingError(f"no {program.title} {program.version} was found, and none can be kept: {problem}") from None
    return target


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process makes the programs of the end-to-end tests: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(program: Program, target: Path, environ: Mapping[str, str]) -> None:
    say(f"making {program.title} {program.version}: {program.cost} the first time")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{program.name}-") as folder:
        try:
            made = program.make(Workshop(Path(folder), environ))
        except MissingError as problem:
            raise MissingError(
                f"no {program.title} {program.version} was found, and it cannot be made: {problem}\n"
                f"What helps: {program.helps}, or name one: {program.variable}=/path/to/{program.name}"
            ) from None
        said = program.says(made)
        if said != program.version:
            raise MissingError(f"what was made for {program.title} says version {said}; {program.version} is needed")
        made.replace(target)
    say(f"{target} is ready after {time.monotonic() - began:.0f} s")


def main(names: list[str]) -> int:
    """Prints the path of each named program, or of all; 1 when one cannot be had, 2 for a name that is not known."""
    known = {program.name: program for program in ALL}
    if unknown := [name for name in names if name not in known]:
        say(f"not known: {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    missing = 0
    for name in names or known:
        try:
            print(find_or_make(known[name], os.environ), flush=True)
        except MissingError as problem:
            say(str(problem))
            missing = 1
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
