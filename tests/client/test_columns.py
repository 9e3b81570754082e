"""Columns of the statistics table: what they mean comes from the contract's table, their values from the server."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from crosscope import Client, InvalidInput


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


def test_the_former_call_gives_the_same_values(real: Client) -> None:
    demo = real.crosscoder("demo")
    atlas = demo.atlas(["max", "rel_norm"])
    assert list(atlas) == ["max", "rel_norm"]
    np.testing.assert_array_equal(atlas["max"], demo.columns("max")["max"].values)
    assert list(demo.atlas("max")) == ["max"]  # pyright: ignore[reportArgumentType]
