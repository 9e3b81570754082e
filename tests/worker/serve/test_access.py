"""Who may ask an inference worker: on a TCP port whoever has its token, on a socket whoever owns it."""

from pathlib import Path

import grpc
import grpc.aio
import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_server import run_front
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from crosscope_proto.v1 import prompts_pb2
from crosscope_proto.worker.v1 import inference_pb2, inference_pb2_grpc
from crosscope_worker.serve.process import InferenceProcess
from crosscope_worker.serve.settings import ServeSettings

REQUEST = inference_pb2.TokenizeRequest(crosscoder="none", version_id="v")


async def refusal(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call  # pyright: ignore[reportGeneralTypeIssues]
    return error.value


async def test_a_port_asks_for_the_token_and_the_server_sends_it(tmp_path: Path) -> None:
    write_crosscoder(tmp_path, "demo", 10)
    process = InferenceProcess(ServeSettings(home=tmp_path, listen="127.0.0.1:0", token="s3cret"))
    port = await process.start()
    encode = prompts_pb2.EncodeRequest(crosscoder="demo")
    encode.prompt.text = "a"
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            for metadata in (None, (("authorization", "Bearer wrong"),)):
                error = await refusal(stub.Tokenize(REQUEST, metadata=metadata))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                streamed = stub.Generate(inference_pb2.GenerateRequest(), metadata=metadata)
                assert (await refusal(streamed.read())).code() is grpc.StatusCode.UNAUTHENTICATED
            right = (("authorization", "Bearer s3cret"),)
            assert (await refusal(stub.Tokenize(REQUEST, metadata=right))).code() is grpc.StatusCode.NOT_FOUND
            reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        answers = {"wrong": "refuses this server", "s3cret": "safetensors is missing"}
        for token, says in answers.items():
            async with run_front(home=tmp_path, workers=f"127.0.0.1:{port}", worker_token=token) as front:
                await front.prompts_serve()
                assert says in ((await refusal(front.prompts.Encode(encode))).details() or "")
    finally:
        await process.stop()


async def test_a_socket_is_private(tmp_path: Path) -> None:
    process = InferenceProcess(ServeSettings(home=tmp_path, listen=f"unix:{tmp_path}/worker"))
    await process.start()
    assert (tmp_path / "worker").stat().st_mode & 0o777 == 0o600
    await process.stop()


def test_a_port_without_a_token_is_refused_unless_told_so_by_name() -> None:
    with pytest.raises(ValidationError, match=r"CROSSCOPE_WORKER_TOKEN.*CROSSCOPE_WORKER_ALLOW_ANYONE"):
        ServeSettings()
    assert ServeSettings(allow_anyone=True).listen == "127.0.0.1:50061"
