"""Regular expressions, as far as the rule must understand them: does one take a text, and which texts would it take?

Rules of this file:
- RE2's common syntax becomes a small automaton that is run in linear time: the expressions are written by tenants, and Python's
  own `re` can be made to run for hours;
- what is not understood (word boundaries, Unicode classes, multi-line mode, huge repetitions) gives None: the caller then knows
  nothing but how a text that it takes must begin (`beginning`); nor is what takes too much work to understand (_MAX_STEPS);
- Envoy matches the whole text (safe_regex); `^` and `$` hold at its ends only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

_OTHER = 1 << 128
"""The bit of every character beyond ASCII."""
_ALL = (1 << 129) - 1
_DOT = _ALL & ~(1 << ord("\n"))
_POSSIBLE = _ALL & ~((1 << 32) - 1 | 1 << 127) | 1 << ord("\t")
"""What a path, a header or a query parameter can contain: no control characters."""
_MAX_STATES = 2000
_MAX_SETS = 200
_MAX_VISITS = 2
_MAX_REPEAT = 100
_MAX_DEPTH = 50
_MAX_STEPS = 25_000
"""Ways between states that are looked at to understand an expression, and again to find examples: some 10 ms each. Ordinary
ones need a few thousand; a thousand characters can be made to need millions, and an object can hold a thousand of those."""


def _mask(chars: str) -> int:
    mask = 0
    for char in chars:
        mask |= 1 << ord(char) if ord(char) < 128 else _OTHER
    return mask


_DIGIT = _mask("0123456789")
_WORD = _DIGIT | _mask("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_SPACE = _mask("\t\n\f\r ")
_CLASSES = {
    "d": _DIGIT, "D": _ALL & ~_DIGIT, "w": _WORD, "W": _ALL & ~_WORD, "s": _SPACE, "S": _ALL & ~_SPACE,
}  # fmt: skip
_NAMED = {
    "alnum": _WORD & ~_mask("_"), "alpha": _WORD & ~_DIGIT & ~_mask("_"), "ascii": _OTHER - 1, "blank": _mask(" \t"),
    "cntrl": (1 << 32) - 1 | 1 << 127, "digit": _DIGIT, "graph": _mask("".join(map(chr, range(33, 127)))),
    "lower": _mask("abcdefghijklmnopqrstuvwxyz"), "print": _mask("".join(map(chr, range(32, 127)))),
    "punct": _mask("".join(map(chr, range(33, 127)))) & ~_WORD | _mask("_"), "space": _SPACE | _mask("\v"),
    "upper": _mask("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "word": _WORD, "xdigit": _DIGIT | _mask("abcdefABCDEF"),
}  # fmt: skip
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}


class Pattern:
    """An automaton: states are numbers. `anchors`: steps that are silent at one end of the text, (from, to) by `^` or `$`."""

    __slots__ = ("_accepting", "_empty", "_moves", "_start")

    def __init__(
        self,
        moves: list[list[tuple[int, int]]],
        silent: list[list[int]],
        anchors: dict[str, list[tuple[int, int]]],
        start: int,
        accept: int,
    ) -> None:
        """Raises _Unknown where there are too many ways."""
        closures = []
        steps = 0
        for state in range(len(moves)):
            closures.append(_closure(silent, state))
            steps += len(closures[-1])
            if steps > _MAX_STEPS:
                raise _Unknown
        self._moves = [[(mask, closures[target]) for mask, target in edges] for edges in moves]
        self._start = _closure(_joined(silent, anchors["^"]), start)
        self._empty = accept in _closure(_joined(silent, anchors["^"] + anchors["$"]), start)
        backwards: list[list[int]] = [[] for _ in silent]
        for state, targets in enumerate(_joined(silent, anchors["$"])):
            for target in targets:
                backwards[target].append(state)
        self._accepting = _closure(backwards, accept)

    def takes(self, text: str) -> bool:
        """It matches the whole of `text`."""
        return self._ends(self._after(text), text)

    def _ends(self, states: frozenset[int], text: str) -> bool:
        return not self._accepting.isdisjoint(states) if text else self._empty

    def examples(self, start: str = "", limit: int = 12) -> list[str]:
        """Texts that begin with `start` and that it matches, short ones first: one for each way through it, up to a limit, and
        as far as they are found in _MAX_STEPS."""
        states = self._after(start)
        steps = 0
        found: list[str] = []
        visits: Counter[frozenset[int]] = Counter()
        queue = [(states, start)]
        for current, text in queue:
            if self._ends(current, text):
                found.append(text)
                if len(found) >= limit:
                    break
            ways = sum(len(self._moves[state]) for state in current)
            for mask in self._parts(current):
                steps += ways
                if steps > _MAX_STEPS:
                    return found
                following = self._step(current, mask)
                visits[following] += 1
                if following and visits[following] <= _MAX_VISITS and len(visits) <= _MAX_SETS:
                    queue += [(following, text + char) for char in _picks(mask)]
        return found

    def _after(self, text: str) -> frozenset[int]:
        states = self._start
        for char in text:
            states = self._step(states, _mask(char))
            if not states:
                break
        return states

    def _edges(self, states: frozenset[int]) -> Iterator[tuple[int, frozenset[int]]]:
        for state in states:
            yield from self._moves[state]

    def _step(self, states: frozenset[int], chars: int) -> frozenset[int]:
        following: set[int] = set()
        for mask, targets in self._edges(states):
            if mask & chars:
                following |= targets
        return frozenset(following)

    def _parts(self, states: frozenset[int]) -> list[int]:
        """The alphabet cut so that all characters of a part lead to the same states."""
        parts = [_POSSIBLE]
        for mask, _ in self._edges(states):
            parts = [piece for part in parts for piece in (part & mask, part & ~mask) if piece]
        return parts


@lru_cache(maxsize=4096)
def pattern(regex: str) -> Pattern | None:
    """Compile an expression; None if it is not understood (or wrong)."""
    try:
        return _Parser(regex).parse()
    except _Unknown:
        return None


_PLAIN = re.compile(r"\^?([A-Za-z0-9/_~%-]*)(.?)", re.DOTALL)


def beginning(regex: str) -> str:
    """What a text begins with that an expression takes, be it understood or not; "" if nothing is sure."""
    found = _PLAIN.match(regex)
    if found is None or "|" in regex:
        return ""
    return found[1][:-1] if found[2] and found[2] in "*?{" else found[1]


class _Unknown(Exception):  # noqa: N818
    """Something that this file does not understand."""


def _closure(silent: list[list[int]], state: int) -> frozenset[int]:
    reached = {state}
    todo = [state]
    while todo:
        for target in silent[todo.pop()]:
            if target not in reached:
                reached.add(target)
                todo.append(target)
    return frozenset(reached)


def _joined(silent: list[list[int]], more: list[tuple[int, int]]) -> list[list[int]]:
    joined = [list(targets) for targets in silent]
    for state, target in more:
        joined[state].append(target)
    return joined


def _picks(mask: int) -> list[str]:
    """Some characters of a set: an unusual one, the first and the last."""
    unusual = next((char for char in "~/-" if mask & _mask(char)), "")
    ascii_part = mask & (_OTHER - 1)
    if not ascii_part:
        return ["\u00e9"]
    first, last = chr((ascii_part & -ascii_part).bit_length() - 1), chr(ascii_part.bit_length() - 1)
    return list(dict.fromkeys(char for char in (unusual, first, last) if char))


_Piece = tuple[int, int]
"""First and last state of a part of the automaton."""


class _Parser:
    """Recursive descent over the expression, building states on the way (Thompson's construction)."""

    def __init__(self, regex: str) -> None:
        self.text = regex
        self.flags: frozenset[str] = frozenset()
        self.at = 0
        self.depth = 0
        self.moves: list[list[tuple[int, int]]] = []
        self.silent: list[list[int]] = []
        self.anchors: dict[str, list[tuple[int, int]]] = {"^": [], "$": []}
        self.single = False
        """What was read last cannot be repeated: an anchor, or flags."""

    def parse(self) -> Pattern:
        first, last = self._alternatives()
        if self.at != len(self.text):
            raise _Unknown
        return Pattern(self.moves, self.silent, self.anchors, first, last)

    def _state(self) -> int:
        if len(self.moves) >= _MAX_STATES:
            raise _Unknown
        self.moves.append([])
        self.silent.append([])
        return len(self.moves) - 1

    def _peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def _next(self) -> str:
        if self.at >= len(self.text):
            raise _Unknown
        self.at += 1
        return self.text[self.at - 1]

    def _alternatives(self) -> _Piece:
        first, last = self._state(), self._state()
        while True:
            begin, end = self._sequence()
            self.silent[first].append(begin)
            self.silent[end].append(last)
            if self._peek() != "|":
                return first, last
            self.at += 1

    def _sequence(self) -> _Piece:
        first = last = self._state()
        while self._peek() not in ("", "|", ")"):
            begin, end = self._repeated()
            self.silent[last].append(begin)
            last = end
        return first, last

    def _repeated(self) -> _Piece:
        origin = self.at
        self.single = False
        piece = self._atom()
        single = self.single
        after = self.at
        low, high = self._count()
        if self.at == after:
            return piece
        if single:
            raise _Unknown
        resume, self.at = self.at, after
        first = last = self._state()
        copies = max(low, high if high is not None else low, 1)
        for number in range(copies):
            begin, end = piece if number == 0 else self._again(origin)
            self.silent[last].append(begin)
            if number >= low:
                self.silent[last].append(end)
            if high is None and number == copies - 1:
                self.silent[end].append(begin)
            last = end
        if high == 0:
            self.silent[first].clear()
            last = first
        self.at = resume
        return first, last

    def _again(self, origin: int) -> _Piece:
        self.at = origin
        return self._atom()

    def _count(self) -> tuple[int, int | None]:
        char = self._peek()
        bounds: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if char in bounds and char:
            self.at += 1
            count = bounds[char]
        elif char == "{":
            count = self._braces()
        else:
            return 1, 1
        if self._peek() == "?":
            self.at += 1
        if self._peek() and self._peek() in "*+{":
            raise _Unknown
        return count

    def _braces(self) -> tuple[int, int | None]:
        end = self.text.find("}", self.at)
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        if end < 0 or not low or not f"{low}{high}".isascii() or not f"{low}{high}".isdigit() or len(low + high) > 6:
            raise _Unknown
        self.at = end + 1
        least = int(low)
        most = None if comma and not high else int(high or low)
        if least > _MAX_REPEAT or (most is not None and not least <= most <= _MAX_REPEAT):
            raise _Unknown
        return least, most

    def _atom(self) -> _Piece:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._one(self._set())
        if char in "^$":
            return self._anchor(char)
        if char == ".":
            return self._one(_ALL if "s" in self.flags else _DOT)
        if char == "\\":
            return self._one(self._escape())
        if char in "*+?{":
            raise _Unknown
        return self._one(self._folded(_mask(char)))

    def _anchor(self, char: str) -> _Piece:
        first, last = self._state(), self._state()
        self.anchors[char].append((first, last))
        self.single = True
        return first, last

    def _group(self) -> _Piece:
        outside = self.flags
        if self._peek() == "?":
            self.at += 1
            if self._peek() and self._peek() in "P<":
                self.at = self.text.find(">", self.at) + 1
                if self.at == 0:
                    raise _Unknown
            elif self._flags() == ")":
                self.single = True
                state = self._state()
                return state, state
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Unknown
        piece = self._alternatives()
        self.depth -= 1
        self._next()
        self.flags = outside
        self.single = False
        return piece

    def _flags(self) -> str:
        """Read flags up to `:` (for this group) or `)` (for the rest of the group around it); returns which."""
        add = True
        while (char := self._next()) not in ":)":
            if char == "-" and add:
                add = False
            elif char in "isU":
                self.flags = self.flags | {char} if add else self.flags - {char}
            else:
                raise _Unknown
        return char

    def _one(self, mask: int) -> _Piece:
        first, last = self._state(), self._state()
        self.moves[first].append((mask, last))
        return first, last

    def _escape(self) -> int:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS:
            return _mask(_CONTROLS[char])
        if char.isalnum():
            raise _Unknown
        return _mask(char)

    def _set(self) -> int:
        inverted = self._peek() == "^"
        self.at += inverted
        mask = 0
        first = True
        while first or self._peek() != "]":
            first = False
            mask |= self._range()
        self.at += 1
        mask = self._folded(mask)
        return _ALL & ~mask if inverted else mask

    def _range(self) -> int:
        low = self._next()
        if low == "[" and self._peek() == ":":
            return self._named()
        if low == "\\":
            return self._escape()
        if self._peek() != "-" or self.text[self.at + 1 : self.at + 2] in ("]", ""):
            return _mask(low)
        self.at += 1
        high = self._next()
        if high == "\\" or high < low or ord(high) > 127:
            raise _Unknown
        return _mask("".join(map(chr, range(ord(low), ord(high) + 1))))

    def _named(self) -> int:
        name, end, rest = self.text[self.at + 1 :].partition(":]")
        inverted = name.startswith("^")
        if not end or name.removeprefix("^") not in _NAMED:
            raise _Unknown
        self.at = len(self.text) - len(rest)
        mask = _NAMED[name.removeprefix("^")]
        return _ALL & ~mask if inverted else mask

    def _folded(self, mask: int) -> int:
        if "i" not in self.flags:
            return mask
        lower, upper = _mask("abcdefghijklmnopqrstuvwxyz"), _mask("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        return mask | (mask & upper) << 32 | (mask & lower) >> 32
