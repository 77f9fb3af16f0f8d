"""The front door: argv in, exit status out. Rules live elsewhere; text is made in `render`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from canal_dns.cli import commands, options
from canal_dns.errors import CanalError, ClusterError, ConfigError, ManifestError, RemoteError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status: 0, 1 (it failed, or `explain` found a name not bound), 2 (bad use)."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it lives until the process ends
    try:
        given = options.parser().parse_args(argv)
    except SystemExit as ended:
        return int(ended.code or 0)
    try:
        return commands.COMMANDS[given.command](given)
    except (ConfigError, ManifestError, ClusterError, RemoteError) as problem:
        print(f"canal-dns: {problem}", file=sys.stderr)
        return options.EXIT_USAGE
    except CanalError as problem:
        print(f"canal-dns: {problem}", file=sys.stderr)
        return options.EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing more is to be said, to nobody.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it lives until the process ends
        return options.EXIT_OK
    except OSError as problem:
        print(f"canal-dns: {problem.strerror or problem}", file=sys.stderr)
        return options.EXIT_FAILED
