"""Where a program is made: a temporary folder, commands with progress lines, and what a person is told when one fails.

Rules of this file:
- nothing stands in the cache before it is whole: a recipe works in `folder`, and the caller renames what it made;
- a long command says every ten seconds how far it is; a failed one shows its last lines.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS = 30 * 60  # of one command: three minutes on two cores with an empty module cache; a slow line takes longer


class MissingError(Exception):
    """A program is not there and cannot be made; the text says why and what helps."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Workshop:
    """An empty folder and the environment that the commands get."""

    folder: Path
    environ: Mapping[str, str]

    def go(self, *arguments: str, cwd: Path | None = None) -> str:
        """`go ARGUMENTS` without cgo; what it wrote to standard output. Raises MissingError."""
        go = shutil.which("go", path=self.environ.get("PATH"))
        if go is None:
            raise MissingError("Go, which builds it, is not on PATH")
        return self.run([go, *arguments], cwd=cwd, CGO_ENABLED="0", GOBIN=str(self.folder), GOWORK="off")

    def run(self, command: list[str], *, cwd: Path | None = None, **variables: str) -> str:
        """Standard output of a command. Raises MissingError with the end of what it said."""
        shown = " ".join([Path(command[0]).name, *command[1:]])
        shown = shown if len(shown) < 60 else f"{shown[:56]} ..."
        began = time.monotonic()
        output, progress = self.folder / "output", self.folder / "progress"
        with output.open("w") as out, progress.open("w") as err:
            running = subprocess.Popen(
                command, cwd=cwd or self.folder, env={**self.environ, **variables}, stdout=out, stderr=err
            )
            try:
                while True:
                    try:
                        running.wait(10)
                        break
                    except subprocess.TimeoutExpired:
                        lines = progress.read_text(
                            errors="replace"
                        ).splitlines()  # `go build -v`: a line per module and package
                        passed = time.monotonic() - began
                        say(f"  {shown}: {passed:.0f} s, {len(lines)} steps, last: {lines[-1] if lines else '-'}")
                        if passed > SECONDS:
                            raise MissingError(f"`{shown}` was given up after {SECONDS} s") from None
            finally:
                if running.poll() is None:
                    running.kill()
                    running.wait()
        if running.returncode:
            said = [*progress.read_text(errors="replace").splitlines(), *output.read_text(errors="replace").splitlines()]
            raise MissingError("\n".join((f"`{shown}` failed ({running.returncode}):", *said[-15:])))
        return output.read_text(errors="replace")
