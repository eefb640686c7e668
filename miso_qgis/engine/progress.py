"""How long work reports what it does and learns that it should stop.

One protocol, three implementers: the terminal, the JSON-lines seam and tests. Standard library only.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work is handed. Ask :meth:`raise_if_cancelled` once per window or block, before working on it."""

    def report(self, done: float, total: float, text: str = "") -> None:
        """Say that ``done`` of ``total`` is finished (same unit); ``total`` 0 means that the amount is not known."""

    def note(self, level: str, text: str) -> None:
        """Tell the user something; ``level`` is ``info`` or ``warning``."""

    def raise_if_cancelled(self) -> None:
        """Raise :class:`~miso_qgis.engine.errors.Cancelled` if the user has asked to stop."""


class Silent:
    """Progress that nobody watches."""

    def report(self, done: float, total: float, text: str = "") -> None:
        """Drop the report."""

    def note(self, level: str, text: str) -> None:
        """Drop the note."""

    def raise_if_cancelled(self) -> None:
        """Never raise."""


class Scaled:
    """A part of a longer piece of work: maps an inner 0..1 onto ``start``..``end`` of the outer 0..1.

    Composes: the parent may itself be scaled. Notes and cancellation pass through.
    """

    def __init__(self, parent: Progress, start: float, end: float) -> None:
        self._parent = parent
        self._start = start
        self._end = end

    def report(self, done: float, total: float, text: str = "") -> None:
        """Report the inner share to the parent as a share of the whole."""
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        self._parent.report(self._start + share * (self._end - self._start), 1.0, text)

    def note(self, level: str, text: str) -> None:
        """Pass the note on."""
        self._parent.note(level, text)

    def raise_if_cancelled(self) -> None:
        """Ask the parent."""
        self._parent.raise_if_cancelled()
