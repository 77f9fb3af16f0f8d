"""Runs a command as a container runtime would: `command(...)` gives what to put before it.

In a mount namespace of its own: files that an ordinary user may not reach here (a Python under root's home) can be reached
there, volumes are mounted, the root is made read-only, the user changed, the profile loaded; then the command takes its place,
with the same process id.

Rules of this file:
- as root on Linux only; nothing outside of the namespace is touched: changes lie in overlays over memory;
- the steps are mount(8)'s and setpriv(1)'s, none of canal-dns's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOBODY = 65532


def unable() -> str:
    """Why it cannot be done here; "": it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounts and other users need root on Linux"
    for tool in ("unshare", "setpriv", "mount"):
        if shutil.which(tool) is None:
            return f"`{tool}` is not on PATH"
    tried = subprocess.run([*command(user=NOBODY), "true"], capture_output=True, text=True, check=False)
    return f"no such namespace: {tried.stderr.strip()}" if tried.returncode else ""


def command(
    *,
    user: int = 0,
    read_only: bool = False,
    volumes: Sequence[str] = (),
    profile: Path | None = None,
    reach: Iterable[Path] = (),
) -> list[str]:
    """What stands before the command.

    `user`: no capability and no way to one, unless it is 0. `volumes`: `FOLDER:PATH` is read-only, `:PATH` an empty folder.
    `profile`: of seccomp. `reach`: what that user must be able to come to, beside this Python and the project.
    """
    options = ["--user", str(user), *(["--read-only"] if read_only else [])]
    options += [word for volume in volumes for word in ("--volume", volume)]
    options += [word for path in reach for word in ("--reach", str(path))]
    options += ["--profile", str(profile)] if profile else []
    return ["unshare", "-m", sys.executable, str(Path(__file__).resolve()), *options, "--"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--user", type=int, default=0)
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--volume", action="append", default=[])
    parser.add_argument("--reach", action="append", default=[], type=Path)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    # Mounted away in this namespace only, so that nothing is left behind.
    memory = Path("/mnt")
    _mount("-t", "tmpfs", "tmpfs", str(memory))
    overlays = _Overlays(memory)
    for path in (Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix), ROOT, *given.reach):
        overlays.open_way(path)
    for volume in given.volume:
        _volume(volume, overlays)
    if given.read_only:
        _seal({volume.partition(":")[2] for volume in given.volume})
    words = given.command
    if given.profile:
        words = [sys.executable, "-m", "tests.seccomp", str(given.profile), "--", *words]
    if given.user:
        user = str(given.user)
        words = [
            "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
            "--no-new-privs", *words,
        ]  # fmt: skip
    # The project's folder, for `-m`; nobody may write .pyc files there.
    os.environ |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execvp(words[0], words)  # noqa: S606 - a command is what is wanted


class _Overlays:
    """Folders whose changes lie in memory, and are seen in this namespace only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []

    def over(self, path: Path) -> None:
        if any(path == made or made in path.parents for made in self._made):
            return
        self._made.append(path)
        # What is mounted below would be hidden, but still be there.
        for mounted in reversed(_mounted()):
            if path.resolve() in Path(mounted).parents:
                _run("umount", "--lazy", mounted)
        upper, work = (self._folder / f"{kind}{len(self._made)}" for kind in ("upper", "work"))
        upper.mkdir()
        work.mkdir()
        _mount("-t", "overlay", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", str(path))

    def open_way(self, path: Path) -> None:
        """Everybody may pass the folders that lead to it."""
        for one in (path.absolute(), path.resolve()):
            for folder in reversed(one.parents):
                if not folder.stat().st_mode & 0o001:
                    self.over(folder)
                    folder.chmod(0o755)


def _volume(volume: str, overlays: _Overlays) -> None:
    folder, _, path = volume.partition(":")
    aim = Path(path)
    if not aim.exists():
        overlays.over(next(parent for parent in aim.parents if parent.exists()))
        aim.mkdir(parents=True)
    if folder:
        _mount("--bind", folder, path)
        _mount("-o", "remount,bind,ro", path)
    else:
        _mount("-t", "tmpfs", "-o", f"mode=0770,gid={NOBODY}", "tmpfs", path)


def _seal(writable: set[str]) -> None:
    """Everything is read-only but the volumes, and what a runtime gives itself: /proc, /sys and /dev."""
    for path in _mounted():
        if path not in writable and path.split("/")[1] not in ("proc", "sys", "dev") and Path(path).exists():
            _mount("-o", "remount,bind,ro", path)


def _mounted() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def _mount(*words: str) -> None:
    _run("mount", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
