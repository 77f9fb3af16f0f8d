"""A canal-dns process for tests: started, asked over real sockets, told by signals, always ended."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import dns.message
import dns.query

DEMO = Path(__file__).parents[1] / "config" / "demo"


def wait_for(condition, seconds=20.0, what="the condition"):
    """Poll until `condition()` is truthy and give its value; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {seconds} s (last value: {value!r})")
        time.sleep(0.01)


class Process:
    """`canal-dns ARGUMENTS` with its output collected line by line."""

    def __init__(self, *arguments, cwd=None, environment=None, prefix=()):
        """`environment`: variables over those of this process. `prefix`: a command that this one takes the place of."""
        self.lines = []
        self.errors = []
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, "-m", "canal_dns", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )  # fmt: skip
        self.reading = threading.Event()
        """While it is not set nobody reads the output."""
        self.reading.set()
        self._readers = [
            threading.Thread(target=self._read, args=(self.popen.stdout, self.lines), daemon=True),
            threading.Thread(target=self._read, args=(self.popen.stderr, self.errors), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines):
        with contextlib.suppress(ValueError):
            for line in stream:
                self.reading.wait()
                lines.append(line.rstrip("\n"))

    def line_with(self, text):
        """The first line of standard output that contains the text; waits for it."""

        def found():
            matching = [line for line in self.lines if text in line]
            if not matching and self.popen.poll() is not None:
                raise AssertionError(f"it ended with {self.popen.returncode}: {self.lines} {self.errors}")
            return matching

        return wait_for(found, what=f"a line with {text!r}")[0]

    def error_with(self, text):
        return wait_for(lambda: [line for line in self.errors if text in line], what=f"a log line with {text!r}")[0]

    def signal(self, number):
        self.popen.send_signal(number)

    def wait(self, seconds=20):
        """The exit status, once the process has ended by itself."""
        status = self.popen.wait(seconds)
        for reader in self._readers:
            reader.join(5)
        self.popen.stdout.close()
        self.popen.stderr.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reading.set()
        if self.popen.poll() is None:
            self.signal(signal.SIGINT)
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(10)
        if not self.popen.stdout.closed:
            self.wait()


class Server(Process):
    """`canal-dns serve` on free ports, ready for questions."""

    def __init__(self, *arguments, manifests=DEMO, upstream="127.0.0.1:9", workers="0", cwd=None, prefix=()):
        super().__init__(
            "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", workers,
            "--manifests", str(manifests), "--upstream", upstream, *arguments, cwd=cwd, prefix=prefix,
        )  # fmt: skip

    @property
    def address(self):
        host, _, port = self.line_with("listening on").split()[2].rstrip(",").rpartition(":")
        return host, int(port)

    @property
    def admin(self):
        return self.line_with("admin endpoints: ").split()[-1]

    def ready(self):
        """Wait until the first table is published, and give the server back."""
        self.line_with("bindings and reasons: ")
        return self

    def ask(self, name, rdtype="A", tcp=False, **options):
        query = dns.message.make_query(name, rdtype, **options)
        ask = dns.query.tcp if tcp else dns.query.udp
        return ask(query, self.address[0], port=self.address[1], timeout=5)

    def addresses(self, name, rdtype="A", **options):
        reply = self.ask(name, rdtype, **options)
        return sorted(str(record) for rrset in reply.answer for record in rrset)

    def get(self, path):
        """Status and text of an admin endpoint."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.admin + path, timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as problem:
            with problem:
                return problem.code, problem.read().decode()

    def bindings(self):
        return json.loads(self.get("/bindings")[1])
