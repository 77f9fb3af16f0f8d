"""Writes every generated file of manifests/: `python -m manifests.tools --helm HELM`."""

import argparse
import sys
from pathlib import Path

from manifests.tools import corefiles, dashboard, plain, schema, values


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m manifests.tools", description=__doc__)
    parser.add_argument("--helm", type=Path, required=True, metavar="HELM", help="the program that renders the chart")
    helm = parser.parse_args().helm
    # The chart's own files first: Helm reads them.
    for make in (schema.make, values.make, dashboard.make, corefiles.make, lambda: plain.make(helm)):
        for path, text in make().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
