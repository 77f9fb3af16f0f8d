"""The command line: every command, its flags, and what `--help` teaches."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from canal_dns import __version__
from canal_dns.app import queries
from canal_dns.app.config import Configuration
from canal_dns.errors import ConfigError

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2

_TOP = """\
canal-dns answers the names of Services that are bound to an Istio internal gateway with the gateway's address,
and forwards every other query to CoreDNS."""

_EXAMPLES = """\
examples:
  canal-dns demo                                     try it on this machine
  canal-dns serve -c canal-dns.yaml                  run the server
  canal-dns table --kubeconfig ~/.kube/config        what would be bound in that cluster, and what not
  canal-dns explain helloworld.default --server http://127.0.0.1:8080
"""

_SERVE = """\
Answers DNS on every `listen` address (UDP and TCP) until SIGTERM. SIGHUP, or a change of the file, loads the
configuration again; a bad one is refused and the old one stays. Flags win over the file."""

_SERVE_EXAMPLES = """\
examples:
  canal-dns serve -c canal-dns.yaml
  canal-dns serve --listen 127.0.0.1:1053 --upstream 10.96.0.10:53 --manifests manifests/

exit status: 0 after SIGTERM or Ctrl-C, 1 when it cannot run (port in use), 2 for a configuration that cannot be used.
"""

_DEMO = """\
Starts a stand-in CoreDNS for the Services of the demo manifests and a canal-dns in front of it, and prints what to dig.
Edit the manifests meanwhile: the answers follow."""

_TABLE = """\
Prints every bound name with its VIP and cause, and every skipped one with its reason, from a folder of manifests
(no server is needed) or from a running server."""

_EXPLAIN = """\
Prints the chain Service -> VirtualService -> Gateway -> VIP for each name, or the first rule that fails, with the object
and the field. A name may be short: `helloworld` (where one namespace has it), `helloworld.shop`, or the whole name."""

_EXPLAIN_EXIT = "exit status: 0 when every name is bound, 1 when one is not, 2 for bad use.\n"


_QUERIES = """\
Prints queries, "NAME TYPE" on each line, as dnsperf and flamethrower read them: for names of the live table, of other
Services, of Services that do not exist, and for what a pod's search list (ndots:5) tries in vain before each. Every name
is asked for A and AAAA. The same bindings and the same seed give the same lines."""

_QUERIES_EXAMPLES = """\
examples:
  canal-dns queries --server http://127.0.0.1:8080 > cluster.queries
  canal-dns queries --kubeconfig ~/.kube/config --mix bound=100 --count 1000
  dnsperf -s 10.96.0.10 -d cluster.queries -c 8 -l 30

kinds of --mix:
"""


class _Parser(argparse.ArgumentParser):
    """Errors point to `--help` of the command at hand and end with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    top = _Parser(prog="canal-dns", description=_TOP, epilog=_EXAMPLES, formatter_class=raw)
    top.add_argument("--version", action="version", version=f"canal-dns {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    serve = commands.add_parser("serve", help="the server", description=_SERVE, epilog=_SERVE_EXAMPLES, formatter_class=raw)
    _add_config(serve)
    _add_source(serve)
    serve.add_argument("--listen", action="append", metavar="ADDRESS:PORT", help="listen here, UDP and TCP (repeatable)")
    serve.add_argument("--upstream", action="append", metavar="ADDRESS[:PORT]", help="forward to this CoreDNS (repeatable)")
    serve.add_argument("--ttl", type=int, metavar="SECONDS", help="TTL of bound answers (default 5)")
    serve.add_argument("--workers", type=_workers, metavar="N", help="worker processes: auto, 0 (one process) or a number")
    serve.add_argument("--admin", metavar="ADDRESS:PORT", help="/health /ready /metrics /bindings here; off: nowhere")
    serve.add_argument(
        "--user", metavar="UID[:GID]", help="whom root becomes; auto (default): 65532 where its files allow; 0: stays root"
    )

    demo = commands.add_parser("demo", help="the whole thing on this machine", description=_DEMO, formatter_class=raw)
    demo.add_argument("--once", action="store_true", help="ask the questions, print the answers, exit")
    demo.add_argument("--manifests", type=Path, metavar="DIR", help="other manifests than the demo's")
    demo.add_argument("--listen", metavar="ADDRESS:PORT", help="default 127.0.0.1:1053 (with --once: any free port)")
    demo.add_argument("--admin", metavar="ADDRESS:PORT", help="default 127.0.0.1:8080 (with --once: none)")

    table = commands.add_parser("table", help="what is bound, what is skipped and why", description=_TABLE, formatter_class=raw)
    _add_config(table)
    _add_source(table)
    _add_report(table)
    table.add_argument("-A", "--all", action="store_true", help="list Services without any route too (text)")

    explain = commands.add_parser(
        "explain", help="why a name is bound, or not", description=_EXPLAIN, epilog=_EXPLAIN_EXIT, formatter_class=raw
    )
    explain.add_argument("names", nargs="+", metavar="NAME")
    _add_config(explain)
    _add_source(explain)
    _add_report(explain)

    kinds = "".join(f"  {kind:8} {what}\n" for kind, what in queries.KINDS.items())
    asked = commands.add_parser(
        "queries",
        help="queries for dnsperf, from the live table",
        description=_QUERIES,
        epilog=_QUERIES_EXAMPLES + kinds,
        formatter_class=raw,
    )
    _add_config(asked)
    _add_source(asked)
    _add_server(asked)
    asked.add_argument("--mix", default=queries.DEFAULT_MIX, metavar="KIND=SHARE[,...]", help=f"default {queries.DEFAULT_MIX}")
    asked.add_argument("--count", type=int, default=10_000, metavar="N", help="so many queries (default 10000)")
    asked.add_argument("--seed", type=int, default=1, metavar="N", help="of the chance (default 1)")

    check = commands.add_parser(
        "check",
        help="validate a configuration",
        description="Validates a configuration file; exit status 2 if it cannot be used.",
    )
    check.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="the configuration (YAML)")
    return top


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("-c", "--config", type=Path, metavar="FILE", help="configuration (YAML)")


def _add_source(command: argparse.ArgumentParser) -> None:
    source = command.add_mutually_exclusive_group()
    source.add_argument("--manifests", metavar="DIR", help="folder or file of Kubernetes manifests")
    source.add_argument("--kubeconfig", metavar="FILE", help="the cluster of this kubeconfig")
    command.add_argument("--context", metavar="NAME", help="a context of the kubeconfig; default: its current one")
    command.add_argument(
        "--gateway", action="append", metavar="NAMESPACE/NAME",
        help="Service of an internal gateway (repeatable; default istio-system/internalgateway)",
    )  # fmt: skip
    command.add_argument("--cluster-domain", metavar="DOMAIN", help="default cluster.local")


def _add_server(command: argparse.ArgumentParser) -> None:
    command.add_argument("--server", metavar="URL", help="ask a running server, such as http://127.0.0.1:8080")


def _add_report(command: argparse.ArgumentParser) -> None:
    _add_server(command)
    command.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default text")


_PLAIN_FLAGS = (
    ("listen", "listen"),
    ("upstreams", "upstream"),
    ("clusterDomain", "cluster_domain"),
    ("ttl", "ttl"),
    ("workers", "workers"),
    ("admin", "admin"),
    ("user", "user"),
)
"""Keys of the file whose flag says the same."""


def _workers(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def configuration(options: argparse.Namespace, *, offline: bool = False) -> Configuration:
    """The file and the flags of a command, in the keys of the file."""
    flags: dict[str, Any] = {}
    given = vars(options)
    for key, flag in _PLAIN_FLAGS:
        if given.get(flag) is not None:
            flags[key] = given[flag]
    if given.get("manifests") is not None:
        flags["source"] = {"manifests": str(options.manifests)}
    if given.get("kubeconfig") is not None:
        flags["source"] = {"cluster": {"kubeconfig": options.kubeconfig, "context": options.context}}
    elif given.get("context") is not None:
        raise ConfigError("--context", options.context, "a context is one of a file: name --kubeconfig too")
    if given.get("gateway") is not None:
        flags["gateways"] = [{"service": gateway} for gateway in options.gateway]
    return Configuration(options.config, flags, offline)
