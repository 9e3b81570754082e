"""The file of words: several processes, a kill, a full disk, damage, older and newer files; import and export."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import grpc
import grpc.aio
import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_server import Front, run_front
from fixtures_waiting import PATIENCE_S

from crosscope_proto.artefacts import ANNOTATIONS
from crosscope_proto.v1 import annotations_pb2 as pb
from crosscope_proto.v1 import latents_pb2
from crosscope_server.annotations.database import Database
from crosscope_server.annotations.records import Dictionary, Said, What
from crosscope_server.annotations.schema import MIGRATIONS
from crosscope_server.annotations.store import Annotations
from crosscope_server.errors import CallError, Conflict, Unavailable

pytestmark = pytest.mark.asyncio

DEMO = pb.WordsOf(crosscoder="demo")
ABOUT = Dictionary("w" * 64, "demo", 100_000)
WRITER = """
import asyncio, sys
from pathlib import Path
from crosscope_server.annotations.records import Dictionary, Said, What
from crosscope_server.annotations.store import Annotations

async def write():
    store, about = Annotations(Path(sys.argv[1])), Dictionary("w" * 64, "demo", 100_000)
    for latent in range(int(sys.argv[2]), int(sys.argv[3])):
        await store.say(about, latent, What.LABEL, Said(f"label {latent}", "ada", 1.0), "ada", None)
        print(latent, flush=True)
    await store.close()

asyncio.run(write())
"""


def writer(home: Path, first: int, end: int) -> subprocess.Popen[bytes]:
    """A process that labels latents one by one, and prints the id of each that is written."""
    command = [sys.executable, "-c", WRITER, str(home), str(first), str(end)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


async def labels(home: Path) -> list[int]:
    store = Annotations(home)
    found = await store.snapshot(ABOUT.weights)
    await store.close()
    assert all(text == f"label {latent}" for latent, text in found.labels.items())
    return sorted(found.labels)


async def test_two_processes_write_one_file(tmp_path: Path):
    processes = [writer(tmp_path, 0, 20), writer(tmp_path, 20, 40)]
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0]
    for process in processes:
        process.communicate()
    assert await labels(tmp_path) == list(range(40))


async def test_a_server_sees_what_another_wrote(tmp_path: Path):
    write_crosscoder(tmp_path, "demo", 40, num_sequences=20)
    async with run_front(home=tmp_path) as one, run_front(home=tmp_path) as other:
        for latent, front in ((1, one), (2, other), (3, one)):
            await front.annotations.SetLabel(pb.SetLabelRequest(of=DEMO, latent=latent, text=f"label {latent}"))
            for reader in (one, other):
                reply = await reader.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=latent))
                assert reply.latent.label == f"label {latent}"


async def test_a_killed_writer_loses_nothing_that_it_said_was_written(tmp_path: Path):
    process = writer(tmp_path, 0, 100_000)
    assert process.stdout is not None
    for _ in range(10):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    said = 10 + len(process.communicate()[0].splitlines())
    found = await labels(tmp_path)
    assert found == list(range(len(found)))
    assert said <= len(found) <= said + 1, "one may be written and not yet told"
    store = Annotations(tmp_path)
    await store.say(ABOUT, 0, What.NOTE, Said("goes on", "ada", 1.0), "ada", None)
    await store.close()


async def test_an_empty_file_becomes_one_of_this_version(tmp_path: Path):
    (tmp_path / ANNOTATIONS).touch()
    store = Annotations(tmp_path)
    assert (await store.snapshot("w")).revision == 0
    await store.close()
    with sqlite3.connect(tmp_path / ANNOTATIONS) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(Conflict, match="a newer crosscope has written it"):
        await Annotations(tmp_path).snapshot("w")


async def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A new step takes an older file along, with its words; one that breaks in the middle changes nothing."""
    store = Annotations(tmp_path)
    await store.say(ABOUT, 3, What.LABEL, Said("label 3", "ada", 1.0), "ada", None)
    await store.close()
    module = "crosscope_server.annotations"
    for steps in ((("CREATE TABLE more (x)", "no sql"),), (("CREATE TABLE more (x)",),)):
        for place in ("schema", "database"):
            monkeypatch.setattr(f"{module}.{place}.MIGRATIONS", (*MIGRATIONS, *steps))
        works = steps[0][-1] != "no sql"
        if not works:
            with pytest.raises(sqlite3.OperationalError):
                await labels(tmp_path)
        else:
            assert await labels(tmp_path) == [3]
        with sqlite3.connect(tmp_path / ANNOTATIONS) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            assert version == len(MIGRATIONS) + works
            assert len(connection.execute("SELECT * FROM sqlite_schema WHERE name = 'more'").fetchall()) == works
        connection.close()


@pytest.mark.parametrize(
    ("pragma", "kind", "sentence"),
    [("max_page_count = 1", Unavailable, "the disk is full"), ("query_only = 1", Conflict, "let the server's user")],
)
async def test_a_file_that_cannot_be_written_says_what_to_do(tmp_path: Path, pragma: str, kind, sentence: str):
    store = Annotations(tmp_path)
    await store.say(ABOUT, 3, What.LABEL, Said("label 3", "ada", 1.0), "ada", None)
    database: Database = store._database
    await database.write(lambda connection: connection.execute(f"PRAGMA {pragma}"))
    with pytest.raises(kind, match=sentence):
        await store.say(ABOUT, 4, What.NOTE, Said("x" * 10_000, "ada", 1.0), "ada", None)
    assert (await store.words(ABOUT.weights, 4)).said == {}
    await store.say(ABOUT, 4, What.LABEL, Said("label 4", "ada", 1.0), "ada", None)
    assert (await store.words(ABOUT.weights, 4)).said[What.LABEL].text == "label 4", "a new connection may write again"
    await store.close()


async def test_a_busy_file_is_waited_for_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("crosscope_server.annotations.database.BUSY_S", 0.1)
    store = Annotations(tmp_path)
    await store.say(ABOUT, 3, What.LABEL, Said("label 3", "ada", 1.0), "ada", None)
    other = sqlite3.connect(tmp_path / ANNOTATIONS, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="another process has held it") as caught:
        await store.say(ABOUT, 4, What.LABEL, Said("x", "ada", 1.0), "ada", None)
    assert caught.value.retry_after_s == 1
    assert await labels(tmp_path) == [3], "readers do not wait"
    other.execute("ROLLBACK")
    other.close()
    await store.close()


async def test_latents_are_read_without_words_where_the_file_is_damaged(tmp_path: Path):
    write_crosscoder(tmp_path, "demo", 40, num_sequences=20)
    async with run_front(home=tmp_path) as front:
        await front.annotations.SetLabel(pb.SetLabelRequest(of=DEMO, latent=1, text="kept"))
        shutil.copy(tmp_path / ANNOTATIONS, tmp_path / "backup")
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"{ANNOTATIONS}{suffix}").unlink(missing_ok=True)
        (tmp_path / "damaged").write_bytes(b"not a database" * 500)
        (tmp_path / "damaged").rename(tmp_path / ANNOTATIONS)
        listing = latents_pb2.ListLatentsRequest(crosscoder="demo", page_size=2)
        reply = await front.latents.ListLatents(listing)
        assert [each.id for each in reply.latents] == [0, 1]
        [note] = reply.notes
        assert "labels and stars are missing" in note
        assert "put a backup in its place" in note
        listing.filters.add(column="starred", op=latents_pb2.LatentFilter.OP_EQ, number=1)
        for call in (
            front.latents.ListLatents(listing),
            front.annotations.SetLabel(pb.SetLabelRequest(of=DEMO, latent=1, text="x")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "it is damaged" in (caught.value.details() or "")
        (tmp_path / ANNOTATIONS).unlink()
        reply = await front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=1))
        assert (reply.latent.label, list(reply.notes)) == ("", [])
        await front.annotations.SetStar(pb.SetStarRequest(of=DEMO, latent=2, is_starred=True))
        reply = await front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=2))
        assert reply.latent.is_starred


def rows_of(*annotations: pb.Annotation, lists: tuple[str, ...] = (), weights: str = "") -> list[pb.ExportedRow]:
    named = [pb.ExportedRow(weights=weights, list=pb.ListPlace(name=name)) for name in lists]
    return [*named, *(pb.ExportedRow(weights=weights, annotation=each) for each in annotations)]


async def imported(front: Front, rows: list[pb.ExportedRow], **options) -> pb.ImportAnnotationsResponse:
    first = pb.ImportAnnotationsRequest(options={"of": DEMO, "author": "eve", **options})
    rest = [pb.ImportAnnotationsRequest(rows=rows[at : at + 3]) for at in range(0, len(rows), 3)]
    return await front.annotations.ImportAnnotations(iter([first, *rest]))


async def exported(front: Front) -> list[pb.ExportedRow]:
    replies = front.annotations.ExportAnnotations(pb.ExportAnnotationsRequest(of=DEMO))
    rows = [row async for reply in replies for row in reply.rows]
    for row in rows:
        for what in ("label", "automatic_label", "note", "star"):
            if row.annotation.HasField(what):
                getattr(row.annotation, what).revision = 0
    return rows


HOSTILE = ["=1+1", "+x", "-x", "@x", "\u202eevil\u202c", "a\u200bb", "👩‍👩‍👧", "é" * 200, '"; DROP TABLE', " padded "]


async def test_what_is_exported_is_imported_exactly(tmp_path: Path):
    for name in ("one", "two"):
        write_crosscoder(tmp_path / name, "demo", 40, num_sequences=20)
    when = {"author": "ada", "written_at": 1_700_000_000.5}
    said = [
        pb.Annotation(latent=i, label=pb.Words(text=text, **when), note=pb.Words(text=f"{text}\nand\n", **when))
        for i, text in enumerate(HOSTILE)
    ]
    said[2].lists.add(name="=list", position=5)
    said[0].lists.add(name="=list", position=9)
    said[3].star.CopyFrom(pb.Words(**when))
    said[4].automatic_label.CopyFrom(pb.Words(text="by a program", author="m", written_at=1, scores={"fuzzing": 0.5}))
    async with run_front(home=tmp_path / "one") as one, run_front(home=tmp_path / "two") as two:
        report = await imported(one, rows_of(*said, lists=("empty", "=list")))
        assert (report.num_rows, report.num_added, report.num_lists, report.num_members) == (12, 22, 2, 2)
        first = await exported(one)
        latents = [row.annotation for row in first if row.HasField("annotation")]
        assert [each.label.text for each in latents] == HOSTILE
        assert [place.position for place in latents[0].lists] == [1]
        assert [place.position for place in latents[2].lists] == [0]
        assert [row.list.name for row in first if row.HasField("list")] == ["=list", "empty"]
        await imported(two, first)
        assert await exported(two) == first
        again = await imported(two, first)
        assert (again.num_added, again.num_replaced, again.num_unchanged, again.num_skipped) == (0, 0, 22, 0)


async def test_an_import_counts_first_and_writes_over_nobody(tmp_path: Path):
    write_crosscoder(tmp_path, "demo", 40, num_sequences=20)
    async with run_front(home=tmp_path) as front:
        said = front.annotations
        await said.SetLabel(pb.SetLabelRequest(of=DEMO, latent=1, text="mine", author="ada"))
        rows = rows_of(
            pb.Annotation(latent=1, label=pb.Words(text="theirs")),
            pb.Annotation(latent=2, label=pb.Words(text="new"), lists=[pb.ListPlace(name="l")]),
            pb.Annotation(latent=40, label=pb.Words(text="beyond")),
            pb.Annotation(latent=3, label=pb.Words(text="x" * 201)),
        )
        rows += rows_of(pb.Annotation(latent=4, label=pb.Words(text="foreign")), weights="f" * 64)
        dry = await imported(front, rows, dry_run=True)
        assert (dry.dry_run, dry.num_added, dry.num_replaced, dry.num_lists, dry.num_members) == (True, 1, 0, 1, 1)
        assert [(each.row, each.latent, each.what) for each in dry.skipped] == [
            (0, 1, "label"),
            (2, 40, "row"),
            (3, 3, "row"),
            (4, 4, "row"),
        ]
        assert dry.num_skipped == 4
        for each, part in zip(dry.skipped, ("by ada", "0 to 39", "200 characters", "any weights"), strict=True):
            assert part in each.reason
        assert [row.annotation.label.text for row in await exported(front)] == ["mine"]
        wet = await imported(front, rows)
        assert (wet.num_added, wet.num_skipped, wet.dry_run) == (1, 4, False)
        assert [row.annotation.label.text for row in await exported(front)][1:] == ["mine", "new"]
        forced = await imported(front, rows, replace=True, any_weights=True)
        assert (forced.num_added, forced.num_replaced, forced.num_unchanged, forced.num_skipped) == (1, 1, 1, 2)
        changes = (await said.GetHistory(pb.GetHistoryRequest(of=DEMO, latent=1))).changes
        assert [(each.author, each.after) for each in changes] == [("eve", "theirs"), ("ada", "mine")]
        with pytest.raises(grpc.aio.AioRpcError, match="first message must hold the options"):
            await said.ImportAnnotations(iter([pb.ImportAnnotationsRequest(rows=rows)]))


async def test_logs_and_metrics_hold_no_words(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_crosscoder(tmp_path, "demo", 40, num_sequences=20)
    secret = "a-secret-word"
    with caplog.at_level("DEBUG"):
        async with run_front(home=tmp_path) as front:
            said = front.annotations
            await said.SetLabel(pb.SetLabelRequest(of=DEMO, text=secret, author=secret))
            await said.WriteNote(pb.WriteNoteRequest(of=DEMO, text=secret))
            await said.CreateList(pb.CreateListRequest(of=DEMO, name=secret))
            await imported(front, rows_of(pb.Annotation(latent=1, label=pb.Words(text=secret))))
            for call in (
                said.SetLabel(pb.SetLabelRequest(of=DEMO, text=f"{secret} 2", seen_revision=9)),
                said.CreateList(pb.CreateListRequest(of=DEMO, name=secret)),
            ):
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
            await asyncio.sleep(0)
    assert "SetLabel" in "".join(str(vars(record)) for record in caplog.records)
    assert not [record for record in caplog.records if secret in str(vars(record))]


async def test_errors_of_sqlite_that_are_bugs_stay_bugs(tmp_path: Path):
    database = Database(tmp_path / ANNOTATIONS)
    with pytest.raises(sqlite3.OperationalError):
        await database.write(lambda connection: connection.execute("no sql"))
    assert await database.write(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    with pytest.raises(CallError):
        await Database(tmp_path / "no folder" / ANNOTATIONS).write(lambda _: None)
    await database.close()
