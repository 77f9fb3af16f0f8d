"""Where things stand, and the words at the head of every generated file."""

from pathlib import Path

MANIFESTS = Path(__file__).resolve().parents[1]
ROOT = MANIFESTS.parent
CHART = MANIFESTS / "helm" / "canal-dns"
LAYOUTS = ROOT / "docs" / "layouts.md"
CONFIG = ROOT / "config" / "canal-dns.yaml"

MADE = "made by `make manifests`, not by hand"
