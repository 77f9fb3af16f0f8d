"""What makes the generated files of manifests/: `python -m manifests.tools --helm HELM`, or `make manifests`.

Rules of this package:
- the chart is the one truth: its values.yaml, templates and files are written by hand, everything else is made of them;
- a maker gives {path: text} and writes nothing, so that a test can hold what stands there against it;
- nothing here is shipped or runs in a cluster.
"""
