"""A handle is a version: what is published later never mixes into it."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_artefacts import write_crosscoder

from crosscope import Client, Crosscoder, ServerError, VersionGone
from crosscope.cli import run
from crosscope_proto import artefacts as layout
from crosscope_proto.v1 import latents_pb2, latents_pb2_grpc, prompts_pb2

from .conftest import ScriptedPrompts, running_server


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder to publish into, and the address of the server over it."""
    home = tmp_path_factory.mktemp("versions")
    write_crosscoder(home, "first-of-all", 40)
    with running_server(home) as address:
        yield home, address


def versions_of(handle: Crosscoder) -> set[str]:
    """The versions of everything that a handle gives."""
    latents = handle.latents(limit=None, order_by="-max")
    found = {latent.version_id for latent in latents} | {handle.latent(3).version_id}
    assert len(handle.atlas(["max"])["max"]) == handle.info.num_latents
    assert handle.examples(0)
    assert handle.detectors()
    return found | {handle.training_curves().version_id}


def test_a_handle_stays_with_its_version_and_moves_on_when_told(published: tuple[Path, str]) -> None:
    home, address = published
    first = write_crosscoder(home, "demo", 40)
    with Client(address) as client:
        handle, listed = client.crosscoder("demo"), client.crosscoders()[0]
        copied = pickle.loads(pickle.dumps(handle))
        latent = handle.latent(0)
        second = write_crosscoder(home, "demo", 50, seed=1)
        for each in (handle, listed, copied, client.crosscoder("demo", version=first.version_id)):
            assert each.version_id == first.version_id
            assert versions_of(each) == {first.version_id}
        assert handle.current().version_id == second.version_id
        assert versions_of(handle.current()) == {second.version_id}
        assert handle.version_id == latent.source.version_id == first.version_id

        shutil.rmtree(layout.version_folder(home, "demo", first.version_id))
        write_crosscoder(home, "demo", 60, seed=2)
        with pytest.raises(VersionGone, match="is gone or never existed; the newest is") as caught:
            client.crosscoder("demo", version="20990101t000000000-0")
        assert client.crosscoder("demo", version=caught.value.newest).info.num_latents == 60


def test_the_command_line_asks_a_version(published: tuple[Path, str], monkeypatch, capsys) -> None:
    home, address = published
    monkeypatch.setenv("CROSSCOPE_ADDRESS", address)
    first = write_crosscoder(home, "two", 40)
    second = write_crosscoder(home, "two", 50, seed=1)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    for options, version_id, num in (
        ((), second.version_id, 50),
        (("--version", first.version_id), first.version_id, 40),
    ):
        code, out, _ = call("latents", "two", "--json", *options)
        found = json.loads(out)
        assert (code, found["num_matching"], found["latents"][0]["version_id"]) == (0, num, version_id)
        assert json.loads(call("latent", "two", "1", "--json", *options)[1])["latent"]["version_id"] == version_id
        assert version_id in call("crosscoders", "two", *options)[1]
    assert second.version_id in call("crosscoders")[1]
    code, _, err = call("latents", "two", "--version", "x")
    assert (code, "the newest is " + second.version_id in err) == (1, True)
    assert call("crosscoders", "--version", "x")[0] == 2


class OldLatents(latents_pb2_grpc.LatentsServicer):
    """A server that knows no version_id and has published another version since it showed its card."""

    def GetCrosscoder(self, request, context):
        return latents_pb2.GetCrosscoderResponse(crosscoder=latents_pb2.Crosscoder(name="demo", version_id="v0"))

    def GetLatent(self, request, context):
        return latents_pb2.GetLatentResponse(version_id="v1")

    def ListLatents(self, request, context):
        return latents_pb2.ListLatentsResponse(version_id="v1")

    def GetAtlas(self, request, context):
        yield latents_pb2.GetAtlasResponse(column="max", version_id="v1")


def test_an_answer_of_another_version_from_an_old_server_is_noticed(serve) -> None:
    """Of OldLatents, and of ScriptedPrompts, which answers from version v1."""
    with Client(serve(OldLatents(), ScriptedPrompts()).address) as client:
        handle = client.crosscoder("demo")
        for ask in (
            lambda: handle.latent(0),
            handle.latents,
            lambda: handle.atlas(["max"]),
            lambda: handle.encode("a"),
            lambda: list(handle.encode_many(["a"])),
            lambda: client.crosscoder("demo", version="v1"),
        ):
            with pytest.raises(VersionGone, match="its software is older") as caught:
                ask()
            assert caught.value.newest in ("v0", "v1")
        assert handle.tokenize("a").pieces == ("<bos>", "a")  # an old server does not say which version tokenises


def test_an_error_of_a_stream_has_the_details_of_one_of_a_call(serve) -> None:
    class Gone(ScriptedPrompts):
        def EncodeStream(self, request_iterator, context):
            from google.rpc import error_details_pb2, status_pb2

            status = status_pb2.Status(code=9, message="gone")
            status.details.add().Pack(
                error_details_pb2.ErrorInfo(reason="VERSION_GONE", metadata={"newest_version": "v7"})
            )
            for item in request_iterator:
                error = prompts_pb2.StreamError(code=9, message="gone", status=status.SerializeToString())
                yield prompts_pb2.EncodeStreamResponse(sequence=item.sequence, error=error)

    with Client(serve(OldLatents(), Gone()).address) as client:
        [error] = client.crosscoder("demo").encode_many(["a"], on_error="return")
    assert isinstance(error, VersionGone)
    assert error.newest == "v7"


def test_a_broken_crosscoder_is_listed_with_its_reason_and_asks_fail(published, monkeypatch, capsys) -> None:
    home, address = published
    manifest = write_crosscoder(home, "hurt", 40)
    path = Path(layout.version_folder(home, "hurt", manifest.version_id)) / layout.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer": -3}))
    says = f"{path}: layer: must be 0 to 4294967295, but is -3"
    with Client(address) as client:
        handle = client.crosscoders()[-1]
        assert (handle.name, handle.version_id, handle.info.num_latents) == ("hurt", manifest.version_id, 0)
        assert handle.info.broken.startswith(says)
        assert says in str(handle)
        assert says in repr(handle)
        for ask in (handle.latents, handle.detectors, handle.current):
            with pytest.raises(ServerError, match="layer: must be 0 to"):
                ask()
    monkeypatch.setenv("CROSSCOPE_ADDRESS", address)
    for command in ("crosscoders", "status"):
        assert run([command]) == 0
        out, err = capsys.readouterr()
        assert "first-of-all" in out
        assert ("hurt" in out) == (command == "status"), "only status says there what is wrong"
        assert f"hurt is broken: {says}" in err
    assert run(["crosscoders", "--json"]) == 0
    assert [info["broken"].startswith(says) for info in json.loads(capsys.readouterr().out)][-1]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"skipped": ' * 50_000, "\ufeff{", "9" * 5000])
def test_a_list_is_read_whatever_a_broken_manifest_holds(published, monkeypatch, capsys, text: str) -> None:
    home, address = published
    name = f"unread-{len(text)}"
    manifest = write_crosscoder(home, name, 40)
    (Path(layout.version_folder(home, name, manifest.version_id)) / layout.MANIFEST).write_text(text)
    with Client(address) as client:
        info = next(handle.info for handle in client.crosscoders() if handle.name == name)
    assert "crosscoder.json" in info.broken
    assert (info.left_out, info.unavailable) == ([], {})
    monkeypatch.setenv("CROSSCOPE_ADDRESS", address)
    assert run(["crosscoders"]) == 0
    out, err = capsys.readouterr()
    assert "first-of-all" in out
    assert f"{name} is broken: " in err
    shutil.rmtree(layout.crosscoder_folder(home, name))
