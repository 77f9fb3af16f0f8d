"""From objects to bindings: one source, the view it fills, and the rule over it.

    Source -> View -> Binder -> changes

A feed is replaced whole when the source or the rule's settings change; its result is compared with the one before,
so that a name which stays bound is never away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from canal_dns.kube.files import ManifestSource
from canal_dns.kube.source import Source
from canal_dns.mesh import report
from canal_dns.mesh.binding import Binder
from canal_dns.mesh.explain import Explanation, explain
from canal_dns.mesh.readiness import Readiness
from canal_dns.mesh.result import Bound, Result
from canal_dns.mesh.view import View
from canal_dns.metrics import Counters
from canal_dns.settings import BindingSettings, GatewayUnready, SourceSettings


class Feed:
    """The bindings of one source under one set of rules."""

    def __init__(self, source: SourceSettings, settings: BindingSettings, counters: Counters) -> None:
        """`counters`: where the source counts what happens to it."""
        self.settings = settings
        self.source_settings = source
        self.view = View()
        self.source = _source(source, settings, self.view, counters)
        self.result = Result()
        """What the last `refresh` found; reasons of skipped names are found when they are asked for, once."""
        self._binder = Binder(self.view, settings)
        self._readiness = Readiness(settings.gateway_unready_after)
        self._reasons: Counter[str] | None = None

    def rebind(self, settings: BindingSettings) -> None:
        """Take other rules for the same objects; the next `refresh` starts from nothing."""
        if settings.gateway_unready_after != self.settings.gateway_unready_after:
            self._readiness = Readiness(settings.gateway_unready_after)
        self.settings = settings
        self._binder = Binder(self.view, settings)
        self._reasons = None

    def refresh(self, now: float) -> Mapping[str, Bound | None]:
        """Apply the rule to what has changed: name -> binding, None where there is none any more."""
        changes = dict(self._binder.refresh(self._counting()))
        # The objects that came may show other gateways, ready or not.
        self._readiness.observe(self._binder.result.gateways, now)
        changes.update(self._binder.refresh(self._counting()))
        self.result = self._binder.result
        self._reasons = None
        return changes

    def next_due(self) -> float | None:
        """When a gateway's readiness will count although no object changes."""
        return self._readiness.next_look()

    def to_plain(self) -> dict[str, Any]:
        """The shape of `table -o json`."""
        return report.to_plain(self.result, self.view, self.settings)

    def explain(self, name: str) -> Explanation:
        """Why a name is bound or not; `name` in full or as people write it."""
        return explain(self._binder, self.view, self.settings, name)

    def reasons(self) -> Counter[str]:
        """How many names are skipped, by reason; Services that no VirtualService mentions among them."""
        if self._reasons is None:
            # It looks at every Service: with 20,000 of them 50 ms, which no scrape is to cost again while nothing changes.
            self._reasons = report.reasons(self.result, self.view, self.settings)
        return self._reasons

    def _counting(self) -> frozenset[str]:
        """The gateways that count as unready."""
        return self._readiness.unready if self.settings.gateway_unready is GatewayUnready.FORWARD else frozenset()


def _source(source: SourceSettings, settings: BindingSettings, view: View, counters: Counters) -> Source:
    if source.cluster is None:
        return ManifestSource(Path(source.manifests), view)
    # Only here: it brings 40 MB of client libraries along.
    from canal_dns.kube.watcher import ClusterSource

    return ClusterSource(source.cluster, settings.gateways, view, counters)


async def offline(source: SourceSettings, settings: BindingSettings) -> Feed:
    """A feed that was read once, for `table` and `explain`: a gateway that is not ready now counts as not ready.

    Raises ManifestError, ClusterError when nothing can be read.
    """
    feed = Feed(source, settings, Counters())
    await feed.source.read()
    feed.refresh(0.0)
    return feed
