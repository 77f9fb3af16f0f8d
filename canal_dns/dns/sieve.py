"""Who is to go when there is no room: SIEVE (Zhang et al., NSDI 2024), over numbered places.

Rules of this file:
- places stand in the order in which they were taken; what is used stays where it stands and is only marked, in one octet;
- a hand goes from the oldest to the newest: it wipes the marks that it meets, and who has none goes. What was asked for once
  goes soon, however much of it comes; what is asked for again stays;
- every step costs the same, whatever the size: the hand passes at most REACH marks, then it takes whom it has reached.
"""

from __future__ import annotations

from array import array

REACH = 128
"""Marks passed in one search. Without a bound one query would pay for all that were used since the last round."""
NOWHERE = -1


class Sieve:
    """At most `size` places, numbered from 0."""

    __slots__ = ("_free", "_hand", "_newer", "_newest", "_older", "_oldest", "size", "visited")

    def __init__(self, size: int) -> None:
        self.size = size
        self.visited = bytearray(size)
        """By place: not 0 once it was used. Readers write it, whoever they are; the array is never replaced."""
        self.clear()

    def __len__(self) -> int:
        return len(self._newer) - len(self._free)

    def clear(self) -> None:
        """Nobody has a place."""
        self.visited[:] = bytes(self.size)
        self._newer, self._older = array("i"), array("i")
        self._free: list[int] = []
        self._newest = self._oldest = self._hand = NOWHERE

    def take(self) -> int:
        """A place, the newest one now. IndexError: all are taken."""
        if self._free:
            place = self._free.pop()
        else:
            place = len(self._newer)
            if place == self.size:
                raise IndexError("all places are taken")
            self._newer.append(NOWHERE)
            self._older.append(NOWHERE)
        self._newer[place] = NOWHERE
        self._older[place] = self._newest
        if self._newest == NOWHERE:
            self._oldest = place
        else:
            self._newer[self._newest] = place
        self._newest = place
        self.visited[place] = 0
        return place

    def give_back(self, place: int) -> None:
        """A place that is taken is free again."""
        newer, older = self._newer[place], self._older[place]
        if newer == NOWHERE:
            self._newest = older
        else:
            self._older[newer] = older
        if older == NOWHERE:
            self._oldest = newer
        else:
            self._newer[older] = newer
        if self._hand == place:
            self._hand = newer
        self._free.append(place)

    def victim(self) -> int:
        """The place that is to be given back. IndexError: none is taken."""
        visited = self.visited
        place = self._oldest if self._hand == NOWHERE else self._hand
        if place == NOWHERE:
            raise IndexError("no place is taken")
        for _ in range(REACH):
            if not visited[place]:
                break
            visited[place] = 0
            place = self._newer[place]
            if place == NOWHERE:
                place = self._oldest
        self._hand = place
        return place
