import math

import pytest

from crosscope import InvalidInput
from crosscope._filters import build_filters
from crosscope_proto.v1.latents_pb2 import LatentFilter


@pytest.mark.parametrize(
    ("condition", "column", "op", "value"),
    [
        ("nu_err < 0.2", "nu_err", LatentFilter.OP_LT, 0.2),
        ("nu_err<=.2", "nu_err", LatentFilter.OP_LE, 0.2),
        ("max>1e3", "max", LatentFilter.OP_GT, 1000.0),
        ("rel_norm >= -1", "rel_norm", LatentFilter.OP_GE, -1.0),
        ("id = 7", "id", LatentFilter.OP_EQ, 7.0),
        ("id == 7", "id", LatentFilter.OP_EQ, 7.0),
        ("id != 7", "id", LatentFilter.OP_NE, 7.0),
        ("latent_class = chat_only", "latent_class", LatentFilter.OP_EQ, "chat_only"),
        ('latent_class != "dead"', "latent_class", LatentFilter.OP_NE, "dead"),
        (("nu_err", "<", 1), "nu_err", LatentFilter.OP_LT, 1.0),
        (("latent_class", "=", "base_only"), "latent_class", LatentFilter.OP_EQ, "base_only"),
    ],
)
def test_conditions(condition: object, column: str, op: int, value: float | str) -> None:
    for where in ([condition], condition, (c for c in [condition])):
        (built,) = build_filters(where)  # pyright: ignore[reportArgumentType]
        assert (built.column, built.op) == (column, op)
        assert (built.text if isinstance(value, str) else built.number) == value
        assert built.WhichOneof("value") == ("text" if isinstance(value, str) else "number")


def test_all_conditions_are_kept() -> None:
    assert [f.column for f in build_filters(["a < 1", ("b", ">", 2)])] == ["a", "b"]
    assert [f.column for f in build_filters(("a < 1", "b > 2", "c > 3"))] == ["a", "b", "c"]
    assert build_filters([]) == []


@pytest.mark.parametrize(
    "where",
    [
        *("nu_err", "nu_err ~ 3", "< 3", "nu_err <", "", "a b < 3", "a < nan", "a < inf", "a < \0"),
        *([3], [("a", "<")], [("a", "like", 3)], [("a", 3, 3)], [("a", "<", None)], [b"a < 3"]),
        *([("a", ">", math.nan)], [("a", ">", 10**400)]),
    ],
)
def test_malformed_conditions(where: object) -> None:
    with pytest.raises(InvalidInput, match="where"):
        build_filters(where)  # pyright: ignore[reportArgumentType]
