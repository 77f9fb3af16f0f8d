"""manifests/coredns/: the blocks of docs/layouts.md as files, per platform.

What CoreDNS is given comes from docs/layouts.md, whose blocks `make e2e` runs; here it is only wrapped.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

from manifests.tools.places import LAYOUTS, MADE, MANIFESTS

_FENCE = re.compile(r"^```(\w+) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> dict[tuple[str, str], str]:
    """{("corefile", "B"): text}, all of docs/layouts.md."""
    return {(language, name): text for language, name, text in _FENCE.findall(LAYOUTS.read_text())}


def make() -> dict[Path, str]:
    known = blocks()
    layout_b = known["corefile", "B"]
    made = f"of docs/layouts.md, {MADE}"
    files = {
        "layout-a.corefile": f"# Layout A, the whole Corefile; {made}.\n{known['corefile', 'A']}",
        "layout-a-before-1.13.corefile": (
            f"# Layout A, the first block for CoreDNS 1.11.4 to 1.12; {made}.\n{known['corefile', 'A-old']}"
        ),
        "layout-b.corefile": f"# Layout B, the block to add; {made}.\n{layout_b}",
        "layout-b-before-1.13.corefile": (
            f"# Layout B, the block to add to CoreDNS 1.11.4 to 1.12; {made}.\n{known['corefile', 'B-old']}"
        ),
        "coredns-plain-layout-a.yaml": f"# What canal-dns asks in Layout A; {made}.\n{known['yaml', 'A-service']}",
        "coredns-plain-layout-f.yaml": f"# What canal-dns asks in Layout F; {made}.\n{known['yaml', 'F-service']}",
        "coredns-custom.yaml": _custom(layout_b, made),
        "eks-configuration-values.json": json.dumps({"corefile": layout_b + known["corefile", "vendor"]}, indent=1) + "\n",
    }
    return {MANIFESTS / "coredns" / name: text for name, text in files.items()}


def _custom(block: str, made: str) -> str:
    return f"""\
# Layout B for k3s, RKE2 and AKS, whose CoreDNS imports *.server of this ConfigMap; {made}.
# There may be one already: then add the key to it.
apiVersion: v1
kind: ConfigMap
metadata:
  name: coredns-custom
  namespace: kube-system
data:
  canal-dns.server: |
{textwrap.indent(block, "    ")}"""
