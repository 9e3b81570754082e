"""Turns rows of the statistics table into crosscope.v1.Latent messages; each column names its field (Column.wire).

Knows no column by name, and nothing about calls.
"""

import math
from collections.abc import Iterable
from typing import Any

from crosscope_proto.column import Column
from crosscope_proto.columns import ALL_LATENT_COLUMNS
from crosscope_proto.v1 import latents_pb2

Rows = dict[str, list[Any]]
_Tree = dict[str, Any]
"""From a field to the name of its column, or to the tree of the message that it holds."""


def _tree(columns: Iterable[Column]) -> _Tree:
    root: _Tree = {}
    for column in columns:
        *outer, leaf = column.path
        branch = root
        for field in outer:
            branch = branch.setdefault(field, {})
        branch[leaf] = column.name
    return root


_TREE = _tree(ALL_LATENT_COLUMNS)
_FIELDS = latents_pb2.Latent.DESCRIPTOR.fields
_OPTIONAL = {field.name for field in _FIELDS if field.has_presence and field.message_type is None}
"""Optional fields: unset where the value is NaN."""
_MAPS = {field.name for field in _FIELDS if field.message_type and field.message_type.GetOptions().map_entry}
"""Maps: they hold the columns without their own field, by name. Values that are NaN are left out."""
_SPREAD = {field.name for field in _FIELDS if field.is_repeated and field.message_type} - _MAPS
"""Lists of messages. The columns of their fields hold lists of equal length; the n-th entries make the n-th message."""


def latent_messages(rows: Rows) -> list[latents_pb2.Latent]:
    """A message for each row. `rows` holds ALL_LATENT_COLUMNS; categories are numbers."""
    return [latents_pb2.Latent(**_latent(rows, i)) for i in range(len(rows["id"]))]


def _latent(rows: Rows, i: int) -> dict[str, Any]:
    values = {field: _value(branch, rows, i) for field, branch in _TREE.items()}
    for field in _OPTIONAL:
        if math.isnan(values[field]):
            del values[field]
    for field in _MAPS:
        values[field] = {name: value for name, value in values.get(field, {}).items() if not math.isnan(value)}
    for field in _SPREAD:
        names, lists = values[field].keys(), values[field].values()
        values[field] = [dict(zip(names, entry, strict=True)) for entry in zip(*lists, strict=True)]
    return values


def _value(branch: str | _Tree, rows: Rows, i: int) -> Any:
    if isinstance(branch, str):
        return rows[branch][i]
    return {field: _value(inner, rows, i) for field, inner in branch.items()}
