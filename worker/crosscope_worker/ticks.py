"""Ticks: calls by which long work tells of each step."""

from collections.abc import Callable

Tick = Callable[[int], None]
"""Told how many more units, bytes or tokens, are done; raises what Progress raises."""


def idle_tick(_: int) -> None:
    """A Tick that tells nobody."""
