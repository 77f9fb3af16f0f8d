"""A layout of docs/layouts.md on the real cluster: CoreDNS with its `kubernetes` plugin, canal-dns watching the API server.

Rules of this file:
- CoreDNS and canal-dns are the administrator's unless a test gives canal-dns another kubeconfig;
- what a name is bound to is asked for in DNS, as a pod does; `explain` and `table` are the commands that a person types.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e import cluster, document, mesh
from tests.e2e.ask import ask
from tests.e2e.layouts import Layout, Site
from tests.e2e.processes import ADMIN, CanalDns, until
from tests.e2e.world import World

GATEWAY = f"{mesh.NAMESPACE}/{mesh.NAME}"


class ClusterSite(Site):
    """`settings`: canal-dns's, in place of those of the document. `kubeconfig`: canal-dns's; the administrator's if None."""

    def __init__(
        self, layout: Layout, binary: Path, folder: Path, resolv_conf: Path, world: World, *,
        settings: Mapping[str, Any] | None = None, kubeconfig: Path | None = None,
    ) -> None:  # fmt: skip
        self.world = world
        self.kubeconfig = kubeconfig or world.control.kubeconfig
        super().__init__(layout, binary, folder, resolv_conf, settings=settings)

    def source(self) -> Callable[[str], str]:
        return document.with_kubeconfig(self.world.control.kubeconfig)

    def make_canal_dns(self) -> CanalDns:
        ours = {
            "source": {"cluster": {"kubeconfig": str(self.kubeconfig)}},
            "gateways": [{"service": GATEWAY}],
            "binding": {},  # the defaults: what a user gets
        }
        return CanalDns(self.folder, self.layout.canal_dns, ours | self.settings)

    def start(self) -> None:
        """What is not running; canal-dns first, so that CoreDNS finds it and has nothing to probe."""
        for server in (self.canal_dns, self.core_dns):
            if server.running is None:
                server.start()
        # the plugin's own caches are filled: every cluster has this Service
        until(lambda: self.address("kubernetes.default") == {"10.96.0.1"}, 30, self.core_dns.said)

    def address(self, service: str, kind: str = "A", **how: Any) -> set[str]:
        """The addresses that a pod gets for `helloworld.default`; empty when there are none or nobody answers."""
        try:
            return self.ask(cluster.fqdn(service), kind, **how).addresses()
        except (TimeoutError, ConnectionError):
            return set()

    def address_alone(self, service: str) -> set[str]:
        """The addresses that CoreDNS gives by itself."""
        return self.ask_alone(cluster.fqdn(service), "A").addresses()

    def address_of_canal_dns(self, service: str) -> set[str]:
        """The addresses that canal-dns gives, asked directly."""
        return ask(self.layout.canal_dns[0], cluster.fqdn(service), "A").addresses()

    def wait_for_address(self, service: str, address: str, seconds: float = 20) -> None:
        """Until a pod gets exactly this address."""
        until(
            lambda: self.address(service) == {address},
            seconds,
            lambda: f"{service} has {address}; it has {self.address(service)}\n{self.explain(cluster.fqdn(service))[1]}",
            pause=0.02,
        )

    def wait_for_vip(self, service: str = "", seconds: float = 20) -> None:  # type: ignore[override]
        self.wait_for_address(service, mesh.VIP, seconds)

    def command(self, *arguments: str) -> tuple[int, str]:
        """`canal-dns ARGUMENTS`: exit status, and all that it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "canal_dns", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def explain(self, name: str) -> tuple[int, str]:
        """`canal-dns explain NAME`, asked of the running server."""
        return self.command("explain", "--server", f"http://{ADMIN}", name)

    def table(self) -> dict[str, Any]:
        """`canal-dns table -o json`, asked of the running server."""
        status, said = self.command("table", "--server", f"http://{ADMIN}", "-o", "json")
        assert status == 0, said
        return dict(json.loads(said))
