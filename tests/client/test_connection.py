"""How a client reaches its server: addresses, tokens, threads, TLS."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from crosscope import AsyncClient, Client, InvalidInput, Tls, Unauthorized, Unavailable
from crosscope._connection import Connection, owners
from crosscope_proto import access
from crosscope_proto.v1 import latents_pb2, latents_pb2_grpc


class Remembering(latents_pb2_grpc.LatentsServicer):
    """No crosscoders; the metadata of every call."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str | bytes]] = []

    def ListCrosscoders(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        return latents_pb2.ListCrosscodersResponse()


def test_where_the_address_comes_from(monkeypatch) -> None:
    monkeypatch.delenv("CROSSCOPE_ADDRESS", raising=False)
    assert Client().address == "localhost:50051"
    monkeypatch.setenv("CROSSCOPE_ADDRESS", "elsewhere:1234")
    assert Client().address == "elsewhere:1234"
    assert Client("[::1]:50051").address == "[::1]:50051"
    assert repr(Client("unix:/run/x.sock")) == "Client('unix:/run/x.sock')"


def test_making_a_client_connects_to_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        client = Client(f"127.0.0.1:{listener.getsockname()[1]}")
        with client, pytest.raises(TimeoutError):
            listener.accept()


def test_unix_socket(serve, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    serve(Remembering(), address="unix:server.sock")
    with Client(f"unix:{tmp_path}/server.sock") as client:
        assert client.crosscoders() == []


def test_token(serve, monkeypatch) -> None:
    remembering = Remembering()
    address = serve(remembering).address
    monkeypatch.delenv("CROSSCOPE_TOKEN", raising=False)
    monkeypatch.setenv("CROSSCOPE_HOME", "/nowhere")
    Client(address).crosscoders()
    Client(address, token="abc").crosscoders()
    monkeypatch.setenv("CROSSCOPE_TOKEN", "def")
    Client(address).crosscoders()
    assert [metadata.get("authorization") for metadata in remembering.metadata] == [None, "Bearer abc", "Bearer def"]


def test_the_homes_own_token_goes_to_this_machine_only(serve, monkeypatch, tmp_path: Path) -> None:
    remembering = Remembering()
    address = serve(remembering).address
    monkeypatch.delenv("CROSSCOPE_TOKEN", raising=False)
    monkeypatch.setenv("CROSSCOPE_HOME", str(tmp_path))
    own = tmp_path / access.OWN_TOKEN
    client = Client(address)
    client.crosscoders()
    own.parent.mkdir()
    own.write_text("own\n")
    client.crosscoders()  # made before there was a token
    Client(address, token="given").crosscoders()
    Client(address, token="").crosscoders()
    sent = [metadata.get("authorization") for metadata in remembering.metadata]
    assert sent == [None, "Bearer own", "Bearer given", None]
    for elsewhere in ("gpu7:1", "10.0.0.1:1", "grpcs://gpu7:1"):
        assert Connection(elsewhere, None, 1, None).metadata == ()
    assert Connection(address, None, 1, None).metadata == (("authorization", "Bearer own"),)
    assert "own" not in repr(Connection(address, None, 1, None))


def test_the_note_of_a_server_names_its_home(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CROSSCOPE_HOME", str(tmp_path / "other"))
    monkeypatch.delenv("CROSSCOPE_TOKEN", raising=False)
    home = tmp_path / "home"
    (home / access.FOLDER).mkdir(parents=True)
    (home / access.OWN_TOKEN).write_text("of-the-home")
    (tmp_path / "state" / access.NOTES).mkdir(parents=True)
    (tmp_path / "state" / access.NOTES / "port-4").write_text(str(home))
    assert Connection("localhost:4", None, 1, None).metadata == (("authorization", "Bearer of-the-home"),)
    assert Connection("localhost:5", None, 1, None).metadata == ()


def test_who_listens_on_a_port(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    rest = "00000000:0000 {} 00000000:00000000 00:00000000 00000000 {} 0 1 1"
    rows = ["sl", f"0: 0100007F:C383 {rest.format('0A', 1000)}", f"1: 0100007F:C384 {rest.format('0A', 7)}"]
    table.write_text("\n".join([*rows, f"2: 0100007F:C383 {rest.format('01', 7)}"]) + "\n")
    assert owners(0xC383, [table, tmp_path / "none"]) == {1000}
    assert owners(0xC384, [table]) == {7}
    assert owners(1, [table]) == set()


@pytest.mark.parametrize("token", ["two words", "ü", "a\nb", "\x00", "x" * 5000])
def test_a_token_that_cannot_travel_is_said(token: str) -> None:
    with pytest.raises(InvalidInput, match=r"^token: "):
        Client("localhost:1", token=token)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(serve, monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Client(serve(Remembering()).address).crosscoders() == []


def test_one_client_among_threads(serve) -> None:
    remembering = Remembering()
    with Client(serve(remembering).address) as client, futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: client.crosscoders(), range(200))) == [[]] * 200
    assert len(remembering.metadata) == 200


def test_closing_during_use_is_an_error_of_the_tree(scripted: Client) -> None:
    demo = scripted.crosscoder("demo")
    stream = demo.encode_many(["abc"] * 50, in_flight=2)
    next(stream)
    scripted.close()
    with pytest.raises(Unavailable):
        list(stream)
    with pytest.raises(InvalidInput, match="closed"):
        demo.encode("abc")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost, signed by itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*command, *subject, "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
    return made


@pytest.fixture
def over_tls(certificate: tuple[Path, Path]) -> Iterator[tuple[str, Remembering]]:
    """The address of a server that speaks TLS only, and what it remembers."""
    server, remembering = grpc.server(futures.ThreadPoolExecutor(2)), Remembering()
    latents_pb2_grpc.add_LatentsServicer_to_server(remembering, server)
    pair = [(certificate[1].read_bytes(), certificate[0].read_bytes())]
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials(pair))
    server.start()
    yield f"localhost:{port}", remembering
    server.stop(None).wait()


def test_tls(certificate: tuple[Path, Path], over_tls: tuple[str, Remembering]) -> None:
    with Client(over_tls[0], tls=Tls(ca=certificate[0])) as client:
        assert client.crosscoders() == []
    with Client(over_tls[0], tls=Tls()) as client, pytest.raises(Unauthorized, match="TLS"):
        client.crosscoders()


async def test_tls_of_the_asynchronous_client(
    certificate: tuple[Path, Path], over_tls: tuple[str, Remembering]
) -> None:
    async with AsyncClient(over_tls[0], token="abc", tls=Tls(ca=certificate[0])) as client:
        assert await client.crosscoders() == []
    assert over_tls[1].metadata[0]["authorization"] == "Bearer abc"
    async with AsyncClient(over_tls[0], tls=Tls()) as client:
        with pytest.raises(Unauthorized, match="TLS"):
            await client.crosscoders()


def test_tls_files(tmp_path: Path) -> None:
    with Client(tls=Tls(ca=tmp_path / "none.pem")) as client, pytest.raises(InvalidInput, match=r"none\.pem.*No such"):
        client.crosscoders()
    (tmp_path / "key.pem").touch()
    with Client(tls=Tls(key=tmp_path / "key.pem")) as client, pytest.raises(InvalidInput, match="go together"):
        client.crosscoders()
