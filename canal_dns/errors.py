"""Every error that canal-dns raises on purpose.

    CanalError
    ├── ConfigError     the configuration or a command line: says where, which value, what is allowed (exit code 2)
    ├── ManifestError   a file of manifests that cannot be read: says file and line
    ├── ClusterError    an API server that cannot be asked: configuration, authentication, refusal (exit code 2)
    ├── WireError       bytes that are not a DNS message (answered by FORMERR, or dropped)
    ├── TableError      an answer that cannot be encoded or published
    ├── ListenError     an address that cannot be bound (exit code 1)
    ├── SnapshotError   a saved table that cannot be used (it is left aside) or written (it is tried again)
    ├── WorkerError     worker processes that do not start, or die one after the other (exit code 1)
    ├── PrivilegeError  root's rights that could not be given up (exit code 1)
    └── RemoteError     a running server that does not answer `--server URL` (exit code 1)

A peer's bad bytes on the hot path are a value (`Drop`, `Reply`), not an exception.
"""

from __future__ import annotations


class CanalError(Exception):
    """The root of the tree: its text is fit to be shown to a person as it is."""


class ConfigError(CanalError):
    """A setting that cannot be used.

    `where` is the dotted key (`binding.portGuard`) or flag, `value` what stood there, `allowed` what may stand there.
    """

    def __init__(self, where: str, value: object, allowed: str) -> None:
        self.where = where
        self.value = value
        self.allowed = allowed
        super().__init__(f"{where} is missing: {allowed}" if value is None else f"{where}: {value!r} is not usable; {allowed}")


class ManifestError(CanalError):
    """A file of manifests that is not YAML, or not Kubernetes objects. `line` counts from 1; None: the whole file."""

    def __init__(self, path: str, line: int | None, problem: str) -> None:
        self.path = path
        self.line = line
        self.problem = problem
        place = path if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {problem}")


class ClusterError(CanalError):
    """An API server that cannot be asked. `place`: kubeconfig, context, URL or kind; `problem` in the other side's words."""

    def __init__(self, place: str, problem: str) -> None:
        self.place = place
        self.problem = problem
        super().__init__(f"{place}: {problem}")


class SnapshotError(CanalError):
    """A saved answer table that cannot be used, or one that cannot be written. `path` of the file, `problem` in a sentence."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class WireError(CanalError):
    """Bytes that are no DNS message, or a name that cannot be one."""


class TableError(CanalError):
    """An answer that cannot be encoded, or a delta that does not fit the table."""


class ListenError(CanalError):
    """An address on which the server cannot listen. `address` as configured, `problem` in the kernel's words."""

    def __init__(self, address: str, transport: str, problem: str) -> None:
        self.address = address
        self.transport = transport
        self.problem = problem
        super().__init__(f"cannot listen on {address} ({transport}): {problem}")


class WorkerError(CanalError):
    """Worker processes that cannot be kept running."""


class PrivilegeError(CanalError):
    """A change from root to an ordinary user that did not work; nothing was served."""


class RemoteError(CanalError):
    """A running canal-dns that could not be asked."""
