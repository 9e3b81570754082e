"""The public name of a class, for instance `crosscope.Latent`, whichever module defines it."""

from typing import TypeVar

_Class = TypeVar("_Class", bound=type)


def public(each: _Class) -> _Class:
    """The class itself, named as part of `crosscope`: in reprs, docs, tracebacks and pickles."""
    each.__module__ = "crosscope"
    return each
