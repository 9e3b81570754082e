"""5 000 wrong tokens from one connection: how many are looked at, and what others notice."""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_server import run_front

from crosscope_proto import access
from crosscope_proto.v1 import latents_pb2
from crosscope_server.access import brake

pytestmark = pytest.mark.stress
NUM_GUESSES, AT_ONCE, PATIENCE_S = 5000, 64, 5.0


def row(name: str, value: float, unit: str, reach: float, *, ok: bool) -> None:
    line = {"row": name, "value": round(value, 3), "unit": unit, "reach": reach, "ok": ok}
    sys.stdout.write(json.dumps(line) + "\n")
    assert ok, name


async def test_five_thousand_wrong_tokens(tmp_path: Path) -> None:
    write_crosscoder(tmp_path, "demo", 20)
    request, codes, waits_ms = latents_pb2.ListCrosscodersRequest(), Counter[grpc.StatusCode](), list[float]()
    async with run_front(home=tmp_path, allow_anyone=False) as front:
        own = (("authorization", f"Bearer {(tmp_path / access.OWN_TOKEN).read_text().strip()}"),)
        await front.latents.ListCrosscoders(request, metadata=own)
        numbers = iter(range(NUM_GUESSES))
        before_bytes, begun = psutil.Process().memory_info().rss, time.monotonic()

        async def guess() -> None:
            for number in numbers:
                try:
                    wrong = (("authorization", f"Bearer wrong-{number}"),)
                    await front.latents.ListCrosscoders(request, metadata=wrong, timeout=PATIENCE_S)
                    codes[grpc.StatusCode.OK] += 1
                except grpc.aio.AioRpcError as error:
                    codes[error.code()] += 1

        async def work() -> None:
            while True:
                asked = time.monotonic()
                await front.latents.ListCrosscoders(request, metadata=own)
                waits_ms.append((time.monotonic() - asked) * 1000)
                await asyncio.sleep(0.05)

        working = asyncio.create_task(work())
        await asyncio.gather(*(guess() for _ in range(AT_ONCE)))
        working.cancel()
        took_s = time.monotonic() - begun
        grown_mb = (psutil.Process().memory_info().rss - before_bytes) / 1e6
    looked_at = codes[grpc.StatusCode.UNAUTHENTICATED]
    most = brake.FREE + 6 + took_s / brake.MAX_DELAY_S + AT_ONCE
    assert sum(codes.values()) == NUM_GUESSES
    row("wrong tokens let through", codes[grpc.StatusCode.OK], "calls", 0, ok=codes[grpc.StatusCode.OK] == 0)
    row("wrong tokens looked at, of 5000", looked_at, "calls", most, ok=looked_at <= most)
    slowest = sorted(waits_ms)[int(len(waits_ms) * 0.99)]
    row("a known token meanwhile, p99", slowest, "ms", 1000, ok=slowest < 1000)
    row("memory after them", grown_mb, "MB", 30, ok=grown_mb < 30)
    lines = (tmp_path / access.AUDIT).read_text().splitlines()
    row("lines of the audit log", len(lines), "lines", 20, ok=len(lines) <= 20)
