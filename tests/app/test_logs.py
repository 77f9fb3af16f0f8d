"""The log never stops an answer, and says what it lost."""

import io
import json
import logging
import os
import queue
import subprocess
import sys
import threading

import pytest

from canal_dns.app.logs import BoundedHandler, Logs
from canal_dns.settings import LogFormat, LogSettings


@pytest.fixture
def written():
    """Log through a real Logs and give back what stands in the stream."""

    def write(settings, *calls):
        stream = io.StringIO()
        logs = Logs(stream)
        logs.start(settings)
        try:
            for call in calls:
                call(logging.getLogger("canal_dns.test"))
        finally:
            logs.stop()
        return stream.getvalue()

    return write


def test_text_lines(written):
    line = written(LogSettings(), lambda log: log.info("published generation %d", 3))
    assert line.endswith("Z INFO    canal_dns.test published generation 3\n")
    assert len(line.splitlines()) == 1


def test_json_lines(written):
    line = written(LogSettings(format=LogFormat.JSON), lambda log: log.warning("müde"))
    assert {"level": "warning", "logger": "canal_dns.test", "msg": "müde"}.items() <= json.loads(line).items()


@pytest.mark.parametrize("form", LogFormat)
def test_a_traceback_is_written(written, form):
    def fail(log):
        try:
            raise ValueError("deep")
        except ValueError:
            log.exception("it failed")

    assert "ValueError: deep" in written(LogSettings(format=form), fail)


def test_level(written):
    assert written(LogSettings(level="warning"), lambda log: log.info("quiet")) == ""


def test_loggers_are_given_back(written):
    written(LogSettings())
    assert logging.getLogger("canal_dns").handlers == []
    assert logging.getLogger("canal_dns").propagate


def test_a_full_queue_loses_lines_and_tells_how_many():
    records = queue.Queue(2)
    handler = BoundedHandler(records)
    record = logging.LogRecord("canal_dns", logging.INFO, "", 0, "one", None, None)
    for _ in range(5):
        handler.handle(record)
    assert handler.lost == handler.dropped == 3
    records.get(), records.get()
    handler.handle(record)
    assert records.get().getMessage() == "3 log lines were lost: the reader of the log is too slow"
    assert records.get().getMessage() == "one"


def test_a_reader_that_has_stopped_does_not_stop_the_writer():
    """faults.md P13."""
    stuck, reading = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text):
            reading.set()
            stuck.wait(30)
            return len(text)

    logs = Logs(Stuck())
    logs.start(LogSettings())
    try:
        log = logging.getLogger("canal_dns.test")
        for number in range(20_000):
            log.info("line %d", number)
        assert reading.wait(10)
    finally:
        stuck.set()
        logs.stop()


LOGGING = """
import logging
from canal_dns.app.logs import QUEUE_SIZE, Logs
from canal_dns.settings import LogSettings
logs = Logs()
logs.start(LogSettings())
for number in range(2 * QUEUE_SIZE):
    logging.getLogger("canal_dns.test").info("line %d", number)
logs.stop()
print(logs.dropped)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_p13_a_reader_that_has_stopped_does_not_keep_the_process_from_ending(unbuffered):
    unread, stderr = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOGGING], stdout=subprocess.PIPE, stderr=stderr, timeout=30, check=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    finally:
        os.close(unread)
        os.close(stderr)
    assert 8000 < int(done.stdout) < 10_000, "what neither the pipe nor the queue had room for"


def test_a_full_disk_is_counted_and_stops_nothing():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "no space left on device")

    logs = Logs(Full())
    logs.start(LogSettings())
    logging.getLogger("canal_dns.test").info("one")
    logging.getLogger("canal_dns.test").info("two")
    logs.stop()
    assert logs.dropped == 2
