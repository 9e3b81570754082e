"""What goes with every call: its id, so that the server's log and an error can be brought together, and its span.

Knows no service and no channel.
"""

from collections.abc import Generator
from contextlib import contextmanager

from crosscope._errors import CrosscopeError
from crosscope_proto import request_ids, tracing


@contextmanager
def outgoing(method: object) -> Generator[tuple[tuple[str, str], ...]]:
    """What the metadata of a call says of it, all its tries alike. An error that leaves the block is told its id.

    The token is not among it: a server that starts between two tries may have another one.
    """
    request_id = request_ids.new_id()
    opened = tracing.open_span(_name(method), "client", request_id=request_id)
    with tracing.close_span(opened):
        try:
            above = opened.traceparent
            yield (
                (request_ids.METADATA, request_id),
                *(((tracing.TRACEPARENT, above),) if above else ()),
            )
        except CrosscopeError as error:
            error.request_id = error.request_id or request_id
            raise


def _name(method: object) -> str:
    """The name of a method of a stub, "crosscope.v1.Latents/ListLatents"."""
    path = getattr(method, "_method", b"")
    return (path.decode() if isinstance(path, bytes) else str(path)).removeprefix("/")
