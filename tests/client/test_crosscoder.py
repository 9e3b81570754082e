"""The SDK against the real server, compared with the planted tables themselves."""

import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosscope import Client, Crosscoder, InvalidInput, LatentClass, NotFound, TokenRole, Unavailable, Verdict
from crosscope._cards import crosscoder_card
from crosscope._decode import crosscoder_info, latent_fields
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.v1 import latents_pb2
from crosscope_proto.verdict import FIGURES, Judgement, judge


@pytest.fixture
def demo(real: Client) -> Crosscoder:
    return real.crosscoder("demo")


@pytest.fixture(scope="session")
def table(home: Path) -> pa.Table:
    """latents.parquet."""
    (path,) = home.glob("crosscoders/demo/versions/*/latents.parquet")
    return pq.read_table(path)


def test_crosscoders(real: Client, demo: Crosscoder) -> None:
    assert [crosscoder.name for crosscoder in real.crosscoders()] == ["demo"]
    assert demo.info.num_latents == 1200
    assert demo.info.d_model == (64, 64)
    assert demo.info.datasets == ("documents", "chats")
    assert sum(demo.info.class_counts.values()) == 1200
    assert list(demo.info.class_counts) == [str(each) for each in LatentClass]
    assert repr(demo) == "Crosscoder('demo', batch_topk, 1200 latents, pair 'demo', layer 2)"
    assert "fve_base" in str(demo)


def test_what_a_version_lost_of_its_data_is_on_its_card() -> None:
    losses = {"skipped": {"lmsys": {"a turn is empty": 3}}, "texts": {"lmsys": {"read": 40, "cut_tokens": 7}}}
    info = crosscoder_info(latents_pb2.Crosscoder(name="demo", manifest_json=json.dumps(losses)))
    assert (info.skipped, info.texts) == (losses["skipped"], losses["texts"])
    assert info.left_out == [
        "3 of 40 texts of lmsys were left out: 3 × a turn is empty",
        "7 tokens of lmsys lie beyond max_length and were cut off",
    ]
    assert all(sentence in crosscoder_card(info) for sentence in info.left_out)


@pytest.mark.parametrize("manifest", ["", "{}", "not JSON", "[1]", '{"skipped": 3}', '{"skipped": {"a": 3}}'])
def test_a_version_that_counted_nothing_says_nothing(manifest: str) -> None:
    info = crosscoder_info(latents_pb2.Crosscoder(name="demo", manifest_json=manifest))
    assert (info.skipped, info.texts, info.left_out) == ({}, {}, [])


def test_health_without_worker_and_queue(real: Client) -> None:
    assert real.health() == {"latents": True, "prompts": False, "jobs": False}


def test_unknown_crosscoder_and_latent(real: Client, demo: Crosscoder) -> None:
    with pytest.raises(NotFound, match=r"'nope'.*demo"):
        real.crosscoder("nope")
    with pytest.raises(NotFound, match="99999"):
        demo.latent(99999)
    with pytest.raises(InvalidInput, match="latent"):
        demo.latent(-1)


def test_every_scalar_column_arrives(demo: Crosscoder, table: pa.Table) -> None:
    frame = demo.latents(limit=None).to_pandas()
    assert frame.index.tolist() == list(range(1200))
    scalars = [column.name for column in LATENT_COLUMNS if column.is_scalar and column.name != "id"]
    assert set(scalars) <= set(frame.columns)
    for name in scalars:
        expected = table[name].to_pylist()
        if name in ("latent_class", "part"):
            assert frame[name].tolist() == expected
        else:
            np.testing.assert_allclose(frame[name], np.array(expected, dtype=float), rtol=1e-6, err_msg=name)


def judgements(table: pa.Table) -> list[Judgement]:
    """The rule itself on every row of the planted table; the fixture's floor is 1e-5."""
    classes = {str(each): number for number, each in enumerate(LatentClass, 1)}
    rows = table.select([*FIGURES, "base_uselessness_single"]).to_pylist()
    return [judge(row | {"latent_class": classes[row["latent_class"]]}, -math.log(1e-5)) for row in rows]


def test_a_latent_comes_with_its_verdict(demo: Crosscoder, table: pa.Table) -> None:
    expected, found = judgements(table), demo.latents(limit=None)
    assert [latent.verdict for latent in found] == expected
    assert len({judgement.verdict for judgement in expected}) > 2
    frame = found.to_pandas()
    assert frame["verdict"].tolist() == [str(judgement.verdict) for judgement in expected]
    assert frame["specific_to"].tolist() == [str(judgement.specific_to or "") for judgement in expected]
    first = next(i for i, judgement in enumerate(expected) if judgement.verdict is Verdict.CONTRADICTED)
    assert str(demo.latent(first).verdict).startswith("contradicted: ν ")
    assert str(expected[first]) in str(demo.latent(first))
    assert expected[first].verdict in str(demo.latents(where=f"id = {first}"))


def test_latents_by_verdict(demo: Crosscoder, table: pa.Table) -> None:
    expected = judgements(table)
    for verdict in Verdict:
        ids = [i for i, judgement in enumerate(expected) if judgement.verdict is verdict]
        assert [latent.id for latent in demo.latents(where=f"verdict = {verdict}", limit=None)] == ids
    ordered = demo.latents(order_by="verdict", limit=None)
    assert [latent.verdict.verdict for latent in ordered] == sorted(
        (each.verdict for each in expected), key=list(Verdict).index
    )
    columns = demo.columns("verdict", "specific_to")
    assert columns["verdict"].texts == [str(judgement.verdict) for judgement in expected]
    assert columns["specific_to"].texts == [str(judgement.specific_to or "") for judgement in expected]


def test_an_old_server_gives_no_verdict() -> None:
    judgement = latent_fields(latents_pb2.Latent(latent_class=latents_pb2.LATENT_CLASS_CHAT_ONLY))["verdict"]
    assert judgement.verdict is Verdict.NOT_JUDGED
    assert str(judgement) == "not judged: the server gave no verdict: its software is older than this client's"


def test_lists_of_a_latent_arrive(demo: Crosscoder, table: pa.Table) -> None:
    latent, row = demo.latent(7), table.slice(7, 1).to_pylist()[0]
    for name in ("top_tokens", "logit_tokens_base", "logit_tokens_chat", "histogram"):
        assert list(getattr(latent, name)) == row[name], name
    assert latent.role_shares == pytest.approx(row["role_shares"])
    assert latent.dataset_shares == pytest.approx(row["dataset_shares"])
    assert [n.latent for n in latent.neighbours] == row["neighbours"]
    assert [other.latent for other in latent.coactive] == row["coactive"]
    assert [other.index for other in latent.coactive] == pytest.approx(row["coactive_indices"])
    assert latent.role_share(TokenRole.USER) == pytest.approx(row["role_shares"][TokenRole.USER])
    assert latent.nu_err == pytest.approx(row["nu_err"])
    assert latent == demo.latent(7)
    assert "latent 7 of demo" in str(latent)


def test_undefined_uselessness_is_none(demo: Crosscoder, table: pa.Table) -> None:
    values = table["base_uselessness"].to_pylist()
    undefined = next(i for i, value in enumerate(values) if math.isnan(value))
    defined = next(i for i, value in enumerate(values) if not math.isnan(value))
    assert demo.latent(undefined).base_uselessness is None
    assert demo.latent(defined).base_uselessness == pytest.approx(values[defined])


def test_where_order_and_limit(demo: Crosscoder, table: pa.Table) -> None:
    rows = [row for row in table.to_pylist() if row["rel_norm"] > 0.4 and row["latent_class"] != "dead"]
    rows.sort(key=lambda row: -row["frequency"])
    found = demo.latents(where=["rel_norm > 0.4", ("latent_class", "!=", "dead")], order_by="-frequency", limit=700)
    assert len(rows) > 700, "more than one page"
    assert found.num_matching == len(rows)
    assert len(found) == 700
    assert [latent.id for latent in found] == [row["id"] for row in rows[:700]]
    assert found[0].latent_class in LatentClass


def test_a_list_is_a_sequence(demo: Crosscoder) -> None:
    found = demo.latents(limit=600)
    assert found[-1].id == 599, "fetches as far as needed"
    assert [latent.id for latent in found[498:502]] == [498, 499, 500, 501]
    assert [latent.id for latent in found[:3]] == [0, 1, 2]
    assert found[700:] == []
    with pytest.raises(IndexError, match="600"):
        found[600]
    assert len(str(found).splitlines()) == 52, "header, 50 rows, how many more"
    assert str(found).endswith("… 550 more")


def test_pages_are_fetched_when_reached_and_once_among_threads(demo: Crosscoder, monkeypatch) -> None:
    calls: list[int] = []
    unary = demo._transport.unary  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(demo._transport, "unary", lambda *a, **k: (calls.append(1), unary(*a, **k))[1])  # pyright: ignore[reportPrivateUsage]
    found = demo.latents(limit=None)
    assert len(calls) == 1
    assert len(found) == 1200
    with ThreadPoolExecutor(8) as pool:
        listed = list(pool.map(lambda i: found[i].id, range(1200)))
    assert listed == list(range(1200))
    assert len(calls) == 3


def test_what_a_listing_leaves_undefined_is_said(demo: Crosscoder, table: pa.Table) -> None:
    """A column without a value for some, for all that match, and a condition that nothing can meet."""
    undefined = sum(map(math.isnan, table["base_uselessness"].to_pylist()))
    found = demo.latents(order_by="-base_uselessness", limit=5)
    assert found.num_undefined == undefined > 0
    assert str(found).endswith(f"{undefined} of 1200 latents have no value of this order; they come last")
    assert found._repr_html_().count("they come last") == 1
    assert not demo.latents(order_by="-max").remarks
    with pytest.raises(InvalidInput, match="undefined for each latent that meets the filters; defined are"):
        demo.latents(where="latent_class = shared", order_by="-base_uselessness")


def test_shares_and_tokens_are_conditions(demo: Crosscoder, table: pa.Table) -> None:
    shares = np.array(table["dataset_shares"].to_pylist())[:, 1]
    found = demo.latents(where="dataset_share_chats > 0.5", order_by="-dataset_share_chats", limit=None)
    assert [latent.id for latent in found] == sorted(np.flatnonzero(shares > 0.5), key=lambda i: (-shares[i], i))
    token = next(tokens[0] for tokens in table["top_tokens"].to_pylist() if tokens[0].strip())
    with_token = [i for i, tokens in enumerate(table["top_tokens"].to_pylist()) if token in tokens]
    assert [latent.id for latent in demo.latents(where=("top_tokens", "=", token), limit=None)] == with_token


def test_empty_listing(demo: Crosscoder) -> None:
    found = demo.latents(where="max < 0")
    assert len(found) == 0
    assert list(found) == []
    assert str(found) == "no latents"
    assert found.to_pandas().empty


def test_bad_columns_say_what_there_is(demo: Crosscoder) -> None:
    with pytest.raises(InvalidInput, match=r"nope.*rel_norm"):
        demo.latents(where="nope < 1")
    with pytest.raises(InvalidInput, match="order_by"):
        demo.latents(order_by="nope")
    with pytest.raises(InvalidInput, match="limit"):
        demo.latents(limit=0)


def test_examples(demo: Crosscoder, table: pa.Table) -> None:
    living = next(i for i, n in enumerate(table["num_active"].to_pylist()) if n)
    latent = demo.latent(living)
    examples = latent.examples(limit=200)
    assert len(examples) == 20, "ten in each of two data sets"
    assert examples[0].max == pytest.approx(latent.max, rel=1e-3)
    for example in examples:
        assert len(example.positions) == len(example.activations) > 0
        assert example.values()[example.peak] == pytest.approx(example.max, rel=1e-3)
    assert len(latent.examples(limit=3)) == 3
    assert {e.group for e in latent.examples(group="quantile")} == {"quantile"}
    assert {e.dataset for e in latent.examples(dataset="chats", limit=50)} == {"chats"}
    window = latent.examples(limit=1, context=2)[0]
    assert len(window.tokens) <= 5
    assert window.values()[window.peak] == pytest.approx(window.max, rel=1e-3)
    assert "⟦" in str(window)
    with pytest.raises(InvalidInput, match="'worst' is no group"):
        latent.examples(group="worst")


def test_atlas(demo: Crosscoder, table: pa.Table) -> None:
    atlas = demo.atlas(["rel_norm", "nu_err", "latent_class"])
    assert list(atlas) == ["rel_norm", "nu_err", "latent_class"]
    np.testing.assert_array_equal(atlas["rel_norm"], table["rel_norm"].to_numpy())
    numbers = {"chat_only": 1, "base_only": 2, "shared": 3, "other": 4, "dead": 5}
    assert atlas["latent_class"].tolist() == [numbers[name] for name in table["latent_class"].to_pylist()]
    with pytest.raises(InvalidInput, match="nope"):
        demo.atlas(["nope"])


def test_curves_and_detectors(demo: Crosscoder) -> None:
    curves = demo.training_curves()
    assert curves.steps.dtype == np.int64
    assert "fve_chat" in curves.curves
    assert all(len(values) == len(curves.steps) for values in curves.curves.values())
    assert {detector.place for detector in demo.detectors()} == {"decision", "within"}


def test_prompts_without_a_worker(demo: Crosscoder) -> None:
    with pytest.raises(Unavailable, match="no inference worker"):
        demo.encode("hello")


def test_results_and_handles_pickle(real: Client, demo: Crosscoder) -> None:
    latent = pickle.loads(pickle.dumps(demo.latent(7)))
    assert latent == demo.latent(7)
    assert latent.examples(limit=1)[0] == demo.latent(7).examples(limit=1)[0]
    with pickle.loads(pickle.dumps(real)) as again:
        assert again.address == real.address
        assert again.crosscoder("demo").info == demo.info
