"""What can go wrong in a measurement: one error, whose text is fit to be shown as it is."""

from __future__ import annotations


class BenchError(Exception):
    """Something cannot be measured: a server that does not start, a generator that fails, a machine that is too small."""
