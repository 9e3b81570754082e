"""A worker in a process of its own, whose device takes a known time. `python fixtures_device.py SOCKET …` runs it.

Prompts that wait are answered as one batch, which takes `batch_ms` and `prompt_ms` for each of its prompts.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
from fixtures_server import CountingWorker, code_of, text_of, tokens_of
from fixtures_waiting import PATIENCE_S
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from crosscope_proto.v1 import types_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc

HERE = Path(__file__)


class Device(CountingWorker):
    """A worker whose answers take time."""

    def __init__(self, batch_ms: float, prompt_ms: float, latents: int) -> None:
        super().__init__()
        self._batch_s, self._prompt_s, self._latents = batch_ms / 1000, prompt_ms / 1000, latents
        self._waiting: list[asyncio.Future[None]] = []
        self._runs = False

    async def Encode(self, request: Any, context: Any) -> inference_pb2.EncodeResponse:
        waits = asyncio.get_running_loop().create_future()
        self._waiting.append(waits)
        if not self._runs:
            self._runs = True
            self._task = asyncio.create_task(self._run())
        await waits
        text = text_of(request.prompt)
        code = wide_code(text, self._latents) if self._latents else code_of(text)
        return inference_pb2.EncodeResponse(tokens=tokens_of(text), code=code, compute_ms=1.5)

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await asyncio.sleep(self._batch_s + self._prompt_s * len(batch))
            for each in batch:
                if not each.done():
                    each.set_result(None)
        self._runs = False


def wide_code(text: str, latents: int) -> types_pb2.SparseCode:
    """So many latents on every token."""
    n = len(text.split(" ")) + 1
    return types_pb2.SparseCode(
        row_starts=[latents * t for t in range(n + 1)],
        latents=[(31 * t + 7 * k) % 2000 for t in range(n) for k in range(latents)],
        activations=[20.0 - 0.1 * k for _ in range(n) for k in range(latents)],
    )


@contextlib.asynccontextmanager
async def run_device(
    socket: Path, *, batch_ms: float = 5.0, prompt_ms: float = 2.5, latents: int = 0
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker's process that listens at `socket`; it is killed at the end."""
    options = ["--batch-ms", str(batch_ms), "--prompt-ms", str(prompt_ms), "--latents", str(latents)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE), str(socket), *options, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert await process.stdout.readline() == b"serves\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def _serve(socket: str, device: Device) -> None:
    healths = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(device, server)
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    server.add_insecure_port(f"unix:{socket}")
    await healths.set("", health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    print("serves", flush=True)  # noqa: T201 (whoever started the process waits for it)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--batch-ms", type=float, default=5.0)
    parser.add_argument("--prompt-ms", type=float, default=2.5)
    parser.add_argument("--latents", type=int, default=0)
    given = parser.parse_args()
    asyncio.run(_serve(given.socket, Device(given.batch_ms, given.prompt_ms, given.latents)))
