"""The cluster by hand: `python -m tests.e2e.up` brings it up in a namespace of its own and opens a shell in it.

`python -m tests.e2e.up COMMAND...` runs the command there instead and ends with its exit code. $KUBECONFIG, kubectl and
helm are set; `--no-mesh` leaves istiod, Envoy and the backends out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e import binaries, namespace
from tests.e2e.programs import ALL
from tests.e2e.workshop import MissingError, say
from tests.e2e.world import World

_INSIDE = "CANAL_DNS_E2E_INSIDE"


def main(arguments: list[str]) -> int:
    try:
        found = {program.name: binaries.find_or_make(program, os.environ) for program in ALL}
        if not os.environ.get(_INSIDE):
            again = [*namespace.command(), sys.executable, "-m", "tests.e2e.up", *arguments]
            return subprocess.run(again, env={**os.environ, _INSIDE: "1"}, check=False).returncode
    except (MissingError, namespace.ForbiddenError) as problem:
        say(str(problem))
        return 1
    namespace.make_addresses_local()
    namespace.make_files_a_pods()
    with_mesh = "--no-mesh" not in arguments
    command = [argument for argument in arguments if argument != "--no-mesh"]
    with tempfile.TemporaryDirectory(prefix="canal-dns-up-") as folder:
        world = World(found, Path(folder))
        try:
            world.control.start()
            if with_mesh:
                world.backends.start()
                world.mesh.start()
            tools = Path(folder) / "tools"
            tools.mkdir()
            for name in ("kubectl", "helm"):
                (tools / name).symlink_to(found[name])
            say(f"the cluster is up: KUBECONFIG={world.control.kubeconfig}")
            variables = {"KUBECONFIG": str(world.control.kubeconfig), "PATH": f"{tools}:{os.environ['PATH']}"}
            shell = command or [shutil.which("bash") or "sh"]
            return subprocess.run(shell, env={**os.environ, **variables}, check=False).returncode
        finally:
            world.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
