"""The main module of a worker process: `python -m canal_dns.app.worker FD TALLY`.

It imports the packet path and nothing else: no rule, no YAML, no metrics library, whose memory every worker would pay for.
"""

from __future__ import annotations

import sys

from canal_dns.app.logs import Logs
from canal_dns.app.loop import new_event_loop
from canal_dns.server.child import run_worker
from canal_dns.settings import LogSettings


def argv(fd: int, tally: int) -> list[str]:
    """The command of a worker process that is given the socket `fd` and the memory `tally`."""
    return [sys.executable, "-m", "canal_dns.app.worker", str(fd), str(tally)]


def main(fd: int, tally: int) -> None:
    """The whole life of a worker process."""
    logs = Logs()
    logs.start(LogSettings())
    try:
        run_worker(fd, tally, new_event_loop, logs.configure, lambda: logs.dropped)
    finally:
        logs.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
