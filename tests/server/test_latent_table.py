import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.v1 import latents_pb2
from crosscope_server.errors import InvalidRequest, NotFound
from crosscope_server.latents import Filter, LatentTable

NAN = float("nan")


def make_table(datasets=(), **columns) -> LatentTable:
    """A table with the given columns; the other ones are zero, dead or empty."""
    n = len(next(iter(columns.values())))
    filled = {}
    for field in arrow_schema(LATENT_COLUMNS):
        default = [] if pa.types.is_list(field.type) else 0
        default = {"latent_class": "dead", "part": ""}.get(field.name, default)
        values = columns.get(field.name, range(n) if field.name == "id" else [default] * n)
        filled[field.name] = pa.array(values, field.type)
    return LatentTable("t", pa.table(filled), datasets)


def test_undefined_values_come_last_in_both_orders_and_equal_ones_by_id():
    table = make_table(nu_err=[0.3, NAN, 0.1, 0.3, NAN, 0.2])
    assert table.page([], "nu_err", None, 10).ids == [2, 5, 0, 3, 1, 4]
    assert table.page([], "-nu_err", None, 10).ids == [0, 3, 5, 2, 1, 4]
    assert table.page([], "-id", None, 10).ids == [5, 4, 3, 2, 1, 0]


def test_an_undefined_value_meets_no_condition():
    table = make_table(nu_err=[0.3, NAN, 0.1])
    for comparison, met in {"<": [2], "<=": [2], ">": [0], ">=": [0], "=": [], "!=": [0, 2]}.items():
        assert table.page([Filter("nu_err", comparison, 0.2)], "", None, 10).ids == met


def test_limits_are_compared_as_the_column_stores_them():
    table = make_table(nu_err=[0.2, 0.5])  # stored as float32, which is not the double 0.2
    assert table.page([Filter("nu_err", "=", 0.2)], "", None, 10).ids == [0]
    assert table.page([Filter("nu_err", "<=", 0.2)], "", None, 10).ids == [0]
    assert table.page([Filter("nu_err", "<", 1e300)], "", None, 10).ids == [0, 1]
    assert table.page([Filter("nu_err", ">", -1e300)], "", None, 10).ids == [0, 1]


def test_counts_compare_with_fractions_and_negative_numbers():
    table = make_table(num_active=[0, 2, 3])
    assert table.page([Filter("num_active", ">", 2.5)], "", None, 10).ids == [2]
    assert table.page([Filter("num_active", ">", -1)], "-num_active", None, 10).ids == [2, 1, 0]


def test_all_filters_must_hold_and_matches_are_counted_over_all_pages():
    table = make_table(nu_err=[0.1, 0.2, 0.3, 0.4], rel_norm=[1, 0, 1, 1])
    filters = [Filter("rel_norm", ">", 0.5), Filter("nu_err", "<", 0.35)]
    page = table.page(filters, "-nu_err", None, 1)
    assert (page.ids, page.num_matching, page.is_last) == ([2], 2, False)
    page = table.page(filters, "-nu_err", 2, 1)
    assert (page.ids, page.num_matching, page.is_last) == ([0], 2, True)


def test_classes_are_compared_by_name():
    table = make_table(latent_class=["dead", "chat_only", "shared", "dead"])
    assert table.page([Filter("latent_class", "=", "dead")], "", None, 10).ids == [0, 3]
    assert table.page([Filter("latent_class", "!=", "dead")], "", None, 10).ids == [1, 2]
    assert table.rows([1])["latent_class"] == [latents_pb2.LATENT_CLASS_CHAT_ONLY]


def test_class_codes_are_the_numbers_of_the_public_enum():
    names = make_table(latent_class=["dead"]).categories("latent_class")[1:]
    numbers = [latents_pb2.LatentClass.Value(f"LATENT_CLASS_{name.upper()}") for name in names]
    assert numbers == list(range(1, len(names) + 1))


@pytest.mark.parametrize(
    ("condition", "field", "says"),
    [
        (Filter("nu_er", "<", 1), "filters[0].column", "did you mean nu_err"),
        (Filter("neighbours", "<", 1), "filters[0].column", "holds lists"),
        (Filter("dataset_shares", ">", 0.5), "filters[0].column", "use one of dataset_share_web"),
        (Filter("dataset_share_wob", ">", 0.5), "filters[0].column", "did you mean dataset_share_web"),
        (Filter("top_tokens", "<", 1), "filters[0].op", "only be compared for equality"),
        (Filter("top_tokens", "=", 1), "filters[0].number", "is compared with a text"),
        (Filter("part", "=", "delta"), "filters[0].text", "no part 'delta'; this dictionary has no parts"),
        (Filter("nu_err", "<", "x"), "filters[0].text", "compared with the text 'x'"),
        (Filter("latent_class", "=", 3), "filters[0].number", "is compared with 3"),
        (Filter("latent_class", "<", "dead"), "filters[0].op", "not by <"),
        (Filter("latent_class", "=", "ded"), "filters[0].text", "no latent_class 'ded'; there are chat_only"),
    ],
)
def test_a_condition_that_makes_no_sense_is_named(condition, field, says):
    table = make_table(("web", "chat"), nu_err=[0.1, 0.2])
    with pytest.raises(InvalidRequest) as caught:
        table.page([condition], "", None, 10)
    assert caught.value.violations[0].field == field
    assert says in caught.value.violations[0].sentence


def test_an_order_that_is_undefined_everywhere_is_refused_and_names_what_is_defined():
    """It used to list by id, without a word."""
    table = make_table(nu_err=[NAN, NAN], rel_norm=[NAN, 0.5], frequency=[0.1, 0.2])
    with pytest.raises(InvalidRequest, match=r"order_by: nu_err is undefined for every latent of t; .*frequency"):
        table.page([], "-nu_err", None, 10)
    few = [Filter("frequency", "<", 0.15)]
    with pytest.raises(InvalidRequest, match="rel_norm is undefined for each latent that meets the filters") as caught:
        table.page(few, "rel_norm", None, 10)
    assert "nu_err," not in caught.value.violations[0].sentence
    assert table.page([Filter("frequency", ">", 5)], "nu_err", None, 10).ids == []


def test_latents_without_a_value_of_the_order_are_counted():
    table = make_table(nu_err=[0.3, NAN, 0.1, NAN], frequency=[0.1, 0.1, 0.1, 0.9])
    assert table.page([], "nu_err", None, 1).num_undefined == 2
    assert table.page([Filter("frequency", "<", 0.5)], "-nu_err", None, 1).num_undefined == 1
    assert table.page([], "", None, 1).num_undefined == 0


def test_a_filter_on_a_column_that_is_undefined_everywhere_is_said():
    table = make_table(nu_err=[NAN, NAN], rel_norm=[NAN, 0.5])
    page = table.page([Filter("nu_err", "<", 0.2), Filter("rel_norm", "<", 0.6)], "", None, 10)
    assert page.notes == ("nu_err is undefined for every latent of t, so none meets a condition on it",)
    assert table.page([Filter("rel_norm", "<", 0.6)], "", None, 10).notes == ()


def test_shares_of_data_sets_and_roles_filter_order_and_pack():
    role_shares = [[0, 0.5, 0, 0, 0, 0, 0.3, 0.2], [0, 0, 0, 0, 0, 0, 1.0, 0], [0, 0, 0, 0, 0, 0, 0, 1.0]]
    table = make_table(("web", "chat-1m"), dataset_shares=[[0.9, 0.1], [0.2, 0.8], [NAN, NAN]], role_shares=role_shares)
    assert table.page([Filter("dataset_share_chat-1m", ">", 0.5)], "", None, 10).ids == [1]
    assert table.page([], "-dataset_share_web", None, 10).ids == [0, 1, 2]
    assert table.page([Filter("role_share_user", ">=", 0.3)], "-role_share_user", None, 10).ids == [1, 0]
    [(_, _, data)] = table.pack(["role_share_assistant"])
    np.testing.assert_allclose(np.frombuffer(data, "<f4"), [0.2, 0, 1.0])
    assert table.rows([1])["dataset_shares"] == [pytest.approx([0.2, 0.8])]


def test_lists_of_tokens_are_compared_with_a_text():
    table = make_table(top_tokens=[[" cannot", " I"], [], ["cannot", "\n"], ["can", "not"]])
    assert table.page([Filter("top_tokens", "=", "cannot")], "", None, 10).ids == [0, 2]
    assert table.page([Filter("top_tokens", "!=", "cannot")], "", None, 10).ids == [1, 3]
    assert table.page([Filter("top_tokens", "=", "\n")], "", None, 10).ids == [2]


def test_parts_are_compared_by_name_and_order_by_name():
    table = make_table(part=["delta", "rest", "delta", "rest"])
    assert table.page([Filter("part", "=", "delta")], "", None, 10).ids == [0, 2]
    assert table.page([], "-part", None, 10).ids == [1, 3, 0, 2]
    assert table.rows([1, 2])["part"] == ["rest", "delta"]
    [(_, _, data)] = table.pack(["part"])
    names = table.categories("part")
    assert [names[int(number)] for number in np.frombuffer(data, "<f4")] == ["delta", "rest", "delta", "rest"]
    assert table.categories("max") == []


def test_an_unknown_order_is_named():
    table = make_table(nu_err=[0.1, 0.2])
    with pytest.raises(InvalidRequest, match="order_by: no column 'frequenzy'; did you mean frequency"):
        table.page([], "-frequenzy", None, 10)


def test_a_latent_beyond_the_last_is_named():
    with pytest.raises(NotFound, match="t has no latent 2; its latents are 0 to 1"):
        make_table(nu_err=[0.1, 0.2]).check_id(2)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.sampled_from([NAN, 0.0, -0.0, 1.0, 2.5, -1.0]), min_size=1, max_size=40),
    descending=st.booleans(),
    limit=st.sampled_from([None, 0.5, -2.0]),
    size=st.integers(1, 7),
)
def test_pages_joined_are_the_whole_listing(values, descending, limit, size):
    table = make_table(nu_err=values)
    filters = [] if limit is None else [Filter("nu_err", ">", limit)]
    order = "-nu_err" if descending else "nu_err"
    sign = -1 if descending else 1
    met = [i for i, value in enumerate(values) if limit is None or value > limit]
    expected = sorted(met, key=lambda i: (np.isnan(values[i]), 0 if np.isnan(values[i]) else sign * values[i], i))
    if met and np.isnan([values[i] for i in met]).all():
        with pytest.raises(InvalidRequest, match="nu_err is undefined for every latent of t"):
            table.page(filters, order, None, size)
        return
    joined, after, is_last = [], None, False
    while not is_last:
        page = table.page(filters, order, after, size)
        assert page.num_matching == len(expected)
        assert page.num_undefined == np.isnan([values[i] for i in met]).sum()
        joined += page.ids
        is_last, after = page.is_last, joined[-1] if joined else None
    assert joined == expected


def test_columns_are_packed_as_float32_in_pieces_of_at_most_1_mb():
    n = 250_003
    table = make_table(nu_err=np.arange(n) % 251)
    pieces = list(table.pack(["nu_err", "latent_class"]))
    assert [(column, start, len(data)) for column, start, data in pieces] == [
        ("nu_err", 0, 1_000_000),
        ("nu_err", 250_000, 12),
        ("latent_class", 0, 1_000_000),
        ("latent_class", 250_000, 12),
    ]
    whole = np.frombuffer(pieces[0][2] + pieces[1][2], "<f4")
    assert (whole == np.arange(n) % 251).all()
    assert set(np.frombuffer(pieces[3][2], "<f4")) == {latents_pb2.LATENT_CLASS_DEAD}
