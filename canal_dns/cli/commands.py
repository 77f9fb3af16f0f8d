"""What each command does: options in, exit status out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from canal_dns.app import control, demo, loop, queries, remote
from canal_dns.app.feed import Feed, offline
from canal_dns.cli import render
from canal_dns.cli.options import EXIT_FAILED, EXIT_OK, configuration
from canal_dns.errors import ConfigError


def serve(options: argparse.Namespace) -> int:
    """Run the server until it is told to stop."""
    return control.serve(configuration(options), _say)


def _say(text: str) -> None:
    """A line for people; whoever closes the pipe (`serve | head -1`) does not end a server."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - it lives until the process ends


def run_demo(options: argparse.Namespace) -> int:
    """Run the demo, or with `--once` ask its questions and stop."""
    plan = demo.plan(options.manifests, options.listen, options.admin, once=options.once)
    return loop.run(demo.run(plan, render.Show(render.Paint(sys.stdout))))


def table(options: argparse.Namespace) -> int:
    """Print what is bound and what is skipped."""
    plain = _ask(options) if options.server else _read(options).to_plain()
    if options.output == "json":
        print(json.dumps(plain, indent=2))
    else:
        render.table(plain, render.Paint(sys.stdout), everything=options.all)
    return EXIT_OK


def explain(options: argparse.Namespace) -> int:
    """Print why each name is bound, or the first rule that fails."""
    if "" in options.names:
        raise ConfigError("NAME", "", "a name is needed")
    if options.server:
        plain = _ask(options)
        explained = [remote.explain(plain, name) for name in options.names]
    else:
        feed = _read(options)
        explained = [feed.explain(name) for name in options.names]
    if options.output == "json":
        print(json.dumps([dataclasses.asdict(one) for one in explained], indent=2))
    else:
        for number, one in enumerate(explained):
            if number:
                print()
            render.explanation(one, render.Paint(sys.stdout))
    return EXIT_OK if all(one.bound for one in explained) else EXIT_FAILED


def write_queries(options: argparse.Namespace) -> int:
    """Print queries for the names of a table, one a line."""
    mix = queries.read_mix(options.mix)
    if not 1 <= options.count <= queries.MOST:
        raise ConfigError("--count", options.count, f"1 to {queries.MOST:,}")
    if options.server:
        names = queries.names_of(_ask(options), options.cluster_domain)
    else:
        feed = _read(options)
        names = queries.names_of(feed.to_plain(), feed.settings.cluster_domain)
    impossible = queries.impossible(names, mix)
    if not mix.keys() - impossible.keys():
        raise ConfigError("--mix", options.mix, f"nothing of it can be asked: {'; '.join(impossible.values())}")
    for kind, why in impossible.items():
        print(f"canal-dns: warning: no queries of kind {kind}: {why}", file=sys.stderr)
    for line in queries.lines(names, mix, options.count, options.seed):
        print(line)
    return EXIT_OK


def check(options: argparse.Namespace) -> int:
    """Validate a configuration; warnings do not change the exit status."""
    settings = configuration(options).load()
    for warning in settings.warnings:
        print(f"canal-dns: warning: {warning}", file=sys.stderr)
    print(f"{options.config}: valid")
    return EXIT_OK


def _ask(options: argparse.Namespace) -> dict[str, Any]:
    """The bindings of a running server, with what keeps them from being whole told on standard error."""
    if options.manifests or options.config or options.kubeconfig:
        raise ConfigError(
            "--server", options.server, "it stands alone: a running server knows its own source and configuration"
        )
    plain = remote.bindings(options.server)
    for problem in remote.warnings(plain):
        print(f"canal-dns: warning: {problem}", file=sys.stderr)
    return plain


def _read(options: argparse.Namespace) -> Feed:
    """The bindings of a source read once; what it could not read is told on standard error and does not stop the rest."""
    if not options.config and not options.manifests and not options.kubeconfig:
        raise ConfigError("--manifests", None, "say where to read: --manifests DIR, --kubeconfig FILE, -c FILE or --server URL")
    settings = configuration(options, offline=True).load()
    feed = loop.run(offline(settings.source, settings.binding))
    for problem in feed.source.problems():
        print(f"canal-dns: warning: {problem}", file=sys.stderr)
    for skip in feed.source.skips:
        print(f"canal-dns: warning: {skip}", file=sys.stderr)
    return feed


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "serve": serve,
    "demo": run_demo,
    "table": table,
    "explain": explain,
    "queries": write_queries,
    "check": check,
}
"""Command -> what runs it."""
