"""The log: standard library loggers, one line per event on standard error, written by a thread of its own.

Rules of this file:
- the event loop only puts a record into a bounded queue: a reader of the log that has stopped never stops an answer;
- what does not fit is counted, and told in a line once there is room;
- the thread holds no lock while it writes: one that is stuck, for the reader has stopped, would keep the process from ending.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TextIO

from canal_dns.settings import LogFormat, LogSettings

QUEUE_SIZE = 10_000
"""Records that may wait for a slow reader of the log."""
STOP_TIMEOUT = 1.0
"""Seconds that the end of the process waits for a reader of the log."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts (RFC 3339, UTC), level, logger, msg, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO  canal_dns.app message`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_timestamp(record)} {record.levelname:<7} {record.name} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _timestamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z"


class BoundedHandler(logging.handlers.QueueHandler):
    """Puts a record into the queue, or counts it as lost when the queue is full; never blocks."""

    def __init__(self, records: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__(records)
        self.lost = 0
        """Since the last time that it was told."""
        self.dropped = 0
        """Ever."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """All stays in one process: the record travels as it is, and the thread formats it."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self.lost:
                lost = f"{self.lost} log lines were lost: the reader of the log is too slow"
                self.queue.put_nowait(logging.LogRecord("canal_dns", logging.WARNING, "", 0, lost, None, None))
                self.lost = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1
            self.dropped += 1


def _to_stderr(text: str) -> None:
    """Straight to the descriptor: sys.stderr has a lock, which the end of the process waits for. Raises OSError."""
    octets = text.encode(errors="backslashreplace")
    while octets:
        octets = octets[os.write(2, octets) :]


class Logs:
    """The log of one process: started once, its level and format changed by `configure`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._put: Callable[[str], object] = _to_stderr if stream is None else stream.write
        self._formatter: logging.Formatter = TextFormatter()
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUE_SIZE)
        self._handler = BoundedHandler(self._records)
        self._unwritten = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._root = logging.getLogger("canal_dns")

    @property
    def dropped(self) -> int:
        """Lines that found no room, or could not be written."""
        return self._handler.dropped + self._unwritten

    def start(self, settings: LogSettings) -> None:
        """From here on `canal_dns` loggers write to the stream."""
        self.configure(settings)
        self._root.addHandler(self._handler)
        self._root.propagate = False
        self._writer.start()

    def configure(self, settings: LogSettings) -> None:
        """Take over level and format."""
        self._root.setLevel(settings.level.upper())
        self._formatter = JsonFormatter() if settings.format is LogFormat.JSON else TextFormatter()

    def stop(self) -> None:
        """Write what waits and give the loggers back; a reader that takes nothing is left after STOP_TIMEOUT."""
        self._root.removeHandler(self._handler)
        self._root.propagate = True
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=STOP_TIMEOUT)
            self._writer.join(STOP_TIMEOUT)

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            try:
                self._put(f"{self._formatter.format(record)}\n")
            except Exception:
                # The disk is full, the reader is gone, or the record is none: there is nowhere to tell but the counter.
                self._unwritten += 1
