"""Does what Containerfile says without a container runtime: `python -m tests.manifests.rehearsal [-- ARGUMENTS]`.

In a mount namespace of its own each stage gets a root made of this machine's system and this Python (in the place of the
base image), RUN and COPY are carried out in it with their own paths, and the result is started as the user that the file
names, without a capability, on a root that cannot be written.

Rules of this file:
- as root on Linux only: mounts and changes of user; nothing outside of the namespace and a temporary folder is touched;
- what it does not show: the base image itself, its CPU architectures, layers and their sizes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from tests.manifests.containerfile import CONTAINERFILE, ROOT, Stage, is_sent, pairs, stages, words

_INSIDE = "CANAL_DNS_REHEARSAL_INSIDE"


def unable() -> str:
    """Why it cannot be done here; "": it can."""
    if os.geteuid() != 0:
        return "mounts need root"
    for tool in ("unshare", "setpriv", "mount", "chroot"):
        if shutil.which(tool) is None:
            return f"`{tool}` is not on PATH"
    if sys.base_prefix == "/usr":
        return "this Python is the system's: none that could stand for the image's"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(
            ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs tmpfs "$0"; mkdir "$0/u" "$0/w" "$0/m"; '
             'mount -t overlay overlay -o lowerdir=/etc,upperdir="$0/u",workdir="$0/w" "$0/m"', folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    return f"no overlay file system: {tried.stderr.strip()}" if tried.returncode else ""


class Image:
    """A stage while it is built: its root, environment and folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # The base image's own: where its Python is. The loader is told too, since this Python was built for another folder.
        self.environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": "/usr/local/lib", "HOME": "/"}
        self.folder = "/"
        self.user = "0:0"
        self._overlays: list[str] = []
        root.mkdir(parents=True)
        self._overlay(Path("/usr"), "usr")
        self._overlay(Path("/etc"), "etc")
        self._overlay(Path(sys.base_prefix), "usr/local")
        for name in ("bin", "sbin", "lib", "lib64"):
            there = Path("/", name)
            if there.is_symlink():
                (root / name).symlink_to(there.readlink())
            elif there.exists():
                self._overlay(there, name)
        for name in ("dev", "proc"):
            (root / name).mkdir()
            _run("mount", "--rbind", f"/{name}", str(root / name))
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)
        self._bind_resolver()
        if not (root / "usr/local/bin/python").exists():
            (root / "usr/local/bin/python").symlink_to("python3")

    def _overlay(self, lower: Path, name: str) -> None:
        self._overlays.append(name)
        upper, work = (self.root.with_name(f"{self.root.name}.{kind}") / name for kind in ("upper", "work"))
        for folder in (upper, work, self.root / name):
            folder.mkdir(parents=True, exist_ok=True)
        _run(
            "mount",
            "-t",
            "overlay",
            "overlay",
            "-o",
            f"lowerdir={lower},upperdir={upper},workdir={work}",
            str(self.root / name),
        )

    def _bind_resolver(self) -> None:
        resolved = Path("/etc/resolv.conf").resolve()
        inside = self.root / "etc/resolv.conf"
        if inside.is_symlink() and resolved.exists():
            inside.unlink()
            inside.write_text(resolved.read_text())

    def build(self, stage: Stage, others: dict[str, Image]) -> None:
        """Carry out the stage's steps. Raises CalledProcessError, ValueError."""
        for instruction, text in stage.steps:
            match instruction:
                case "ENV":
                    self.environ |= pairs(text)
                case "ARG":
                    name, _, value = text.partition("=")
                    self.environ.setdefault(name, value)
                case "WORKDIR":
                    self.folder = text
                    self.at(text).mkdir(parents=True, exist_ok=True)
                case "USER":
                    self.user = text
                case "COPY":
                    self._copy(text.split(), others)
                case "RUN":
                    print(f"RUN {text}", flush=True)
                    self.run(["/bin/sh", "-ec", text], build=True)

    def at(self, path: str) -> Path:
        return self.root / (Path(self.folder) / path).relative_to("/")

    def _copy(self, given: list[str], others: dict[str, Image]) -> None:
        source = None
        if given[0].startswith("--from="):
            source = others[given.pop(0).removeprefix("--from=")]
        *names, target = given
        for name in names:
            origin = source.root / name.removeprefix("/") if source else ROOT / name
            if not source and not is_sent(name):
                raise ValueError(f"COPY {name}: .containerignore keeps it away from the build")
            aim = self.at(target)
            if origin.is_dir():
                shutil.copytree(origin, aim, symlinks=True, dirs_exist_ok=True, ignore=None if source else _ignored)
            else:
                shutil.copy2(origin, aim / origin.name if target.endswith("/") or len(names) > 1 else aim)

    def run(self, command: list[str], *, build: bool = False) -> None:
        """Raises CalledProcessError."""
        environ = dict(self.environ)
        if build:  # where packages come from is this machine's business
            environ |= {key: value for key, value in os.environ.items() if key.startswith("PIP_") or key.endswith("_proxy")}
            for folder in filter(os.path.isdir, environ.get("PIP_FIND_LINKS", "").split()):
                self._show(folder, "ro")
            asked = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=False)
            cache = asked.stdout.strip()
            if cache and Path(cache).is_dir():
                self._show(cache, "rw")
                environ |= {"PIP_CACHE_DIR": cache, "PIP_NO_CACHE_DIR": "0"}
        _run(*self.enter(command), env=environ)

    def _show(self, folder: str, how: str) -> None:
        inside = self.root / folder.removeprefix("/")
        if not inside.exists():
            inside.mkdir(parents=True)
            _run("mount", "--bind", "-o", how, folder, str(inside))

    def enter(self, command: list[str]) -> list[str]:
        """The command as the image's user, in the image's folder, with no way to more rights."""
        uid, gid = self.user.split(":")
        drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        if uid != "0":
            drop += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        return [str(shutil.which("chroot")), str(self.root), *drop, "env", "-C", self.folder, *command]

    def seal(self, volumes: list[str]) -> None:
        """Nothing can be written any more but /tmp-like volumes; `FOLDER:PATH` is read-only, `:PATH` an empty folder."""
        for volume in volumes:
            folder, _, path = volume.partition(":")
            aim = self.root / path.removeprefix("/")
            if folder:
                _run("mount", "--bind", folder, str(aim))
                _run("mount", "-o", "remount,bind,ro", str(aim))
            else:
                _run("mount", "-t", "tmpfs", "-o", "mode=0777", "tmpfs", str(aim))
        _run("mount", "--rbind", str(self.root), str(self.root))
        for name in ("", *self._overlays):
            _run("mount", "-o", "remount,bind,ro", str(self.root / name))


def _ignored(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not is_sent(str((Path(folder) / name).relative_to(ROOT)))}


def _run(*command: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=env)


def build(folder: Path) -> tuple[Image, list[str]]:
    """The last stage's image, and the command that it starts."""
    text = CONTAINERFILE.read_text()
    images: dict[str, Image] = {}
    for number, stage in enumerate(stages(text)):
        image = Image(folder / f"stage{number}")
        image.build(stage, images)
        images[stage.name] = image
    return image, [*words(stage.last("ENTRYPOINT")), *words(stage.last("CMD"))]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.manifests.rehearsal", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--volume", action="append", default=[], metavar="[FOLDER]:PATH", help="read-only; without FOLDER: empty, writable"
    )
    parser.add_argument("--before", action="append", default=[], metavar="COMMAND", help="run this in the sealed image first")
    parser.add_argument("arguments", nargs="*", help="in the place of CMD")
    given = parser.parse_args()
    if folder := os.environ.pop(_INSIDE, ""):
        _inside(Path(folder), given)
    if why := unable():
        parser.exit(2, f"{parser.prog}: not possible here: {why}\n")
    with tempfile.TemporaryDirectory(prefix="canal-dns-rehearsal-") as folder:
        again = ["unshare", "--mount", sys.executable, "-m", "tests.manifests.rehearsal", *sys.argv[1:]]
        with subprocess.Popen(again, env={**os.environ, _INSIDE: folder}) as inner:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, _: inner.send_signal(number))
            return inner.wait()


def _inside(folder: Path, given: argparse.Namespace) -> NoReturn:
    """Build, seal, and become the image's command."""
    _run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(folder))
    image, command = build(folder)
    image.seal(given.volume)
    for before in given.before:
        image.run(shlex.split(before))
    if given.arguments:
        command = [command[0], *given.arguments]
    print(f"START {shlex.join(command)}", flush=True)
    entered = image.enter(command)
    os.execvpe(entered[0], entered, image.environ)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
