"""The public name of a class: `crosscope.Latent`, wherever its module lies."""

from typing import TypeVar

_Class = TypeVar("_Class", bound=type)


def public(each: _Class) -> _Class:
    """The class, which calls itself by its public name from now on: in reprs, docs, tracebacks and pickles."""
    each.__module__ = "crosscope"
    return each
