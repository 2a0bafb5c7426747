"""Rows that are decoded before they are asked for."""

from __future__ import annotations

from typing import NamedTuple

MOSTLY = 1.4
"""How many times what is wanted of a page all of it may be, if that is held as it is."""


class Ahead(NamedTuple):
    """Rows behind those that are taken, decoded at the same go where they would be decoded again.

    They are held for whoever asks for them.
    """

    soon: int = 0
    """Those that are taken next: they may share memory with the others."""
    rest: int = 0
    """Those behind them."""

    @property
    def rows(self) -> int:
        """All of them."""
        return self.soon + self.rest


NONE_AHEAD = Ahead()
