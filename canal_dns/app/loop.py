"""The event loop: uvloop, chosen here and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop
from uvloop._version import __version__ as _version

T = TypeVar("T")

NAME = f"uvloop {_version}"


def new_event_loop() -> asyncio.AbstractEventLoop:
    """What workers are given to make their loop with."""
    return uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a fresh loop."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
