"""The app says of a column, a role and white space what the one place for it says."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

import crosscope
from crosscope import TokenRole, _tables
from crosscope.app import tables, text, token_view
from crosscope.app.columns import ATLAS_COLUMNS, AXES, SHOWN, complete
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.roles import TEMPLATE_ROLES

CLIENT = Path(crosscope.__file__).parent


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    kinds = {"latent_class": [1.0, 5.0, 3.0], "verdict": [2.0, 5.0, 1.0], "specific_to": [1.0, 0.0, 0.0]}
    values = {name: np.array([0.25, np.nan, 5.0]) for name in SHOWN}
    return values | {name: np.array(numbers) for name, numbers in kinds.items()}


def test_a_table_shows_heads_formats_and_meanings_of_the_columns(columns: dict[str, np.ndarray]) -> None:
    ids = np.arange(3)
    order = {name: (f"?order={name}", "") for name in (*AXES, "verdict")}
    found = tables.of_latents(ids, columns, list(SHOWN), floor=5.0, order=order.__getitem__)
    assert [column.cells for column in found[:2]] == [
        ["0", "1", "2"],
        ["chat-only · weak", "dead", "shared · supported"],
    ]
    assert found[1].order == "?order=verdict"
    for column, said in zip(found[2:], SHOWN.values(), strict=True):
        assert column.head == said.short
        assert column.help.startswith(said.meaning)
        assert column.order == ("" if said.error_of else f"?order={said.name}")
        assert column.cells == [said.format % 0.25, "–", ("≥ " if said.is_floored else "") + said.format % 5.0]


def test_every_column_with_a_head_is_fetched_and_exported_behind_it_its_error(columns: dict[str, np.ndarray]) -> None:
    expected = [column.name for column in LATENT_COLUMNS if column.short]
    kinds = ["latent_class", "verdict", "specific_to"]
    assert set(ATLAS_COLUMNS) == {*expected, *kinds}
    head, *rows = csv.reader(io.StringIO(tables.csv(np.array([0, 1]), columns)))
    assert head == ["id", *kinds, *expected]
    for column in LATENT_COLUMNS:
        if column.short and column.error_of:
            assert head[head.index(column.name) - 1] == column.error_of
    assert rows[0][:5] == ["0", "chat_only", "weak", "chat", "0.25"]
    assert rows[1][:3] == ["1", "dead", "not_judged"]
    assert set(rows[1][3:]) == {""}


@pytest.mark.parametrize(
    ("judged", "cell"),
    [
        (("chat_only", "contradicted", ""), "chat-only · contradicted"),
        (("chat_only", "supported", "chat"), "chat-only · supported"),
        (("shared", "contradicted", "each"), "shared · contradicted"),
        (("base_only", "too_few", ""), "base-only · too few"),
        (("other", "supported", "chat"), "other · specific to chat"),
        (("other", "weak", "each"), "other · a row in each, weak"),
        (("other", "too_few", ""), "other · too few"),
        (("other", "not_judged", ""), "other"),
        (("dead", "not_judged", ""), "dead"),
        (("shared", "", ""), "shared"),
    ],
)
def test_the_cell_of_a_class_says_its_verdict(judged: tuple[str, str, str], cell: str) -> None:
    assert text.judged(*judged) == cell


def test_columns_that_an_old_server_does_not_know_are_undefined(columns: dict[str, np.ndarray]) -> None:
    known = {name: values for name, values in columns.items() if name not in ("num_texts", "verdict", "specific_to")}
    completed = complete(known)
    assert tuple(completed) == ATLAS_COLUMNS
    assert np.isnan(completed["num_texts"]).all()
    shown = tables.of_latents(np.arange(3), completed, ["num_texts", "max"], floor=5.0)
    assert shown[1].cells == ["chat-only", "dead", "shared"]
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
