"""Spans of OpenTelemetry, from the SDK to the job. Off, and free, unless somebody has set OpenTelemetry up.

`configure_tracing` sets it up in our processes, where OTEL_EXPORTER_OTLP_ENDPOINT says where spans go and the extra
`otel` is installed. A program that uses the SDK sets it up itself. Parents travel as W3C traceparent. Spans never hold
prompts.
"""

import logging
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

TRACEPARENT: Final = "traceparent"
"""The key in a call's metadata, and the field in a job's record."""
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SCOPE: Final = "crosscope"
Attributes = Mapping[str, str | int | float | bool]

log = logging.getLogger(__name__)


def configure_tracing(process: str) -> None:
    """Sends this process's spans where the environment says, as OTLP over HTTP; does nothing if it says nothing."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning(
            "no traces: install the extra otel (in the source's folder: pip install './proto[otel]')",
            extra={"error": str(error)},
        )
        return
    provider = TracerProvider(resource=Resource.create({"service.name": f"crosscope-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


class Span:
    """A piece of work under way; the base class records nothing."""

    @property
    def traceparent(self) -> str:
        """The span as the parent of others; empty if nothing is recorded."""
        return ""

    def set(self, **attributes: str | float) -> None:
        """Adds attributes: names, counts and times, never texts of prompts."""


class _Recorded(Span):
    def __init__(self, span: Any) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(self._span))
        return carrier.get(TRACEPARENT, "")

    def set(self, **attributes: str | float) -> None:
        for name, value in attributes.items():
            self._span.set_attribute(name, value)


_NOTHING: Final = Span()


@contextmanager
def span(name: str, kind: str = "internal", *, parent: str = "", **attributes: str | float) -> Generator[Span]:
    """A span around a block, below `parent` (a traceparent) or else the current span, and current inside the block.

    `kind` is "client", "server", "consumer" or "internal". An error that leaves the block is recorded by its type.
    Enter and leave it in one task, so not around a `yield` to a caller: `open_span` is for that.
    """
    recorded = open_span(name, kind, parent=parent, **attributes)
    if not isinstance(recorded, _Recorded):
        yield recorded
        return
    from opentelemetry import trace

    inner = recorded._span  # pyright: ignore[reportPrivateUsage]
    with (
        close_span(recorded),
        trace.use_span(inner, end_on_exit=False, record_exception=False, set_status_on_exception=False),
    ):
        yield recorded


def open_span(name: str, kind: str = "internal", *, parent: str = "", **attributes: str | float) -> Span:
    """A span that began now and is current nowhere; `close_span` ends it."""
    if (trace := _set_up()) is None:
        return _NOTHING
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    above = TraceContextTextMapPropagator().extract({TRACEPARENT: parent}) if parent else None
    kinds = trace.SpanKind
    return _Recorded(trace.get_tracer(_SCOPE).start_span(name, above, kinds[kind.upper()], dict(attributes)))


def make_current(opened: Span) -> None:
    """Makes a span the current one for the rest of this task, which serves one call."""
    if isinstance(opened, _Recorded):
        from opentelemetry import context, trace

        context.attach(trace.set_span_in_context(opened._span))  # pyright: ignore[reportPrivateUsage]


@contextmanager
def close_span(opened: Span) -> Generator[None]:
    """Ends a span after a block; an error that leaves the block is recorded by its type, without its message."""
    if not isinstance(opened, _Recorded):
        yield
        return
    from opentelemetry.trace import Status, StatusCode

    inner = opened._span  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    except Exception as error:
        inner.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        inner.end()


def current_traceparent() -> str:
    """The current span as the parent of others; empty if there is none."""
    return "" if (trace := _set_up()) is None else _Recorded(trace.get_current_span()).traceparent


def _set_up() -> Any:
    """The module opentelemetry.trace, if somebody has set it up; all that a span costs otherwise is this look.

    Whoever has set it up has imported it. Others import it too, a Redis client among them.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace
