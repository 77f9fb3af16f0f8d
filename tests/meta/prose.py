"""The fenced blocks of a document, with the words behind the language: what they are, and where they run.

Rules of this file:
- a block is "```language word word", and ends with a bare "```"; both stand at the beginning of a line;
- what a word means is the business of the test that reads it; here nothing runs.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\S*)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. `after`: the prose up to the next block or heading."""

    document: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str
    after: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def kind(self) -> str:
        """The first word behind the language; "" without any."""
        return self.words[0] if self.words else ""

    def commands(self) -> list[tuple[str, str]]:
        """Of a `console` block: each command line (without `$ `) and what the document shows below it."""
        found = []
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            while command.endswith("\\"):
                more, _, output = output.partition("\n")
                command = f"{command}\n{more}"
            found.append((command, output))
        return found


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    text = path.read_text()
    found = list(_FENCE.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [
        Block(
            path.name,
            text.count("\n", 0, match.start()) + 1,
            match[1],
            tuple(shlex.split(match[2] or "")),
            match[3],
            re.split(r"^#", text[match.end() : end], maxsplit=1, flags=re.MULTILINE)[0],
        )
        for match, end in zip(found, ends, strict=True)
    ]


def shows(shown: str, printed: str) -> bool:
    """Whether an output is what a document shows of it: `...` stands for any lines, and within a line for any text."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else ".*".join(map(re.escape, line.rstrip().split("..."))) + r"[ \t]*\n"
        for line in shown.splitlines()
    )
    return re.fullmatch(pattern, printed if printed.endswith("\n") or not printed else printed + "\n") is not None
