"""From root to an ordinary user, with nothing that would lead back.

Rules of this file:
- before the event loop, logs and workers: capabilities and no_new_privs are a thread's, and threads made later inherit them;
- what will be needed is tried first, in a child that has made the same change: after the change nobody could tell root;
- a change is verified by the kernel's own words; one that did not work ends the process;
- numbers only, no look-up of names; Linux, elsewhere no more than the user's numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from canal_dns.app import needs
from canal_dns.errors import ConfigError, PrivilegeError
from canal_dns.settings import Settings, User

NOBODY = User(65532, 65532)
"""The user of the image, and of distroless images' `nonroot`."""
NET_BIND_SERVICE = 10
"""linux/capability.h; workers that are started again bind again, so it stays as long as the process does."""

_SET_PDEATHSIG, _GET_PDEATHSIG, _SET_DUMPABLE, _SET_KEEPCAPS, _CAPBSET_DROP = 1, 2, 4, 8, 24
_SET_NO_NEW_PRIVS, _CAP_AMBIENT = 38, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
_STATUS = Path("/proc/self/status")


def leave_root(settings: Settings, config: Path | None) -> str:
    """Become the user of the settings, where root started this process. Gives a warning where it stays root against its will.

    Raises ConfigError where a user that is named cannot be had, PrivilegeError where the change did not work.
    """
    wanted = settings.process.user
    if os.geteuid() != 0:
        present = User(os.geteuid(), os.getegid())
        if wanted not in (None, present):
            raise ConfigError("user", str(wanted), f"this process was started as {present}, and only root can become another")
        return ""
    if wanted is not None and wanted.uid == 0:
        return ""
    user = wanted or NOBODY
    kept = 1 << NET_BIND_SERVICE if needs.low_ports(settings) else 0
    if obstacle := _rehearse(user, kept, needs.files(settings, config)):
        if wanted is not None:
            raise ConfigError("user", str(wanted), obstacle)
        return (
            f"this process stays root, since user {user} {obstacle}; "
            'give that user access, name another one (`user: "UID:GID"`), or say that root is meant (`user: "0"`)'
        )
    try:
        _become(user, kept)
    except OSError as problem:
        raise PrivilegeError(f"user {user}: {problem.strerror or problem}") from None
    _verify(user, kept)
    return ""


def present() -> str:
    """Whom this process runs as, for the line that it says at its start."""
    text = f"user {os.geteuid()}:{os.getegid()}"
    status = _status()
    if os.geteuid() == 0 or not status:
        return text
    held = int(status["CapEff"], 16)
    names = [
        "NET_BIND_SERVICE" if number == NET_BIND_SERVICE else str(number)
        for number in range(held.bit_length())
        if held >> number & 1
    ]
    return f"{text} with capability {', '.join(names)}" if names else f"{text} without capabilities"


def _rehearse(user: User, kept: int, wanted: list[needs.Need]) -> str:
    """What a process of that user could not do, from a child that has become one; "": nothing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.write(writer, _try(user, kept, wanted).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as said:  # noqa: PTH123 - a descriptor
        text = said.read().decode()
    _, status = os.waitpid(child, 0)
    return text if status == 0 else "cannot be tried here"


def _try(user: User, kept: int, wanted: list[needs.Need]) -> str:
    try:
        _become(user, kept)
    except OSError as problem:
        return f"cannot be had here ({problem.strerror})"
    return next((text for need in wanted if (text := need.lack())), "")


def _become(user: User, kept: int) -> None:
    """`kept`: the capabilities that stay, as bits. Raises OSError; the process may then be neither the one nor the other."""
    if sys.platform != "linux":
        os.setgroups([])
        os.setgid(user.gid)
        os.setuid(user.uid)
        return
    death = ctypes.c_int(0)
    _prctl(_GET_PDEATHSIG, ctypes.addressof(death))
    # Where this is not allowed, no_new_privs alone keeps what is in this set away.
    with contextlib.suppress(PermissionError):
        for number in _known_capabilities():
            if not kept >> number & 1:
                _prctl(_CAPBSET_DROP, number)
    _prctl(_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    _set_capabilities(kept)
    _prctl(_SET_KEEPCAPS, 0)
    # Those of this set outlive execve: a worker is a program of its own.
    _prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    for number in range(kept.bit_length()):
        if kept >> number & 1:
            _prctl(_CAP_AMBIENT, _AMBIENT_RAISE, number)
    _prctl(_SET_NO_NEW_PRIVS, 1)
    # Its memory, which holds the token, is not for others of this user: workers are programs anew, and no longer so.
    _prctl(_SET_DUMPABLE, 0)
    # The kernel forgets it with the user: whoever asked to be followed into death still does.
    _prctl(_SET_PDEATHSIG, death.value)


def _verify(user: User, kept: int) -> None:
    """Raises PrivilegeError unless the kernel says that all of it is so, for every thread, and there is no way back."""
    with contextlib.suppress(PermissionError):
        os.setuid(0)
        raise PrivilegeError(f"user {user}: the way back to root is open")
    if sys.platform != "linux":
        return
    wanted = {
        "Uid": [str(user.uid)] * 4,
        "Gid": [str(user.gid)] * 4,
        "Groups": [],
        "NoNewPrivs": ["1"],
        **{key: [f"{kept:016x}"] for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")},
    }
    threads = list(Path("/proc/self/task").glob("*/status"))
    if not threads:
        raise PrivilegeError(f"user {user}: without /proc nothing of it can be verified")
    for thread in threads:
        said = _status(thread)
        for key, value in wanted.items():
            if said.get(key, "").split() != value:
                raise PrivilegeError(f"user {user}: {key} is {said.get(key, '').strip()!r} in {thread}")


def _status(path: Path = _STATUS) -> dict[str, str]:
    """The lines of a status file (proc(5)); none where there is no such thing."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _known_capabilities() -> Iterator[int]:
    """As many as this kernel has: their last one is in the bounding set of the first process (capabilities(7))."""
    try:
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except (OSError, ValueError):
        last = 40
    yield from range(last + 1)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _set_capabilities(kept: int) -> None:
    """capset(2) of this thread: effective, permitted and inheritable alike."""
    words = (_Data * 2)(*(_Data(*[kept >> shift & 0xFFFFFFFF] * 3) for shift in (0, 32)))
    header = _Header(_CAPABILITY_VERSION_3, 0)
    _checked(_libc().capset(ctypes.byref(header), ctypes.byref(words)))


def _prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _checked(_libc().prctl(option, *map(ctypes.c_ulong, padded)))


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
