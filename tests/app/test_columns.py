"""The app says of a column, a role and white space what the one place for it says."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

import crosscope
from crosscope import TokenRole, _tables
from crosscope.app import tables, token_view
from crosscope.app.columns import ATLAS_COLUMNS, AXES, SHOWN, complete
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.roles import TEMPLATE_ROLES

CLIENT = Path(crosscope.__file__).parent


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    return {name: np.array([0.25, np.nan, 5.0]) for name in SHOWN} | {"latent_class": np.array([1.0, 5.0, 3.0])}


def test_a_table_shows_heads_formats_and_meanings_of_the_columns(columns: dict[str, np.ndarray]) -> None:
    ids = np.arange(3)
    order = {name: (f"?order={name}", "") for name in AXES}
    found = tables.of_latents(ids, columns, list(SHOWN), floor=5.0, order=order.__getitem__)
    assert [column.cells for column in found[:2]] == [["0", "1", "2"], ["chat-only", "dead", "shared"]]
    for column, said in zip(found[2:], SHOWN.values(), strict=True):
        assert column.head == said.short
        assert column.help.startswith(said.meaning)
        assert column.order == ("" if said.error_of else f"?order={said.name}")
        assert column.cells == [said.format % 0.25, "–", ("≥ " if said.is_floored else "") + said.format % 5.0]


def test_every_column_with_a_head_is_fetched_and_exported_behind_it_its_error(columns: dict[str, np.ndarray]) -> None:
    expected = [column.name for column in LATENT_COLUMNS if column.short]
    assert set(ATLAS_COLUMNS) == {*expected, "latent_class"}
    head, *rows = csv.reader(io.StringIO(tables.csv(np.array([0, 1]), columns)))
    assert head == ["id", "latent_class", *expected]
    for column in LATENT_COLUMNS:
        if column.short and column.error_of:
            assert head[head.index(column.name) - 1] == column.error_of
    assert rows[0][:3] == ["0", "chat_only", "0.25"]
    assert set(rows[1][2:]) == {""}


def test_columns_that_an_old_server_does_not_know_are_undefined(columns: dict[str, np.ndarray]) -> None:
    known = {name: values for name, values in columns.items() if name != "num_texts"}
    completed = complete(known)
    assert tuple(completed) == ATLAS_COLUMNS
    assert np.isnan(completed["num_texts"]).all()
    shown = tables.of_latents(np.arange(3), completed, ["num_texts", "max"], floor=5.0)
    assert shown[2].cells == ["–"] * 3
    assert shown[3].cells[0] == "0.250"


def test_the_token_view_knows_every_role_and_the_marks() -> None:
    lines = token_view._constants().splitlines()  # pyright: ignore[reportPrivateUsage]
    constants = {line.split()[1]: json.loads(line.partition("=")[2].removesuffix(";")) for line in lines}
    assert set(constants["ROLES"]) == {str(int(role)) for role in TokenRole}
    assert constants["TEMPLATE"] == sorted(TEMPLATE_ROLES)
    assert constants["MARKS"] == _tables.MARKS
    assert _tables.marked("a b\n") == "a␣b↵"


def test_marks_of_white_space_stand_in_one_file() -> None:
    sources = [path for path in CLIENT.rglob("*") if path.suffix in (".py", ".js", ".css")]
    with_marks = [path.name for path in sources if set(_tables.MARKS.values()) & set(path.read_text("utf-8"))]
    assert with_marks == ["_tables.py"]
