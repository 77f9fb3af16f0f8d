"""`python -m tests.fuzz.guided TARGET FOLDER --seconds N`: one target in a process of its own, guided by coverage.

With atheris (libFuzzer); where that is not installed, or with `--plain`, the same target over mutations of its corpus. The last
line of the output is what was done, as JSON; a finding leaves its input in FOLDER/found, and ends the process with an error.

Rules of this file:
- FOLDER/grown gets the inputs that led somewhere new; the corpus of the project is only read;
- atheris must be told of a module before it is imported: nothing of canal-dns is, above.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import sys
import time
import traceback
import warnings
from pathlib import Path

FOUND = 77
"""Exit status for a finding, libFuzzer's."""
TIMEOUT = 20
"""Seconds for one input, which take milliseconds else."""
MEMORY = 2048
"""MiB of the process."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided")
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="mutations only")
    wanted = parser.parse_args(arguments)
    for name in ("grown", "found"):
        (wanted.folder / name).mkdir(parents=True, exist_ok=True)
    logging.disable()
    if not wanted.plain:
        try:
            import atheris
        except ImportError:
            pass
        else:
            return _guided(atheris, wanted)
    return _plain(wanted)


def _guided(atheris, wanted) -> int:  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with atheris.instrument_imports(include=["canal_dns", "yaml"]):
            from tests.fuzz.targets import CORPUS, load

            target = load()[wanted.target]
    words = wanted.folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    options = {
        "max_total_time": wanted.seconds,
        "timeout": TIMEOUT,
        "rss_limit_mb": MEMORY,
        "max_len": target.largest,
        "seed": wanted.seed,
        "dict": words,
        "artifact_prefix": f"{wanted.folder / 'found'}/",
        "print_final_stats": 1,
        "len_control": 20,
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    folders = [str(wanted.folder / "grown")]
    if (CORPUS / target.name).is_dir():
        folders.append(str(CORPUS / target.name))
    atheris.Setup([sys.argv[0], *flags, *folders], target.one)
    atheris.Fuzz()
    raise AssertionError("atheris ends the process itself")


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{octet:02x}" for octet in word)


def _plain(wanted) -> int:  # type: ignore[no-untyped-def]
    from tests.fuzz.mutate import Mutator
    from tests.fuzz.targets import load

    target = load()[wanted.target]
    corpus = list(target.corpus().values())
    began, runs = time.monotonic(), 0
    for data in itertools.chain(corpus, Mutator(corpus, target.words, wanted.seed, target.largest)):
        try:
            target.one(data)
        except BaseException:
            traceback.print_exc()
            path = wanted.folder / "found" / f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
            path.write_bytes(data)
            return FOUND
        runs += 1
        if time.monotonic() - began > wanted.seconds:
            break
    print(json.dumps({"runs": runs}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
