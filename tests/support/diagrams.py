"""Reads the arrows of a state machine drawn with box characters."""

from __future__ import annotations

from collections.abc import Collection

UP, DOWN, LEFT, RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)
_OPPOSITE = {UP: DOWN, DOWN: UP, LEFT: RIGHT, RIGHT: LEFT}
_LINES = {
    "─": {LEFT, RIGHT},
    "│": {UP, DOWN},
    "┌": {DOWN, RIGHT},
    "┐": {DOWN, LEFT},
    "└": {UP, RIGHT},
    "┘": {UP, LEFT},
    "├": {UP, DOWN, RIGHT},
    "┤": {UP, DOWN, LEFT},
    "┬": {LEFT, RIGHT, DOWN},
    "┴": {LEFT, RIGHT, UP},
}
_HEADS = {"▶": RIGHT, "◀": LEFT, "▲": UP, "▼": DOWN}
Cell = tuple[int, int]


def arrows(drawing: str, states: Collection[str]) -> set[tuple[str, str]]:
    """
    (from, to) of every arrow. A line that forks has several ends, lines that meet have several
    beginnings; words on a line that are no states are its label.
    """
    return _Drawing(drawing, states).arrows()


class _Drawing:
    def __init__(self, drawing: str, states: Collection[str]) -> None:
        rows = drawing.splitlines()
        self._cells = {(r, c): ch for r, row in enumerate(rows) for c, ch in enumerate(row)}
        self._states: dict[Cell, str] = {}
        for name in sorted(states, key=len, reverse=True):
            for r, row in enumerate(rows):
                self._find(name, r, row)

    def _find(self, name: str, r: int, row: str) -> None:
        at = row.find(name)
        while at >= 0:
            cells = [(r, c) for c in range(at, at + len(name))]
            around = row[at - 1 : at] + row[at + len(name) : at + len(name) + 1]
            if not any(ch.isalpha() for ch in around) and cells[0] not in self._states:
                self._states |= dict.fromkeys(cells, name)
            at = row.find(name, at + 1)

    def arrows(self) -> set[tuple[str, str]]:
        return {
            (source, target)
            for cell, ch in self._cells.items()
            if ch in _HEADS and (target := self._state_beyond(cell, _HEADS[ch]))
            for source in self._sources(cell, _OPPOSITE[_HEADS[ch]])
        }

    def _state_beyond(self, cell: Cell, way: Cell) -> str | None:
        """The state that a line's end points at: next to it, or one space further on."""
        for steps in (1, 2):
            beyond = (cell[0] + way[0] * steps, cell[1] + way[1] * steps)
            if beyond in self._states:
                return self._states[beyond]
            if self._cells.get(beyond) != " " or way in (UP, DOWN):
                return None
        return None

    def _sources(self, head: Cell, back: Cell) -> set[str]:
        """States at the other ends of the line that ends in this head."""
        found: set[str] = set()
        seen: set[tuple[Cell, Cell]] = set()
        ahead = [(head, back)]
        while ahead:
            cell, way = ahead.pop()
            if (cell, way) in seen:
                continue
            seen.add((cell, way))
            state = self._state_beyond(cell, way)
            if state is not None:
                found.add(state)
                continue
            following = (cell[0] + way[0], cell[1] + way[1])
            ahead += [(following, onward) for onward in self._ways(following, way)]
        return found

    def _ways(self, cell: Cell, way: Cell) -> set[Cell]:
        """Where a line goes on from a cell that it comes into."""
        ch = self._cells.get(cell, "")
        if ch in _LINES:
            return _LINES[ch] - {_OPPOSITE[way]} if _OPPOSITE[way] in _LINES[ch] else set()
        label = bool(ch) and ch not in _HEADS and way in (LEFT, RIGHT)
        return {way} if label and not self._is_gap(cell, way) else set()

    def _is_gap(self, cell: Cell, way: Cell) -> bool:
        """Two spaces end a label."""
        beyond = (cell[0], cell[1] + way[1])
        return self._cells.get(cell) == " " and self._cells.get(beyond, " ") == " "
