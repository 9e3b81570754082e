import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import ExampleGroup
from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import EXAMPLE_COLUMNS, SEQUENCE_COLUMNS
from crosscope_server.errors import BrokenArtefact
from crosscope_server.examples import ExampleReader
from crosscope_server.tables import TableFolder

# One text of 10 tokens; latent 5 fires at 2 and 7 (its peak), latent 6 at 0.
EXAMPLES = [
    {"latent": 5, "dataset": "a", "group": "top", "quantile": 0, "rank": 0, "sequence": 1, "max": 3.0,
     "positions": [2, 7], "values": [1.0, 3.0]},
    {"latent": 6, "dataset": "a", "group": "top", "quantile": 0, "rank": 0, "sequence": 1, "max": 2.0,
     "positions": [0], "values": [2.0]},
    {"latent": 7, "dataset": "a", "group": "silent", "quantile": 0, "rank": 0, "sequence": 0, "max": 0.0,
     "positions": [6], "values": [0.0], "group_texts": 9},
    {"latent": 7, "dataset": "a", "group": "silent", "quantile": 0, "rank": 1, "sequence": 1, "max": 0.0,
     "positions": [4], "values": [0.0], "group_texts": 9},
    {"latent": 7, "dataset": "a", "group": "top", "quantile": 0, "rank": 0, "sequence": 1, "max": 2.0,
     "positions": [5], "values": [2.0], "group_low": 0.5, "group_high": 2.0, "group_texts": 3},
]  # fmt: skip
SEQUENCES = [
    {"id": i, "dataset": "a", "token_ids": [i * 100 + t for t in range(10)], "pieces": [f"p{t}" for t in range(10)],
     "roles": [2] + [1] * 9}
    for i in range(2)
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rows = [
        {
            "group_low": 0.0,
            "group_high": 0.0,
            "group_texts": 0,
            **row,
            "repeats": 0,
            "values": np.array(row["values"], np.float16),
        }
        for row in EXAMPLES
    ]
    (tmp_path / layout.EXAMPLES).mkdir()
    examples = pa.Table.from_pylist(rows, arrow_schema(EXAMPLE_COLUMNS))
    pq.write_table(examples, tmp_path / layout.EXAMPLES / "part-00.parquet")
    sequences = pa.Table.from_pylist(SEQUENCES, arrow_schema(SEQUENCE_COLUMNS))
    pq.write_table(sequences, tmp_path / layout.SEQUENCES)
    return tmp_path


def only(reader, latent, context):
    [example], is_last = reader.page(latent, None, None, None, 10, context)
    assert is_last
    return example


def test_a_whole_text(folder):
    example = only(ExampleReader(TableFolder(folder, {}), 16), 5, None)
    assert example.tokens.ids == list(range(100, 110))
    assert (example.token_start, example.num_tokens, example.peak, example.max) == (0, 10, 7, 3.0)
    assert (example.positions, example.activations, example.group) == ([2, 7], [1.0, 3.0], ExampleGroup.TOP)


@pytest.mark.parametrize(
    ("latent", "context", "ids", "peak", "positions"),
    [
        (5, 0, [107], 0, [0]),
        (5, 1, [106, 107, 108], 1, [1]),
        (5, 5, list(range(102, 110)), 5, [0, 5]),
        (6, 2, [100, 101, 102], 0, [0]),
        (6, 4096, list(range(100, 110)), 0, [0]),
    ],
)
def test_a_window_around_the_peak(folder, latent, context, ids, peak, positions):
    example = only(ExampleReader(TableFolder(folder, {}), 16), latent, context)
    assert example.tokens.ids == ids
    assert example.tokens.pieces == [f"p{token - 100}" for token in ids]
    assert (example.token_start, example.peak, example.positions) == (ids[0] - 100, peak, positions)
    assert example.num_tokens == 10


def test_silent_texts_come_when_they_are_asked_for(folder):
    """With the token that peaks elsewhere in the middle, and no activation."""
    reader = ExampleReader(TableFolder(folder, {}), 16)
    assert only(reader, 7, None).group is ExampleGroup.TOP
    found, is_last = reader.page(7, ExampleGroup.SILENT, None, None, 1, 2)
    rest, _ = reader.page(7, ExampleGroup.SILENT, None, found[0].key, 5, 2)
    assert (len(found), is_last, [example.rank for example in (*found, *rest)]) == (1, False, [0, 1])
    assert (found[0].tokens.ids, found[0].peak, found[0].positions, found[0].activations) == (
        [4, 5, 6, 7, 8],
        2,
        [],
        [],
    )
    assert (found[0].group_texts, rest[0].peak) == (9, 2)


def test_a_version_that_was_removed_can_still_be_read(folder):
    reader = ExampleReader(TableFolder(folder, {}), 16)
    before = only(reader, 5, None)
    for path in (folder / layout.SEQUENCES, folder / layout.EXAMPLES / "part-00.parquet"):
        path.unlink()
    assert only(reader, 5, None) == before


def test_an_example_of_a_text_that_is_not_there_names_the_file(folder):
    sequences = pa.Table.from_pylist(SEQUENCES[:1], arrow_schema(SEQUENCE_COLUMNS))
    pq.write_table(sequences, folder / layout.SEQUENCES)
    with pytest.raises(BrokenArtefact, match="latent 5 names sequence 1"):
        only(ExampleReader(TableFolder(folder, {}), 16), 5, None)
