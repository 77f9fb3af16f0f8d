"""canal-dns measured beside its peers: one core each, in the same run. `python -m benchmarks.run`; README.md says how."""
