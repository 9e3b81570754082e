"""Labels that jobs have left below the home are there for whoever asks next; people's words stay as they are."""

from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from fixtures_artefacts import write_crosscoder
from fixtures_server import Front, run_front

from crosscope_proto.artefacts import CrosscoderManifest
from crosscope_proto.labels import LabelsError, MadeLabel, MadeLabels, labels_path, labels_text, parse_labels
from crosscope_proto.v1 import annotations_pb2 as pb
from crosscope_proto.v1 import latents_pb2

pytestmark = pytest.mark.asyncio

DEMO = pb.WordsOf(crosscoder="demo")
SCORES = {"detection": 0.8, "detection_se": 0.05, "detection_n": 40.0}


@pytest_asyncio.fixture
async def served(tmp_path: Path):
    manifest = write_crosscoder(tmp_path, "demo", 40, num_sequences=20)
    async with run_front(home=tmp_path) as front:
        yield tmp_path, manifest, front


def made(manifest: CrosscoderManifest, *labels: MadeLabel) -> MadeLabels:
    return MadeLabels("demo", manifest.weights_id, manifest.num_latents, "some-model", "job-1", 1.7e9, labels)


def deliver(home: Path, labels: MadeLabels, job: str = "job-1") -> Path:
    path = Path(labels_path(home, job))
    path.parent.mkdir(exist_ok=True)
    path.write_text(labels_text(labels), "utf-8")
    return path


async def words(front: Front, latent: int) -> pb.Annotation:
    return (await front.annotations.GetAnnotation(pb.GetAnnotationRequest(of=DEMO, latent=latent))).annotation


async def names(front: Front, *latents: int) -> list[str]:
    reply = await front.annotations.GetNames(pb.GetNamesRequest(of=DEMO, latents=latents))
    return [each.label for each in reply.names]


async def test_labels_are_taken_in_beside_peoples_words(served: tuple[Path, CrosscoderManifest, Front]):
    home, manifest, front = served
    await front.annotations.SetLabel(pb.SetLabelRequest(of=DEMO, latent=3, text="mine", author="ada"))
    await front.annotations.WriteNote(pb.WriteNoteRequest(of=DEMO, latent=3, text="a note", author="ada"))
    path = deliver(home, made(manifest, MadeLabel(3, "of a program", SCORES), MadeLabel(5, "rain", SCORES)))
    found = await words(front, 3)
    assert not path.exists()
    assert (found.label.text, found.label.author, found.note.text) == ("mine", "ada", "a note")
    assert (found.automatic_label.text, found.automatic_label.author) == ("of a program", "some-model")
    assert (dict(found.automatic_label.scores), found.automatic_label.written_at) == (SCORES, 1.7e9)
    assert await names(front, 3, 5) == ["mine", "rain"], "a person's label goes before"
    first = (await words(front, 5)).automatic_label
    deliver(home, made(manifest, MadeLabel(5, "rain", SCORES)))
    assert (await words(front, 5)).automatic_label == first, "taken in twice, it changes nothing"
    deliver(home, replace(made(manifest, MadeLabel(5, "weather", {})), author="other"))
    assert (await words(front, 5)).automatic_label.text == "weather"
    history = (await front.annotations.GetHistory(pb.GetHistoryRequest(of=DEMO, latent=5))).changes
    assert [(each.author, each.before, each.after) for each in history] == [
        ("other", "rain", "weather"),
        ("some-model", "", "rain"),
    ]
    assert not history[1].HasField("before")
    assert (await words(front, 3)).label == found.label


async def test_lists_and_filters_see_what_has_come(served: tuple[Path, CrosscoderManifest, Front]):
    home, manifest, front = served
    deliver(home, made(manifest, MadeLabel(7, "hail", {})))
    contains = latents_pb2.LatentFilter(column="label", op=latents_pb2.LatentFilter.OP_CONTAINS, text="hai")
    found = await front.latents.ListLatents(latents_pb2.ListLatentsRequest(crosscoder="demo", filters=[contains]))
    assert [each.id for each in found.latents] == [7]


async def test_scores_filter_and_order(served: tuple[Path, CrosscoderManifest, Front]):
    home, manifest, front = served
    scored = [MadeLabel(latent, "fog", {"detection": score}) for latent, score in ((2, 0.5), (9, 0.9), (4, 0.7))]
    deliver(home, made(manifest, *scored, MadeLabel(6, "no score", {})))
    await front.annotations.SetLabel(pb.SetLabelRequest(of=DEMO, latent=9, text="mine", author="ada"))

    async def listed(order_by: str = "", **condition) -> list[int]:
        filters = [latents_pb2.LatentFilter(**condition)] if condition else []
        request = latents_pb2.ListLatentsRequest(crosscoder="demo", filters=filters, order_by=order_by)
        return [each.id for each in (await front.latents.ListLatents(request)).latents]

    more, other = latents_pb2.LatentFilter.OP_GT, latents_pb2.LatentFilter.OP_NE
    assert await listed("detection", column="detection", op=more, number=0.6) == [4, 9]
    assert await listed(column="detection", op=other, number=0.5) == [4, 9]
    assert (await listed("-detection"))[:3] == [9, 4, 2]
    assert await listed(column="fuzzing", op=more, number=0) == []
    for wrong in ({"text": "high"}, {"op": latents_pb2.LatentFilter.OP_CONTAINS, "number": 1}):
        with pytest.raises(grpc.aio.AioRpcError, match="detection is a score from 0 to 1: compare it with a number"):
            await listed(**{"column": "detection", "op": more, **wrong})


async def test_a_file_that_cannot_be_read_is_put_aside(served: tuple[Path, CrosscoderManifest, Front]):
    home, manifest, front = served
    good = made(manifest, MadeLabel(1, "fog", {}))
    wrong = Path(labels_path(home, "job-0"))
    deliver(home, good)
    wrong.write_text(labels_text(good).replace('"latent": 1', '"latent": 40'))
    assert (await words(front, 1)).automatic_label.text == "fog"
    assert not wrong.exists()
    assert wrong.with_name("job-0.json.refused").exists()


async def test_labels_wait_where_words_cannot_be_written(served: tuple[Path, CrosscoderManifest, Front]):
    home, manifest, front = served
    (home / "annotations.sqlite3").write_bytes(b"no database" * 1000)
    path = deliver(home, made(manifest, MadeLabel(1, "fog", {})))
    assert await names(front, 1) == [""]
    assert path.exists()


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('"text": "fog"', '"text": "two\\nlines"', "labels.0.text: .*must be one line"),
        ('"text": "fog"', f'"text": "{"x" * 201}"', "labels.0.text: .*at most 200"),
        ('"latent": 1', '"latent": 40', "names latent 40, but the dictionary has 40"),
        ('"scores": {}', '"scores": {"detection": "high"}', "labels.0.scores.detection"),
        ('{"author"', '{"more": 1, "author"', "more"),
        ('{"author"', "{author", "JSON"),
    ],
)
async def test_a_file_is_read_strictly(before: str, after: str, sentence: str, tmp_path: Path):
    text = labels_text(made(write_crosscoder(tmp_path, "demo", 40, num_sequences=4), MadeLabel(1, "fog", {})))
    assert before in text
    with pytest.raises(LabelsError, match=sentence):
        parse_labels(text.replace(before, after).encode())
