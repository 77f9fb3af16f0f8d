"""Packets in and out: UDP, TCP, the forwarder and the worker processes. Decides nothing."""
