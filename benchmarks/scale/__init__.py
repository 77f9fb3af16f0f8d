"""The size of a large cluster on a real API server: `python -m benchmarks.scale`; the report is SCALE.md."""
