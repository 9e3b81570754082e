"""TLS with certificates of `crosscope certs`, and addresses that are refused without it."""

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fixtures_artefacts import write_crosscoder
from pydantic import ValidationError

from crosscope import AsyncClient, InvalidInput, Tls, Unauthorized, Unavailable
from crosscope_local.certs import CertsError, make
from crosscope_proto import access
from crosscope_server.serve import StartError, serving
from crosscope_server.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates for 127.0.0.1 and for the client ann."""
    folder = tmp_path_factory.mktemp("certs")
    make(folder, ["localhost", "127.0.0.1"], ["ann"], 2)
    return folder


def settings(home: Path, folder: Path, **more: Any) -> Settings:
    pair = {"tls_cert": folder / "server.pem", "tls_key": folder / "server-key.pem"}
    return Settings(home=home, listen="127.0.0.1:0", **pair | more)


async def names(address: str, **options: Any) -> list[str]:
    async with AsyncClient(address, **options) as client:
        return [each.name for each in await client.crosscoders()]


async def test_a_client_that_knows_the_authority_is_answered(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_crosscoder(tmp_path, "demo", 10)
    async with serving(settings(tmp_path, folder)) as running:
        address = f"127.0.0.1:{running.port}"
        assert await names(address, tls=Tls(ca=folder / "ca.pem")) == ["demo"]  # with the home's own token
        with pytest.raises(Unauthorized, match="TLS"):
            await names(address, tls=Tls())
        with pytest.raises(Unauthorized, match="token"):
            await names(address, tls=Tls(ca=folder / "ca.pem"), token="wrong")
        monkeypatch.setenv("CROSSCOPE_TLS_CA", str(folder / "ca.pem"))
        assert await names(f"grpcs://{address}") == ["demo"]
        with pytest.raises(InvalidInput, match="is no address"):
            await names(f"https://{address}")


async def test_a_server_may_ask_clients_for_certificates(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_crosscoder(tmp_path, "demo", 10)
    async with serving(settings(tmp_path, folder, tls_client_ca=folder / "ca.pem")) as running:
        address = f"grpcs://127.0.0.1:{running.port}"
        monkeypatch.setenv("CROSSCOPE_TLS_CA", str(folder / "ca.pem"))
        with pytest.raises(Unavailable, match=r"may ask for a certificate of this client.*certs DIR --client"):
            await names(address, timeout_s=1)
        monkeypatch.setenv("CROSSCOPE_TLS_CERT", str(folder / "ann.pem"))
        monkeypatch.setenv("CROSSCOPE_TLS_KEY", str(folder / "ann-key.pem"))
        assert await names(address) == ["demo"]


async def test_whoever_does_not_agree_about_tls_hears_what_to_give(tmp_path: Path, folder: Path) -> None:
    """Each with a real server: the sentence names what is wrong, and the way out."""
    wrong, late, elsewhere = (tmp_path / name for name in ("wrong", "late", "elsewhere"))
    make(wrong, ["127.0.0.1"], [], 2)
    make(elsewhere, ["gpu7.example.org"], [], 2)
    make(late, [], ["nobody"], 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("crosscope_local.certs._EARLIER", timedelta(days=5))
        make(late, ["127.0.0.1"], [], -1)
    known = Tls(ca=folder / "ca.pem")
    async with serving(settings(tmp_path, folder)) as running:
        address = f"127.0.0.1:{running.port}"
        with pytest.raises(Unavailable, match=rf"may speak TLS.*grpcs://{address}.*CROSSCOPE_TLS_CA"):
            await names(address, timeout_s=0.5)
        with pytest.raises(Unauthorized, match=r"authority that this client does not know.*CROSSCOPE_TLS_CA"):
            await names(address, tls=Tls(ca=wrong / "ca.pem"))
        command = [Path(sys.executable).with_name("crosscope"), "crosscoders", "--address", address, "--timeout", "0.5"]
        said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        assert said.returncode
        assert f"grpcs://{address}" in " ".join(said.stderr.split())
    async with serving(Settings(home=tmp_path, listen="127.0.0.1:0")) as running:
        with pytest.raises(Unauthorized, match=r"does not speak TLS, and this client does: write the address without"):
            await names(f"127.0.0.1:{running.port}", tls=known)
    for other, says in ((late, r"has expired.*crosscope certs"), (elsewhere, r"for other names.*--host")):
        async with serving(settings(tmp_path, other)) as running:
            with pytest.raises(Unauthorized, match=says):
                await names(f"127.0.0.1:{running.port}", tls=Tls(ca=other / "ca.pem"))


async def test_a_certificate_that_cannot_be_read_is_one_sentence(tmp_path: Path, folder: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    with pytest.raises(StartError, match=r"wrong\.pem|CROSSCOPE_SERVER_TLS"):
        async with serving(settings(tmp_path, folder, tls_cert=wrong)):
            pass


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"listen": "0.0.0.0:1"}, "CROSSCOPE_SERVER_ALLOW_PLAINTEXT"),
        ({"listen": "[::]:1"}, "needs TLS"),
        ({"listen": "gpu7:1", "allow_anyone": True}, "needs TLS"),
        ({"tls_cert": __file__}, "go together"),
        ({"tls_client_ca": __file__}, "go together"),
    ],
)
def test_what_strangers_could_reach_in_the_clear_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(**given)


def test_certificates_are_private_and_never_replaced(folder: Path, tmp_path: Path) -> None:
    for name in ("ca-key.pem", "server-key.pem", "ann-key.pem"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(CertsError, match=r"server\.pem is there already"):
        make(folder, ["elsewhere"], [], 2)
    authority = (folder / "ca.pem").read_bytes()
    assert [path.name for path in make(folder, [], ["bob"], 2)] == ["bob-key.pem", "bob.pem"]
    assert (folder / "ca.pem").read_bytes() == authority
    (tmp_path / "file").touch()
    with pytest.raises(CertsError, match="cannot be made"):
        make(tmp_path / "file" / "x", ["h"], [], 2)


def test_which_addresses_only_this_machine_reaches() -> None:
    for address in ("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/x", "127.8.8.8:1"):
        assert access.is_loopback(address), address
    for address in ("0.0.0.0:1", "[::]:1", "localhost.evil.org:1", "10.0.0.1:1", "gpu7:1"):
        assert not access.is_loopback(address), address
    assert access.note_of("localhost:7") == access.note_of("[::1]:7") == "port-7"
    assert access.note_of("unix:/x") == access.note_of("unix:///x") != access.note_of("unix:/y")
    assert access.note_of("gpu7:7") is None
