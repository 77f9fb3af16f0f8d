"""What a person sees while it measures, on standard error: on a terminal one live line, in a pipe one plain line per step."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts steps. `step` announces what happens now, `note` leaves a line that stays."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._began = time.monotonic()
        self._done = 0
        self._total = 0

    def expect(self, steps: int) -> None:
        """So many more steps will come."""
        self._total += steps

    def step(self, text: str) -> None:
        self._done += 1
        line = f"[{self._done:3}/{self._total}] {self._elapsed()} {text}"
        if self._live:
            self._out.write(f"\r\x1b[K{line[:118]}")
        else:
            self._out.write(f"{line}\n")
        self._out.flush()

    def note(self, text: str) -> None:
        self._out.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        self._out.flush()

    def end(self) -> None:
        self.note(f"measured in {self._elapsed()}")

    def _elapsed(self) -> str:
        seconds = int(time.monotonic() - self._began)
        return f"{seconds // 60}:{seconds % 60:02}"
