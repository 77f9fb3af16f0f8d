"""Inputs by chance: others changed a little. Reproducible, and for where there is no coverage to be guided by."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_TELLING = (0, 1, 0x0C, 0x29, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFF)


class Mutator:
    """`words`: what inputs of the kind are made of; `keep`: octets at the start that are changed only as single octets."""

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes], seed: int, largest: int = 2048) -> None:
        self._seeds = seeds or [b"\0"]
        self._words = words or (b"\0",)
        self._chance = random.Random(seed)
        self._largest = largest

    def __iter__(self) -> Iterator[bytes]:
        """Without an end."""
        while True:
            yield self.one()

    def one(self) -> bytes:
        chance = self._chance
        made = bytearray(chance.choice(self._seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            self._change(made)
        return bytes(made[: self._largest])

    def _change(self, made: bytearray) -> None:
        chance = self._chance
        at = chance.randrange(len(made)) if made else 0
        size = 1 << chance.randrange(7)
        kind = chance.randrange(9)
        if kind == 0 and made:
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and made:
            made[at] = chance.choice(_TELLING)
        elif kind == 2 and made:
            made[at] = chance.randrange(256)
        elif kind == 3:
            del made[at : at + size]
        elif kind == 4:
            made[at:at] = made[at : at + size]
        elif kind == 5:
            made[at:at] = chance.choice(self._words)
        elif kind == 6:
            word = chance.choice(self._words)
            made[at : at + len(word)] = word
        elif kind == 7:
            other = chance.choice(self._seeds)
            start = chance.randrange(len(other)) if other else 0
            made[at : at + size] = other[start : start + size]
        else:
            made[at:at] = chance.randbytes(chance.randrange(1, 9))
