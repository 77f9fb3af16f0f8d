"""A network namespace in which every cluster address is local, so that port 53 and real ClusterIPs are used.

Rules of this file:
- the whole pytest run starts itself again inside the namespace (`command`), so that tests open sockets as usual;
- as root by `unshare -n -m`, as an ordinary user by `unshare -rn -m` (user namespaces must be allowed);
- there is no way out of the namespace: packets can go to loopback addresses only;
- a mount namespace comes with it: /etc/resolv.conf is a pod's, so that libc, and with it curl, asks the cluster's DNS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e import cluster

_ALL_IPV4 = ("10.96.0.0/16", "10.244.0.0/16", "192.0.2.0/24")

_INSIDE = "CANAL_DNS_INSIDE"

POD_RESOLV_CONF = f"""\
nameserver {cluster.KUBE_DNS[0]}
search default.svc.{cluster.DOMAIN} svc.{cluster.DOMAIN} {cluster.DOMAIN}
options ndots:5
"""
"""What a kubelet writes for a pod of the namespace `default`."""


class ForbiddenError(Exception):
    """This machine makes no namespace for us; the text says why and what helps."""


def command() -> list[str]:
    """What stands before a command that shall run in fresh namespaces. Raises ForbiddenError."""
    for tool in ("unshare", "setpriv", "ip", "mount", "curl"):
        if shutil.which(tool) is None:
            raise ForbiddenError(f"`{tool}` is not on PATH; install util-linux, iproute2, mount and curl")
    said = ""
    for flags in (["-n", "-m"], ["-rn", "-m"]) if os.geteuid() == 0 else (["-rn", "-m"],):
        prefix = ["unshare", *flags, "--fork", "--kill-child"]
        tried = subprocess.run(
            [*prefix, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, timeout=30, check=False
        )
        if tried.returncode == 0:
            return prefix
        said = tried.stderr.strip()
    raise ForbiddenError(f"the kernel makes no namespaces ({said}); run as root, or allow user namespaces")


def again_inside(module: str, arguments: Sequence[str], *, cannot: str) -> int | None:
    """Runs `python -m MODULE ARGUMENTS` once more in fresh namespaces and gives its exit status; None where this is that run:
    then loopback is up, with IPv6, and there is nothing beside it. `cannot`: said, with the reason, where there are none."""
    if os.environ.get(_INSIDE) != module:
        try:
            prefix = command()
        except ForbiddenError as problem:
            print(f"{cannot}: {problem}", file=sys.stderr)
            return 1
        again = [*prefix, sys.executable, "-m", module, *arguments]
        return subprocess.run(again, env={**os.environ, _INSIDE: module}, check=False).returncode
    Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0")  # some hosts create namespaces without IPv6
    _run("ip", "link", "set", "lo", "up")
    return None


def make_addresses_local() -> None:
    """Gives `lo` every address of the cluster. Raises CalledProcessError, with what `ip` said."""
    Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0")  # some hosts create namespaces without IPv6
    client4, client6 = cluster.CLIENT
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "addr", "add", f"{client4}/32", "dev", "lo")
    for network in _ALL_IPV4:
        _run("ip", "route", "add", "local", network, "dev", "lo", "src", client4)
    # IPv6 has no binding to an address that is only routed here
    for address in (client6, *(pair[1] for pair in (cluster.KUBE_DNS, cluster.CANAL_DNS, cluster.PLAIN_COREDNS))):
        _run("ip", "-6", "addr", "add", f"{address}/128", "dev", "lo", "nodad")


def make_files_a_pods() -> None:
    """An empty /run, where a service account may be put, and a pod's /etc/resolv.conf. Raises CalledProcessError."""
    resolv_conf = Path("/etc/resolv.conf").resolve()  # often a link into /run
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    ours = Path("/run/resolv.conf")
    ours.write_text(POD_RESOLV_CONF)
    if resolv_conf.is_relative_to("/run"):
        resolv_conf.parent.mkdir(parents=True, exist_ok=True)
        resolv_conf.touch()
    _run("mount", "--bind", str(ours), str(resolv_conf))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
