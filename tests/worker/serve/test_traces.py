"""Spans of one call, from the SDK through the server to the device, and of a job below its submission."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fixtures_serve import VERSION
from fixtures_server import run_cache
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from crosscope import AsyncClient, AsyncCrosscoder, NotFound
from crosscope._decode import crosscoder_info
from crosscope_proto import keys, request_ids, tracing
from crosscope_proto.v1 import latents_pb2
from crosscope_worker.jobs.traced import attempt_span
from tests.worker.serve.online import run_online

SECRET = "the baker tells a story"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_prompt_is_one_trace_from_the_sdk_to_the_device(home: Path, spans: InMemorySpanExporter) -> None:
    async with run_online(home) as online, AsyncClient(online.front.address) as client:
        card = crosscoder_info(latents_pb2.Crosscoder(name="demo", version_id=VERSION))  # it has no tables
        crosscoder = AsyncCrosscoder(client._transport, card)
        encoding = await crosscoder.encode(SECRET)
        with pytest.raises(NotFound):
            await client.crosscoder("nobody")
    finished = spans.get_finished_spans()
    device = next(span for span in finished if span.name == "device")
    chain = [device]
    while (above := parent_id(chain[-1])) is not None:
        chain.append(next(span for span in finished if id_of(span) == above))
    names = ["device", "inference/Encode", "crosscope.v1.Prompts/Encode", "crosscope.v1.Prompts/Encode"]
    assert [span.name for span in chain] == names
    assert [span.kind.name for span in chain] == ["INTERNAL", "SERVER", "SERVER", "CLIENT"]
    assert len({span.context.trace_id for span in chain if span.context}) == 1
    assert len({facts(span)["request_id"] for span in chain[1:]}) == 1
    assert facts(device) | {"queue_s": 0, "compute_s": 0} == {
        "crosscoder": "demo",
        "tokens": len(encoding.tokens),
        "batch": 1,
        "queue_s": 0,
        "compute_s": 0,
    }
    failed = [span for span in finished if span.status.description == "NotFound"]
    assert [span.kind.name for span in failed] == ["SERVER", "CLIENT"]
    assert not any(word in span.to_json() for span in finished for word in ("baker", "nobody"))


async def test_a_job_is_a_span_below_the_call_that_submitted_it(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    above = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    async with run_cache(tmp_path / "queue"):
        client = redis.Redis(unix_socket_path=str(tmp_path / "queue"))
        record = {"kind": "crosscoder", "name": "demo", "attempt": "2", "request_id": "abc", "traceparent": above}
        client.hset(keys.job_key("one"), mapping=record)
        client.hset(keys.stages_key("one"), "train", "12.5")
        with attempt_span(client, "one") as current:
            assert request_ids.current() == "abc"
            current.set(outcome="succeeded")
        client.hset(keys.job_key("two"), mapping={"kind": "look", "name": "demo"})  # submitted before there were traces
        with attempt_span(client, "two"):
            pass
        client.close()
    first, second = spans.get_finished_spans()
    assert first.context is not None
    assert (f"{first.context.trace_id:032x}", f"{parent_id(first):016x}") == (above[3:35], above[36:52])
    told = {"job": "one", "kind": "crosscoder", "name": "demo", "attempt": 2, "request_id": "abc"}
    assert facts(first) == told | {"stage.train_s": 12.5, "outcome": "succeeded"}
    assert (second.parent, facts(second)["attempt"]) == (None, 1)
    assert request_ids.current() == ""


def test_without_a_set_up_nothing_is_imported() -> None:
    program = (
        "import sys\n"
        "from crosscope_proto.tracing import configure_tracing, current_traceparent, open_span\n"
        "configure_tracing('server')\n"
        "assert open_span('a') is open_span('b')\n"
        "assert (open_span('a').traceparent, current_traceparent()) == ('', '')\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={})


def test_with_an_endpoint_spans_are_sent_there() -> None:
    program = (
        "from crosscope_proto.tracing import configure_tracing, span\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "import os, threading\n"
        "got = []\n"
        "class Collector(BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        got.append((self.path, self.rfile.read(int(self.headers['content-length']))))\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "    def log_message(self, *_): pass\n"
        "web = HTTPServer(('127.0.0.1', 0), Collector)\n"
        "threading.Thread(target=web.serve_forever, daemon=True).start()\n"
        "os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = f'http://127.0.0.1:{web.server_port}'\n"
        "configure_tracing('server')\n"
        "with span('work', 'server', tokens=3): pass\n"
        "from opentelemetry import trace\n"
        "trace.get_tracer_provider().shutdown()\n"
        "(path, body), = got\n"
        "assert path == '/v1/traces'\n"
        "assert b'crosscope-server' in body and b'work' in body\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_a_library_that_imports_opentelemetry_sets_up_nothing() -> None:
    """A Redis client does so; spans then cost what they cost where OpenTelemetry is not installed."""
    assert "opentelemetry.trace" in sys.modules
    assert tracing.open_span("call") is tracing.open_span("another")
    assert tracing.current_traceparent() == ""
