"""Columns of the statistics table: what they mean comes from the contract's table, their values from the server."""

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
from google.rpc.error_details_pb2 import BadRequest

from crosscope import Client, InvalidInput
from crosscope._columns import scalar_columns
from crosscope_proto.v1 import latents_pb2

from .conftest import ScriptedLatents, Served, abort


def test_columns_describe_themselves_and_hold_the_tables_values(real: Client, home: Path) -> None:
    (path,) = home.glob("crosscoders/demo/versions/*/latents.parquet")
    table = pq.read_table(path)
    columns = real.crosscoder("demo").columns()
    assert {"rel_norm", "nu_err", "nu_err_se", "template_share"} <= set(columns)
    assert "top_tokens" not in columns, "one value a latent"
    for name in ("rel_norm", "nu_err", "mirror_beta_err_base_se"):
        np.testing.assert_array_equal(columns[name].values, np.asarray(table[name], np.float32), err_msg=name)
    assert "elative norm" in columns["rel_norm"].meaning
    assert (columns["rel_norm"].low, columns["rel_norm"].high, columns["rel_norm"].source) == (0, 1, "math §6")
    assert (
        columns["latent_class"].categories[int(columns["latent_class"].values[0]) - 1]
        == table["latent_class"][0].as_py()
    )
    assert all(column.meaning for column in columns.values())
    assert "rel_norm" in repr(columns)
    assert repr(columns["rel_norm"]).startswith("Column(name='rel_norm', meaning=")


def test_shares_by_name_and_one_call_for_all_values(real: Client, monkeypatch) -> None:
    demo = real.crosscoder("demo")
    columns = demo.columns("dataset_share_chats", "role_share_user")
    calls = []
    stream = demo._transport.stream
    monkeypatch.setattr(demo._transport, "stream", lambda *given: calls.append(given) or stream(*given))
    assert calls == []
    assert len(columns["role_share_user"].values) == len(columns["dataset_share_chats"].values) == 1200
    assert len(calls) == 1
    assert columns["dataset_share_chats"].unit == "share"
    assert "role" in columns["role_share_user"].meaning
    latent = demo.latent(5)
    assert columns["dataset_share_chats"].values[5] == pytest.approx(latent.dataset_shares[1])


def test_a_column_that_nobody_knows(real: Client) -> None:
    column = real.crosscoder("demo").columns("nope")["nope"]
    assert column.meaning == ""
    with pytest.raises(InvalidInput, match="nope"):
        column.values  # noqa: B018


class OldLatents(ScriptedLatents):
    """A server older than the columns num_texts and template_share. It refuses the first that it does not know."""

    KNOWN = frozenset(scalar_columns(numbers_only=True)) - {"num_texts", "template_share"}

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []

    def GetAtlas(self, request, context):
        self.asked.append(list(request.columns))
        for place, name in enumerate(request.columns):
            if name not in self.KNOWN:
                violation = BadRequest.FieldViolation(field=f"columns[{place}]", description=f"no column {name!r}")
                abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"no {name}", BadRequest(field_violations=[violation]))
        for name in request.columns:
            values = np.full(100, 1.0, "<f4").tobytes()
            yield latents_pb2.GetAtlasResponse(column=name, values=values, num_latents=100)


def test_columns_that_an_old_server_does_not_know_are_left_out_and_said_once(serve: Callable[..., Served]) -> None:
    latents = OldLatents()
    with Client(serve(latents).address, timeout_s=20) as client:
        demo = client.crosscoder("demo")
        columns = demo.columns()
        texts = columns["num_texts"]
        with pytest.warns(UserWarning, match=r"does not know num_texts, template_share; left out") as said:
            values = columns.read()
        assert set(values) == set(columns) == OldLatents.KNOWN
        assert columns["latent_class"].texts == ["chat_only"] * 100, "an old server sends no categories"
        assert (columns.unknown, len(said), len(latents.asked)) == (("num_texts", "template_share"), 1, 4)
        with pytest.raises(InvalidInput, match="does not know 'num_texts'"):
            texts.values  # noqa: B018
        with pytest.warns(UserWarning, match="num_texts"):
            assert list(demo.columns("max", "num_texts", only_known=True).read()) == ["max"]
        with pytest.raises(InvalidInput, match="num_texts"):
            demo.columns("max", "num_texts").read()


def test_categories_as_texts(real: Client) -> None:
    demo = real.crosscoder("demo")
    columns = demo.columns("part", "latent_class", "max")
    assert columns["latent_class"].texts[:5] == [demo.latent(i).latent_class for i in range(5)]
    assert set(columns["part"].texts) == {""}
    with pytest.raises(InvalidInput, match="'max' holds numbers"):
        columns["max"].texts  # noqa: B018


def test_the_former_call_gives_the_same_values(real: Client) -> None:
    demo = real.crosscoder("demo")
    atlas = demo.atlas(["max", "rel_norm"])
    assert list(atlas) == ["max", "rel_norm"]
    np.testing.assert_array_equal(atlas["max"], demo.columns("max")["max"].values)
    assert list(demo.atlas("max")) == ["max"]  # pyright: ignore[reportArgumentType]
