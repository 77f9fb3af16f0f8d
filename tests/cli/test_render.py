"""Text for people: aligned columns, colour on a terminal only, nothing hidden without a word."""

import io

import pytest

from canal_dns.cli import render

PLAIN = {
    "gateways": [
        {"gateway": "istio-system/gw", "vips": ["10.96.9.9", "fd00:10:96::9"], "ready": True, "ports": [80],
         "attached": ["ns/g"], "warnings": []},
        {"gateway": "ns/other", "vips": [], "ready": False, "ports": [], "attached": [], "warnings": ["no usable address"]},
    ],
    "bound": [
        {
            "name": "helloworld.default.svc.cluster.local", "vips": ["10.96.9.9", "fd00:10:96::9"],
            "gateway": "istio-system/gw", "routes": ["default/helloworld"], "warnings": ["short forms get 404"],
        }
    ],
    "skipped": [
        {"name": "orders.default.svc.cluster.local", "service": "default/orders", "route": "default/orders",
         "reason": "PortNotServed", "message": "port 9999 is not served"},
        {"name": "plain.default.svc.cluster.local", "service": "default/plain", "route": "",
         "reason": "NoRoute", "message": "-"},
    ],
    "problems": [{"object": "Gateway ns/g", "field": "spec.servers[0]", "reason": "Invalid", "message": "no port"}],
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


def text_of(stream, **options):
    render.table(PLAIN, render.Paint(stream), **{"everything": False, **options})
    return stream.getvalue()


def test_table():
    assert text_of(io.StringIO()).splitlines() == [
        "GATEWAYS (2)",
        "SERVICE           VIP                        READY   PORTS   ATTACHED",
        "istio-system/gw   10.96.9.9, fd00:10:96::9   yes     80      ns/g",
        "ns/other          none                       no      none    none",
        "warning: ns/other: no usable address",
        "",
        "BOUND (1)",
        "NAME                                   VIP                        GATEWAY           ROUTES",
        "helloworld.default.svc.cluster.local   10.96.9.9, fd00:10:96::9   istio-system/gw   default/helloworld",
        "warning: helloworld.default.svc.cluster.local: short forms get 404",
        "",
        "SKIPPED (2)",
        "NAME                               REASON          ROUTE            WHY",
        "orders.default.svc.cluster.local   PortNotServed   default/orders   port 9999 is not served",
        "1 Service that no VirtualService mentions keeps the answer of CoreDNS (--all lists them)",
        "problem: Gateway ns/g spec.servers[0]: no port (Invalid)",
    ]


def test_everything_lists_services_without_a_route():
    assert "plain.default.svc.cluster.local" in text_of(io.StringIO(), everything=True)


def test_colour_only_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" not in text_of(io.StringIO())
    assert "\x1b[32mhelloworld" in text_of(Terminal())


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_may_refuse_colour(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert "\x1b[" not in text_of(Terminal())
