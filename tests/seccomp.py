"""Loads a seccomp profile as a container runtime does: `python -m tests.seccomp PROFILE -- COMMAND ...`.

Rules of this file:
- the runtimes' form (OCI runtime specification, `linux.seccomp`) as far as our profile uses it; the rest of it is an error;
- names become numbers by this machine's C headers; a system call that they do not have is left out, as runtimes do;
- the filter is a classic BPF program (seccomp(2)): rules in their order, the first one that fits decides, then the default.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

PROFILE = Path(__file__).parents[1] / "manifests" / "optional" / "seccomp.json"

ARCHITECTURES = {"x86_64": ("SCMP_ARCH_X86_64", 0xC000003E), "aarch64": ("SCMP_ARCH_AARCH64", 0xC00000B7)}
"""Machine -> the profile's word for it, the kernel's number (linux/audit.h)."""

_LOAD, _EQUAL, _NOT_BELOW, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2

Step = tuple[int, int, int, int]
"""code, jump if true, jump if false, k."""


def unable() -> str:
    """Why no filter can be made here; "": it can."""
    if platform.machine() not in ARCHITECTURES:
        return f"the profile has no words for {platform.machine()}"
    return "" if shutil.which("cc") else "`cc` is not on PATH, whose headers number the system calls"


def numbers() -> dict[str, int]:
    """System call -> number on this machine. Raises CalledProcessError."""
    asked = ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True, cwd="/").stdout
    return {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", said, re.MULTILINE)}


def program(profile: dict[str, Any], known: dict[str, int]) -> list[Step]:
    """The filter of this machine. Raises ValueError for what is not understood."""
    word, architecture = ARCHITECTURES[platform.machine()]
    if word not in profile["architectures"]:
        raise ValueError(f"the profile is not for {word}")
    steps: list[Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    if platform.machine() == "x86_64":
        steps += [(_NOT_BELOW, 0, 1, _X32), (_RETURN, 0, 0, default)]
    for rule in profile["syscalls"]:
        action = _action(rule["action"], rule.get("errnoRet"))
        if unknown := rule.keys() - {"names", "action", "args", "errnoRet", "comment"}:
            raise ValueError(f"not understood: {unknown}")
        for name in rule["names"]:
            if name in known:
                steps += _rule(known[name], rule.get("args", []), action)
    return [*steps, (_RETURN, 0, 0, default)]


def _rule(number: int, arguments: list[dict[str, Any]], action: int) -> list[Step]:
    if not arguments:
        return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, action)]
    (one,) = arguments
    match one["op"]:
        case "SCMP_CMP_MASKED_EQ":
            mask, value = one["value"], one.get("valueTwo", 0)
        case "SCMP_CMP_EQ":
            mask, value = 2**64 - 1, one["value"]
        case other:
            raise ValueError(f"not understood: {other}")
    place = _ARGUMENTS + 8 * one["index"]
    return [
        (_EQUAL, 0, 8, number),
        (_LOAD, 0, 0, place),
        (_AND, 0, 0, mask & 0xFFFFFFFF),
        (_EQUAL, 0, 4, value & 0xFFFFFFFF),
        (_LOAD, 0, 0, place + 4),
        (_AND, 0, 0, mask >> 32),
        (_EQUAL, 0, 1, value >> 32),
        (_RETURN, 0, 0, action),
        (_LOAD, 0, 0, _NUMBER),
    ]


def _action(name: str, errno: int | None) -> int:
    match name:
        case "SCMP_ACT_ALLOW":
            return _ALLOW
        case "SCMP_ACT_ERRNO":
            return _ERRNO | (1 if errno is None else errno)
    raise ValueError(f"not understood: {name}")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def load(steps: list[Step]) -> None:
    """For this thread and all that comes of it, for ever. Raises OSError."""
    packed = b"".join(struct.pack("HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    given = ctypes.byref(_Program(len(steps), packed))
    for arguments in ((_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_SET_SECCOMP, _MODE_FILTER, given)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.seccomp", description=__doc__.partition("\n")[0])
    parser.add_argument("profile", type=Path)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    load(program(json.loads(given.profile.read_text()), numbers()))
    os.execvp(given.command[0], given.command)  # noqa: S606 - a command is what is wanted


if __name__ == "__main__":
    sys.exit(main())
