"""What one test puts into the cluster, so that it can be taken away again in the opposite order.

Rules of this file:
- everything that a test creates goes through its scene, or is removed by the test itself: tests share one cluster, and an
  old VirtualService with hosts `*` gets the requests of a younger one;
- the end waits until the gateway has forgotten the workloads, so that the next test begins with a clean one.
"""

from __future__ import annotations

from typing import Any

from tests.e2e import objects
from tests.e2e.world import Workload, World


class Scene:
    def __init__(self, world: World) -> None:
        self.world = world
        self.workloads: list[Workload] = []
        self._made: list[objects.Object] = []

    def create(self, *things: objects.Object) -> None:
        """Creates them, in order. Raises ApiError."""
        for thing in things:
            self.world.kube.create(thing)
            self._made.append(thing)

    def apply(self, *things: objects.Object) -> None:
        """Creates or changes them. Raises ApiError."""
        for thing in things:
            self.world.kube.apply(thing)
            self._made.append(thing)

    def remove(self, *things: objects.Object) -> None:
        """Deletes some of them before the end."""
        self.world.kube.remove(*things)

    def workload(self, stem: str = "helloworld", namespace: str = "default", **rest: Any) -> Workload:
        """A workload with a fresh name; `rest` as in `World.workload`."""
        return self.named_workload(self.world.fresh(stem), namespace, **rest)

    def named_workload(self, name: str, namespace: str = "default", **rest: Any) -> Workload:
        made = self.world.workload(name, namespace, **rest)
        self.workloads.append(made)
        return made

    def clear(self) -> None:
        self.world.kube.remove(*reversed(self._made))
        for workload in self.workloads:
            workload.remove()
        for workload in self.workloads:
            self.world.mesh.wait_for_route(workload.host, there=False)
