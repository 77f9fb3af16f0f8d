"""A network namespace in which every cluster address is local, so that port 53 and real ClusterIPs are used.

Rules of this file:
- the whole pytest run starts itself again inside the namespace (`command`), so that tests open sockets as usual;
- as root by `unshare -n`, as an ordinary user by `unshare -rn` (user namespaces must be allowed);
- there is no way out of the namespace: packets can go to loopback addresses only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.e2e import cluster

_ALL_IPV4 = ("10.96.0.0/16", "10.244.0.0/16", "192.0.2.0/24")


class ForbiddenError(Exception):
    """This machine makes no namespace for us; the text says why and what helps."""


def command() -> list[str]:
    """What stands before a command that shall run in a fresh network namespace. Raises ForbiddenError."""
    for tool in ("unshare", "setpriv", "ip"):
        if shutil.which(tool) is None:
            raise ForbiddenError(f"`{tool}` is not on PATH; install util-linux and iproute2")
    said = ""
    for flags in (["-n"], ["-rn"]) if os.geteuid() == 0 else (["-rn"],):
        prefix = ["unshare", *flags, "--fork", "--kill-child"]
        tried = subprocess.run(
            [*prefix, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, timeout=30, check=False
        )
        if tried.returncode == 0:
            return prefix
        said = tried.stderr.strip()
    raise ForbiddenError(f"the kernel makes no network namespace ({said}); run as root, or allow user namespaces")


def make_addresses_local() -> None:
    """Gives `lo` every address of the cluster. Raises CalledProcessError, with what `ip` said."""
    Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0")  # some hosts create namespaces without IPv6
    client4, client6 = cluster.CLIENT
    _ip("link", "set", "lo", "up")
    _ip("addr", "add", f"{client4}/32", "dev", "lo")
    for network in _ALL_IPV4:
        _ip("route", "add", "local", network, "dev", "lo", "src", client4)
    # IPv6 has no binding to an address that is only routed here
    for address in (client6, *(pair[1] for pair in (cluster.KUBE_DNS, cluster.CANAL_DNS, cluster.PLAIN_COREDNS))):
        _ip("-6", "addr", "add", f"{address}/128", "dev", "lo", "nodad")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
