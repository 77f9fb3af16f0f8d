"""Finds CoreDNS 1.14.7, or builds it: `python -m tests.e2e.coredns` prints the path (the progress goes to standard error).

Rules of this file:
- looked for in this order: $CANAL_DNS_COREDNS, PATH, the cache folder; a binary counts only when it *runs* and says VERSION;
- built by `go install` into a temporary folder of the cache, renamed into place when it has said its version;
- one builder at a time: the others wait for the lock and then find what it made;
- nothing here knows of pytest; `MissingError` carries what a person has to do.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VERSION = "1.14.7"
MODULE = f"github.com/coredns/coredns@v{VERSION}"
VARIABLE = "CANAL_DNS_COREDNS"
BUILD_SECONDS = 20 * 60  # two to four minutes on two cores with an empty module cache; a slow line takes longer


class MissingError(Exception):
    """There is no CoreDNS and none can be built; the text says why and what helps."""


def version_of(binary: Path) -> str | None:
    """What the binary says of itself, "1.14.7"; None: it does not run, or is something else."""
    try:
        said = subprocess.run([binary, "-version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"CoreDNS-(\S+)", said)
    return match[1] if match else None


def cached(environ: Mapping[str, str]) -> Path:
    """Where the built binary is kept."""
    folder = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "canal-dns" / "bin" / "coredns"


def find(environ: Mapping[str, str]) -> Path | None:
    """A CoreDNS of the right version that is already there. Raises MissingError when $CANAL_DNS_COREDNS names a wrong one."""
    if named := environ.get(VARIABLE):
        said = version_of(Path(named))
        if said != VERSION:
            raise MissingError(
                f"{VARIABLE}={named} is {f'CoreDNS {said}' if said else 'no CoreDNS that runs'}; {VERSION} is needed"
            )
        return Path(named).absolute()
    on_path = shutil.which("coredns", path=environ.get("PATH"))
    candidates = [Path(on_path)] if on_path else []
    for candidate in [*candidates, cached(environ)]:
        if version_of(candidate) == VERSION:
            return candidate
    return None


def find_or_build(environ: Mapping[str, str]) -> Path:
    """The path of a CoreDNS of the right version. Raises MissingError."""
    found = find(environ)
    if found is not None:
        return found
    target = cached(environ)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(".coredns.lock")):
        if version_of(target) != VERSION:
            _build(target, environ)
    return target


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process builds CoreDNS: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: Path, environ: Mapping[str, str]) -> None:
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        raise MissingError(
            f"no CoreDNS {VERSION} was found and Go, which builds it, is not on PATH; "
            f"install Go, or name a binary: {VARIABLE}=/path/to/coredns"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".coredns-") as folder:
        _install(go, Path(folder), environ)
        built = Path(folder) / "coredns"
        if version_of(built) != VERSION:
            raise MissingError(f"what `go install {MODULE}` made says version {version_of(built)}")
        built.replace(target)
    _say(f"{target} is ready")


def _install(go: str, folder: Path, environ: Mapping[str, str]) -> None:
    command = [go, "install", "-v", MODULE]
    _say(f"building CoreDNS {VERSION} with `go install {MODULE}`: two to four minutes the first time")
    began = time.monotonic()
    output = folder / "output"
    with output.open("w") as sink:
        build = subprocess.Popen(
            command, env={**environ, "GOBIN": str(folder), "CGO_ENABLED": "0"}, stdout=sink, stderr=subprocess.STDOUT
        )
        while True:
            try:
                build.wait(10)
                break
            except subprocess.TimeoutExpired:
                lines = output.read_text().splitlines()  # `-v` gives a line per downloaded module and compiled package
                passed = time.monotonic() - began
                _say(f"  {passed:.0f} s, {len(lines)} steps, last: {lines[-1] if lines else '-'}")
                if passed > BUILD_SECONDS:
                    build.kill()
    if build.returncode:
        tail = "\n".join(output.read_text().splitlines()[-15:])
        raise MissingError(f"`go install {MODULE}` failed ({build.returncode}):\n{tail}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    try:
        print(find_or_build(os.environ))
    except MissingError as problem:
        _say(str(problem))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
