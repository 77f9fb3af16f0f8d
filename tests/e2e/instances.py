"""More canal-dns processes beside the one of a site: each at an address and an admin port of its own, asked directly.

Rules of this file:
- what they do not answer themselves goes to kube-dns, marked with DO as in Layout B: any site with that layout serves them;
- one process each (`workers: 0`): there may be many of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e import cluster
from tests.e2e.ask import ask
from tests.e2e.processes import CanalDns, http, sums, until
from tests.e2e.sites import GATEWAY

_FIRST = 60


class Instance(CanalDns):
    """`number`: any that no other instance has at that time, below 100. `source`: as in the settings."""

    def __init__(
        self, folder: Path, number: int, source: Mapping[str, Any], settings: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"10.96.0.{_FIRST + number}"
        self.admin = f"127.0.0.1:{9200 + number}"
        ours = {
            "source": dict(source), "gateways": [{"service": GATEWAY}], "upstreams": [f"{cluster.KUBE_DNS[0]}:53"],
            "workers": 0, "admin": self.admin,
        }  # fmt: skip
        super().__init__(folder, (self.address,), {**ours, **(settings or {})}, variables)

    def start(self) -> None:
        """Until it is ready."""
        self.launch()
        until(lambda: self.alive() and self.ready()[0] == 200, 60, lambda: f"{self.ready()}\n{self.said()}")

    def begin(self) -> None:
        """Until it answers, whether it is ready or not."""
        self.launch()
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        until(lambda: self.alive() and self.ready()[0], 60, self.said)
        until(self._answers, 10, self.said)

    def end(self) -> None:
        """Raises AssertionError where its log has a traceback."""
        if self.running is not None:
            self.kill()
            written = self.log.read_text()
            assert "Traceback" not in written, written

    def addresses_of(self, service: str) -> set[str]:
        """What it says itself of `helloworld.default`."""
        return ask(self.address, cluster.fqdn(service), "A").addresses()

    def series(self, *names: str, **labels: str) -> tuple[float, ...]:
        return sums(f"http://{self.admin}/metrics", *names, **labels)

    def ready(self) -> tuple[int, str]:
        return http(f"http://{self.admin}/ready")

    def bindings(self) -> dict[str, Any]:
        status, text = http(f"http://{self.admin}/bindings")
        assert status == 200, text
        return dict(json.loads(text))

    def problems(self) -> list[str]:
        return list(self.bindings()["source"]["problems"])

    def _answers(self) -> bool:
        try:
            return bool(self.addresses_of("kubernetes.default"))
        except (TimeoutError, ConnectionError):
            return False
