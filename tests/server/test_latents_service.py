import json

import grpc
import grpc.aio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_artefacts import DATASETS, EXAMPLES_PER_DATASET, write_crosscoder
from fixtures_server import details_of, run_front

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import LatentClass
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.scaling_columns import beta_column
from crosscope_proto.v1 import latents_pb2

pytestmark = pytest.mark.asyncio

NAN = float("nan")
FILES = [layout.MANIFEST, layout.LATENTS, layout.SEQUENCES, layout.METRICS, "examples/part-00.parquet"]


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def listing(**fields) -> latents_pb2.ListLatentsRequest:
    return latents_pb2.ListLatentsRequest(crosscoder="demo", **fields)


def less(column: str, limit: float) -> latents_pb2.LatentFilter:
    return latents_pb2.LatentFilter(column=column, op=latents_pb2.LatentFilter.OP_LT, number=limit)


async def test_crosscoders_come_newest_first_with_their_cards(tmp_path):
    write_crosscoder(tmp_path, "old", 40, created_at=1000.0)
    manifest = write_crosscoder(tmp_path, "new", 40, created_at=2000.0)
    async with run_front(home=tmp_path) as front:
        reply = await front.latents.ListCrosscoders(latents_pb2.ListCrosscodersRequest())
    assert [crosscoder.name for crosscoder in reply.crosscoders] == ["new", "old"]
    card = reply.crosscoders[0]
    assert (card.version_id, card.pair, card.variant, card.num_latents) == (
        manifest.version_id,
        "demo",
        "batch_topk",
        40,
    )
    assert card.class_counts == manifest.class_counts
    assert dict(card.metrics) == manifest.metrics
    assert json.loads(card.manifest_json)["recipe"]["crosscoder"]["k"] == 12


async def test_a_home_that_is_empty_or_missing_has_no_crosscoders(tmp_path):
    async with run_front(home=tmp_path / "missing") as front:
        reply = await front.latents.ListCrosscoders(latents_pb2.ListCrosscodersRequest())
        assert not reply.crosscoders
        error = await failure(front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "none is published below" in (error.details() or "")


async def test_a_card_comes_with_the_detectors_of_behaviours(front):
    reply = await front.latents.GetCrosscoder(latents_pb2.GetCrosscoderRequest(crosscoder="demo"))
    assert [(d.behaviour, d.place) for d in reply.detectors][:2] == [
        ("apologises", "decision"),
        ("apologises", "within"),
    ]
    assert reply.detectors[0].recall == 1


async def test_curves_are_as_they_were_logged(front):
    reply = await front.latents.GetTrainingCurves(latents_pb2.GetTrainingCurvesRequest(crosscoder="demo"))
    assert list(reply.steps) == list(range(0, 1001, 50))
    curves = {curve.name: curve.values for curve in reply.curves}
    assert sorted(curves) == ["fve_base", "fve_chat", "loss"]
    assert curves["loss"][1] == pytest.approx(9 / 59)


async def test_every_field_of_a_latent_comes_from_its_column(front, planted_home):
    home, manifest = planted_home
    folder = layout.version_folder(home, "demo", manifest.version_id)
    row = pq.read_table(folder / layout.LATENTS).slice(3, 1).to_pylist()[0]
    latent = (await front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=3))).latent
    flat = {
        "id": latent.id,
        "latent_class": latents_pb2.LatentClass.Name(latent.latent_class).removeprefix("LATENT_CLASS_").lower(),
        **latent.more,
        "frequency": latent.frequency.value,
        "frequency_se": latent.frequency.se,
        "mean": latent.mean.value,
        "mean_se": latent.mean.se,
        "beta_ratio": latent.beta_ratio.value,
        "beta_ratio_se": latent.beta_ratio.se,
        "neighbours": [neighbour.latent for neighbour in latent.neighbours],
        "neighbour_cosines": [neighbour.cosine for neighbour in latent.neighbours],
        "coactive": [other.latent for other in latent.coactive],
        "coactive_indices": [other.index for other in latent.coactive],
    }
    names = {"act": "activation", "act_no_bias": "activation_no_bias", "rec": "reconstruction", "err": "error"}
    for prefix, scaling in {"": latent.chat_direction, "mirror_": latent.base_direction}.items():
        for target, field in names.items():
            for model in ("base", "chat"):
                estimate = getattr(getattr(scaling, field), model)
                column = beta_column(prefix, target, model)
                flat |= {column: estimate.value, f"{column}_se": estimate.se}
        for ratio in ("nu_err", "nu_rec"):
            estimate = getattr(scaling, ratio)
            flat |= {f"{prefix}{ratio}": estimate.value, f"{prefix}{ratio}_se": estimate.se}
    for column in row:
        optional = column.startswith("base_uselessness") or column == "repeat_share"
        if optional and np.isnan(row[column]):
            assert not latent.HasField(column), column
            continue
        found = flat[column] if column in flat else getattr(latent, column)
        found = found if isinstance(found, (str, int, float)) else list(found)
        assert found == pytest.approx(row[column], nan_ok=True) if not isinstance(found, str) else found == row[column]


async def test_a_version_from_before_the_newer_columns_is_served(tmp_path):
    """Tables without part, beta_ratio, repeat_share, num_texts and repeats, and with activations in half precision."""
    manifest = write_crosscoder(tmp_path, "demo", 40)
    folder = layout.version_folder(tmp_path, "demo", manifest.version_id)
    newer = [column.name for column in LATENT_COLUMNS if column.absent is not None]
    assert {"part", "beta_ratio", "beta_ratio_se", "repeat_share", "num_texts"} <= set(newer)
    pq.write_table(pq.read_table(folder / layout.LATENTS).drop(newer), folder / layout.LATENTS)
    for path in (folder / layout.EXAMPLES).iterdir():
        table = pq.read_table(path).drop(["repeats"])
        index = table.schema.get_field_index("values")
        table = table.set_column(index, "values", table["values"].cast(pa.list_(pa.float16())))
        pq.write_table(table, path, row_group_size=64)
    async with run_front(home=tmp_path) as front:
        latents = (await front.latents.ListLatents(listing(order_by="-max", page_size=3))).latents
        examples = await front.latents.ListExamples(
            latents_pb2.ListExamplesRequest(crosscoder="demo", latent=latents[0].id)
        )
    assert latents[0].part == ""
    assert np.isnan(latents[0].beta_ratio.value)
    assert not latents[0].HasField("repeat_share")
    assert "num_texts" not in latents[0].more
    assert examples.examples[0].max == pytest.approx(latents[0].max)
    assert max(examples.examples[0].activations) == pytest.approx(latents[0].max, rel=1e-3)
    assert examples.examples[0].repeats == 0


async def test_pages_of_a_listing_follow_each_other(front):
    token, ids = "", []
    while True:
        request = listing(filters=[less("nu_err", 1.0)], order_by="-frequency", page_size=7, page_token=token)
        reply = await front.latents.ListLatents(request)
        assert all(latent.chat_direction.nu_err.value < 1 for latent in reply.latents)
        ids += [latent.id for latent in reply.latents]
        if not (token := reply.next_page_token):
            break
    assert len(ids) == len(set(ids)) == reply.num_matching > 7
    whole = await front.latents.ListLatents(
        listing(filters=[less("nu_err", 1.0)], order_by="-frequency", page_size=1000)
    )
    assert ids == [latent.id for latent in whole.latents]


async def test_an_empty_match_is_an_empty_page(front):
    reply = await front.latents.ListLatents(listing(filters=[less("norm_base", -1)]))
    assert (len(reply.latents), reply.num_matching, reply.next_page_token) == (0, 0, "")


async def test_a_token_is_bound_to_its_listing(front):
    token = (await front.latents.ListLatents(listing(order_by="nu_err", page_size=2))).next_page_token
    for other in (
        listing(order_by="nu_rec", page_token=token),
        listing(order_by="nu_err", filters=[less("nu_err", 1)], page_token=token),
        listing(order_by="nu_err", page_token="x"),
        listing(order_by="nu_err", page_token="éé"),
        listing(order_by="nu_err", page_token="W10"),
    ):
        error = await failure(front.latents.ListLatents(other))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details_of(error)[1][0][0] == "page_token"


async def test_a_listing_stays_with_its_version_until_that_is_gone(tmp_path):
    first = write_crosscoder(tmp_path, "demo", 40)
    async with run_front(home=tmp_path) as front:
        page = await front.latents.ListLatents(listing(page_size=10))
        second = write_crosscoder(tmp_path, "demo", 50, seed=1)
        rest = await front.latents.ListLatents(listing(page_size=100, page_token=page.next_page_token))
        assert (rest.version_id, len(rest.latents)) == (first.version_id, 30)
        fresh = await front.latents.ListLatents(listing(page_size=100))
        assert (fresh.version_id, len(fresh.latents)) == (second.version_id, 50)
    _remove(layout.version_folder(tmp_path, "demo", first.version_id))
    async with run_front(home=tmp_path) as front:
        error = await failure(front.latents.ListLatents(listing(page_token=page.next_page_token)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"the newest is {second.version_id}" in (error.details() or "")


@pytest.mark.parametrize(
    ("request_", "field", "says"),
    [
        (listing(filters=[less("nu_err", NAN)]), "filters[0].number", "must be finite, but is nan"),
        (listing(filters=[less("nu_er", 1)]), "filters[0].column", "no column 'nu_er'; did you mean nu_err"),
        (listing(filters=[less("nu_err", 1)] * 33), "filters", "no more than 32 item(s), but is 33 items"),
        (listing(filters=[latents_pb2.LatentFilter(column="id", op=1)]), "filters[0].value", "required"),
        (listing(filters=[latents_pb2.LatentFilter(column="id", number=1)]), "filters[0].op", ""),
        (listing(order_by="-nu"), "order_by", "no column 'nu'"),
        (listing(page_size=0), "page_size", "less than or equal to 1000, but is 0"),
        (listing(page_size=10**9), "page_size", "less than or equal to 1000, but is 1000000000"),
    ],
)
async def test_bad_listings_are_refused_by_field_value_and_limit(front, request_, field, says):
    error = await failure(front.latents.ListLatents(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error)[1][0][0] == field
    assert says in details_of(error)[1][0][1]


async def test_an_unknown_latent_is_not_found_with_the_range(front):
    for call in (
        front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=100)),
        front.latents.ListExamples(latents_pb2.ListExamplesRequest(crosscoder="demo", latent=100)),
    ):
        error = await failure(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "demo has no latent 100; its latents are 0 to 99"


async def test_examples_come_strongest_first_and_page_by_page(front):
    ask = latents_pb2.ListExamplesRequest
    token, examples = "", []
    while True:
        request = ask(crosscoder="demo", latent=0, page_size=3, page_token=token)
        reply = await front.latents.ListExamples(request)
        examples += reply.examples
        if not (token := reply.next_page_token):
            break
    assert len(examples) == EXAMPLES_PER_DATASET * len(DATASETS)
    order = [(e.group == latents_pb2.EXAMPLE_GROUP_QUANTILE, -e.quantile, -e.max) for e in examples]
    assert order == sorted(order)
    assert {example.dataset for example in examples[:2]} == set(DATASETS)  # merged by activation
    latent = (await front.latents.GetLatent(latents_pb2.GetLatentRequest(crosscoder="demo", latent=0))).latent
    assert examples[0].max == latent.max


async def test_examples_can_be_narrowed_to_a_group_and_a_data_set(front):
    request = latents_pb2.ListExamplesRequest(
        crosscoder="demo", group=latents_pb2.EXAMPLE_GROUP_QUANTILE, dataset="chats", page_size=200
    )
    examples = (await front.latents.ListExamples(request)).examples
    assert [(example.dataset, example.quantile) for example in examples] == [("chats", 1)] * 2 + [("chats", 0)] * 2
    request.dataset = "chat"
    error = await failure(front.latents.ListExamples(request))
    assert details_of(error)[1] == [("dataset", "no data set 'chat'; there are documents, chats")]


async def test_a_dead_latent_has_no_examples(front, planted_home):
    dead = latents_pb2.LatentFilter(column="num_active", op=latents_pb2.LatentFilter.OP_EQ, number=0)
    latent = (await front.latents.ListLatents(listing(filters=[dead]))).latents[0]
    assert latent.latent_class == latents_pb2.LATENT_CLASS_DEAD
    reply = await front.latents.ListExamples(latents_pb2.ListExamplesRequest(crosscoder="demo", latent=latent.id))
    assert (len(reply.examples), reply.next_page_token) == (0, "")


async def test_the_atlas_is_whole_columns_in_order(front):
    request = latents_pb2.GetAtlasRequest(crosscoder="demo", columns=["nu_err", "latent_class", "part"])
    pieces = [piece async for piece in front.latents.GetAtlas(request)]
    assert [(piece.column, piece.latent_start, piece.num_latents) for piece in pieces] == [
        ("nu_err", 0, 100),
        ("latent_class", 0, 100),
        ("part", 0, 100),
    ]
    assert [list(piece.categories) for piece in pieces] == [[], ["", *LatentClass], [""]]
    latents = (await front.latents.ListLatents(listing(page_size=1000))).latents
    expected = [latent.chat_direction.nu_err.value for latent in latents]
    assert np.array_equal(np.frombuffer(pieces[0].values, "<f4"), np.array(expected, "f4"), equal_nan=True)
    assert np.frombuffer(pieces[1].values, "<f4").tolist() == [latent.latent_class for latent in latents]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["nu_err", "top_tokens"], "top_tokens holds lists"),
        (["nu_errr"], "did you mean nu_err"),
        ([], "must contain at least 1 item(s)"),
        (["id", "id"], "unique"),
    ],
)
async def test_bad_columns_are_refused_before_anything_is_sent(front, columns, says):
    request = latents_pb2.GetAtlasRequest(crosscoder="demo", columns=columns)
    error = await failure(front.latents.GetAtlas(request).read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in (error.details() or "")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
async def test_a_broken_file_is_named_and_the_others_still_answer(tmp_path, name, damage):
    broken = write_crosscoder(tmp_path, "broken", 40)
    write_crosscoder(tmp_path, "whole", 40)
    path = layout.version_folder(tmp_path, "broken", broken.version_id) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"[1, 2]")
    async with run_front(home=tmp_path) as front:
        if name == layout.METRICS:
            call = front.latents.GetTrainingCurves(latents_pb2.GetTrainingCurvesRequest(crosscoder="broken"))
        else:
            call = front.latents.ListExamples(latents_pb2.ListExamplesRequest(crosscoder="broken", latent=0))
        error = await failure(call)
        assert error.code() is grpc.StatusCode.DATA_LOSS
        assert str(path) in (error.details() or "")
        reply = await front.latents.ListCrosscoders(latents_pb2.ListCrosscodersRequest())
        reasons = {crosscoder.name: crosscoder.broken for crosscoder in reply.crosscoders}
        assert set(reasons) == {"whole", "broken"}
        assert not reasons["whole"]
        assert (str(path) in reasons["broken"]) == (name == layout.MANIFEST)
        path.write_bytes(content)
        reply = await front.latents.ListExamples(latents_pb2.ListExamplesRequest(crosscoder="broken", latent=0))
        assert reply.examples


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"id": np.arange(40)[::-1]}, "the ids are not 0, 1, 2"),
        ({"latent_class": np.array(["chatty"] * 40)}, "'chatty' is none of chat_only, base_only"),
        ({"max": pa.array([None] + [1.0] * 39)}, "column max has 1 empty cells"),
    ],
)
async def test_a_statistics_table_with_other_content_is_named(tmp_path, columns, says):
    manifest = write_crosscoder(tmp_path, "demo", 40)
    path = layout.version_folder(tmp_path, "demo", manifest.version_id) / layout.LATENTS
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array(values).cast(table.schema.field(index).type))
    pq.write_table(table, path)
    async with run_front(home=tmp_path) as front:
        error = await failure(front.latents.ListLatents(listing()))
    assert error.code() is grpc.StatusCode.DATA_LOSS
    assert str(path) in (error.details() or "")
    assert says in (error.details() or "")


async def test_a_version_that_could_not_be_read_for_whatever_reason_is_read_again(tmp_path):
    manifest = write_crosscoder(tmp_path, "demo", 40)
    path = layout.version_folder(tmp_path, "demo", manifest.version_id) / layout.MANIFEST
    content = path.read_text()
    path.write_text("[" * 100_000)  # more than the JSON parser's stack
    async with run_front(home=tmp_path) as front:
        await failure(front.latents.ListLatents(listing()))
        path.write_text(content)
        assert (await front.latents.ListLatents(listing())).latents


def _remove(folder) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
