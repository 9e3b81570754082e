"""Tracebacks for logs: types, files, lines and our own code, but never what an exception says.

An exception's text may repeat the prompt or the label that it met, and logs hold neither. Knows nothing about logging.
"""

import traceback
from collections.abc import Iterator

_MAX_CHAIN = 20
"""Most exceptions of a chain or a group that are written."""


def masked_traceback(error: BaseException) -> str:
    """The traceback of an exception, and of those that it follows or holds, without their texts."""
    return "\n".join(line for each in list(_chain(error))[:_MAX_CHAIN] for line in _lines(each))


def masked(error: BaseException) -> str:
    """An exception's type, what the system says of an OSError, and how long its own text is."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return f"{name}: [Errno {error.errno}] {error.strerror}"
    try:
        length = len(str(error))
    except Exception:  # An odd __str__ must not end the log.
        length = 0
    return f"{name} (a text of {length} characters is not logged)" if length else name


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception behind those that led to it, each once."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is None or any(each is other for other in found):
            continue
        found.append(each)
        waiting.append(each.__cause__ or (None if each.__suppress_context__ else each.__context__))
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
    return reversed(found)


def _lines(error: BaseException) -> Iterator[str]:
    yield "Traceback (most recent call last):"
    for frame in traceback.extract_tb(error.__traceback__):
        yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
        if frame.line:
            yield f"    {frame.line}"
    yield masked(error)
