"""Filters from conditions on latents: "nu_err < 0.2", "label contains refus" or ("nu_err", "<", 0.2).

Does not know which columns there are.
"""

import re
from collections.abc import Iterable

from crosscope._errors import InvalidInput
from crosscope._prompts import check_number, check_text
from crosscope_proto.v1 import latents_pb2 as pb

Condition = str | tuple[str, str, float | str]
"""A column, one of < <= > >= = != contains, and a number or a text (a class, a part, a token of a list of tokens)."""

_OPS = {
    "<": pb.LatentFilter.OP_LT,
    "<=": pb.LatentFilter.OP_LE,
    ">": pb.LatentFilter.OP_GT,
    ">=": pb.LatentFilter.OP_GE,
    "=": pb.LatentFilter.OP_EQ,
    "==": pb.LatentFilter.OP_EQ,
    "!=": pb.LatentFilter.OP_NE,
    "contains": pb.LatentFilter.OP_CONTAINS,
}
_TEXT = re.compile(r"\s*([A-Za-z_][\w.-]*)(?:\s*(<=|>=|==|!=|<|>|=)|\s+(contains)\s)\s*(.+?)\s*", re.DOTALL)
_HOW = 'write it as "nu_err < 0.2", "latent_class = chat_only" or ("nu_err", "<", 0.2)'


def build_filters(where: Condition | Iterable[Condition]) -> list[pb.LatentFilter]:
    """The filters of a listing; all must hold. Raises InvalidInput."""
    conditions = [where] if isinstance(where, str | tuple) and _is_condition(where) else where
    return [_filter(condition) for condition in conditions]  # pyright: ignore[reportArgumentType]


def _is_condition(where: object) -> bool:
    return isinstance(where, str) or (isinstance(where, tuple) and len(where) == 3 and where[1] in _OPS)


def _filter(condition: object) -> pb.LatentFilter:
    if isinstance(condition, str):
        match = _TEXT.fullmatch(check_text(condition, "where"))
        if match is None:
            raise InvalidInput.of("where", f"{condition!r} is not a condition; {_HOW}")
        column, op, value = match[1], match[2] or match[3], _value(match[4])
        if match[3] and not isinstance(value, str):
            value = match[4]  # a text that looks like a number
    elif isinstance(condition, tuple) and len(condition) == 3:
        column, op, value = condition
    else:
        raise InvalidInput.of("where", f"{condition!r} is not a condition; {_HOW}")
    if not isinstance(op, str) or op not in _OPS:
        raise InvalidInput.of("where", f"{op!r} does not compare; use one of {' '.join(_OPS)}")
    built = pb.LatentFilter(column=check_text(column, "where"), op=_OPS[op])
    if isinstance(value, str):
        built.text = check_text(value, "where")
        return built
    built.number = check_number(value, f"where {column} {op}")
    return built


def _value(text: str) -> float | str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    try:
        return float(text)
    except ValueError:
        return text
