"""Run every case of cases.json against a real server: `python -m tests.conformance.run [-v] [--workers 0|2|both] [ID ...]`.

Rules of this file:
- every case ends as passed, failed or not run (with the reason): none is left out in silence;
- after every case HDR-01 must be answered within 1 s and forwarding must work again, or the case has failed;
- cases run in turn on one server; those that mostly wait run beside it on servers of their own, floods run last and alone;
- exit status 1 when a MUST has failed.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import importlib
import sys
import threading
import time
import traceback

from tests.conformance.checks import ELSEWHERE, KEYS
from tests.conformance.fixture import StartError, running
from tests.conformance.lab import CHECKS, Fault, Lab, load
from tests.conformance.message import MalformedError

for _subject in ("local", "size_tcp", "forward", "binding", "abuse", "cache"):
    importlib.import_module(f"tests.conformance.cases_{_subject}")
NotRun = importlib.import_module("tests.conformance.cases_abuse").NotRun

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclasses.dataclass
class Outcome:
    """How one case ended. `text`: what was wrong, or why it was not judged."""

    id: str
    level: str
    status: str
    text: str = ""
    seconds: float = 0.0


def lane(case):
    """Where a case runs."""
    return CHECKS[case.id][1] if case.id in CHECKS else "main"


def covered(case):
    """True when the case is judged by what it says: keys beyond one exchange need a check of their own."""
    beyond = set(case.check) & (ELSEWHERE - {"alive_after", "within_s", "max_ms"})
    return case.id in CHECKS or (bool(case.packets) and not beyond and set(case.check) <= set(KEYS) | ELSEWHERE | {"result"})


class Run:
    """One run of some cases with one number of workers."""

    def __init__(self, cases, workers, tell=lambda outcome: None):
        self.cases, self.workers = cases, workers
        self.outcomes = {}
        self._tell = tell
        self._lock = threading.Lock()

    def all(self):
        """Run them. Gives {id: Outcome}."""
        lanes = collections.defaultdict(list)
        for case in self.cases:
            lanes[lane(case)].append(case)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            others = [
                pool.submit(self._beside, lanes["beside"]),
                pool.submit(self._alone, lanes["alone"]),
                pool.submit(self._alone, lanes["cached"]),
            ]
            with self._labs() as labs:
                for case in lanes["main"]:
                    self._one(case, labs)
                for other in others:
                    other.result()
                for case in lanes["last"]:
                    self._one(case, labs)
        return self.outcomes

    @contextlib.contextmanager
    def _labs(self):
        """A holder of one Lab that starts another when its server has died."""
        holder = _Holder(self.workers)
        try:
            yield holder
        finally:
            holder.close()

    def _one(self, case, labs):
        begin = time.monotonic()
        status, text = self._judge(lambda: _on_lab(case, labs))
        self._done(Outcome(case.id, case.level, status, text, time.monotonic() - begin))

    def _alone(self, cases):
        for case in cases:
            begin = time.monotonic()
            status, text = self._judge(lambda case=case: CHECKS[case.id][0](self.workers, case))
            self._done(Outcome(case.id, case.level, status, text, time.monotonic() - begin))

    def _beside(self, cases):
        if not cases:
            return
        with self._labs() as labs, concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
            with contextlib.suppress(StartError):
                labs.lab()
            for future in [pool.submit(self._one, case, labs) for case in cases]:
                future.result()

    def _judge(self, judge):
        try:
            judge()
        except NotRun as reason:
            return NOT_RUN, str(reason)
        except (Fault, StartError, MalformedError) as fault:
            return FAILED, str(fault)
        except Exception as problem:
            # A check that breaks is a failure with its place, and the others go on.
            where = traceback.extract_tb(problem.__traceback__)[-1]
            return FAILED, f"{type(problem).__name__}: {problem} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
        return PASSED, ""

    def _done(self, outcome):
        with self._lock:
            self.outcomes[outcome.id] = outcome
            self._tell(outcome)


class _Holder:
    """A Lab that is started when it is asked for, and again when its server has ended."""

    def __init__(self, workers):
        self._workers = workers
        self._stack = contextlib.ExitStack()
        self._lab = None
        self._lock = threading.Lock()

    def lab(self):
        with self._lock:
            if self._lab is None or not self._lab.server.alive:
                self.close()
                server, upstream = self._stack.enter_context(running(workers=self._workers))
                self._lab = Lab(server, upstream, self._workers)
            return self._lab

    def close(self):
        self._lab = None
        self._stack.close()


def _on_lab(case, labs):
    lab = labs.lab()
    if case.id in CHECKS:
        CHECKS[case.id][0](lab, case)
    else:
        lab.generic(case)
    lab.well()
    lab.recovered()


class Teller:
    """Lines for people: failures as they come, a counter on a terminal."""

    def __init__(self, total, verbose):
        self.total, self.verbose, self.done = total, verbose, 0
        self._live = sys.stdout.isatty()

    def __call__(self, outcome):
        self.done += 1
        if self.verbose or outcome.status == FAILED:
            self._clear()
            text = f": {outcome.text}" if outcome.text else ""
            print(f"{outcome.status:<8} {outcome.id:<8} {outcome.level:<6} {outcome.seconds:5.1f} s{text}", flush=True)
        if self._live:
            print(f"\r{self.done}/{self.total} {outcome.id:<10}", end="", flush=True)

    def _clear(self):
        if self._live:
            print("\r" + " " * 40 + "\r", end="")

    def end(self):
        self._clear()


def table(outcomes, title):
    """The sum of a run, and every case that was not judged, by id with its reason."""
    counts = collections.Counter((outcome.level, outcome.status) for outcome in outcomes)
    statuses = (PASSED, FAILED, NOT_RUN)
    lines = [title, f"  {'':<7}" + "".join(f"{status:>9}" for status in statuses)]
    for level in ("MUST", "SHOULD"):
        lines.append(f"  {level:<7}" + "".join(f"{counts[level, status]:>9}" for status in statuses))
    for status in (FAILED, NOT_RUN):
        reasons = collections.defaultdict(list)
        for outcome in outcomes:
            if outcome.status == status:
                reasons[outcome.text if status != FAILED else ""].append(outcome.id)
        for text, ids in reasons.items():
            lines.append(f"  {status.upper()}: {' '.join(ids)}" + (f" ({text})" if text else ""))
    return "\n".join(lines)


def select(ids):
    """The cases of these ids, or all. Raises SystemExit for an id that does not exist."""
    cases = load()
    unknown = [ident for ident in ids if ident not in cases]
    if unknown:
        sys.exit(f"no such case: {' '.join(unknown)}")
    return [case for case in cases.values() if not ids or case.id in ids]


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these cases")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for every case")
    parser.add_argument("--workers", choices=("0", "2", "both"), default="both")
    options = parser.parse_args(arguments)
    cases = select(options.ids)
    failed = False
    for workers in (0, 2) if options.workers == "both" else (int(options.workers),):
        begin = time.monotonic()
        tell = Teller(len(cases), options.verbose)
        outcomes = list(Run(cases, workers, tell).all().values())
        tell.end()
        print(table(outcomes, f"workers: {workers}, {len(outcomes)} cases in {time.monotonic() - begin:.0f} s"), flush=True)
        failed |= any(outcome.status == FAILED and outcome.level == "MUST" for outcome in outcomes)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
