"""Streams of a hub data set: whole files are dealt to them where that can be; else each reads all and skips others'.

Real files in the hub's layout, read by `datasets` itself.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.data import hub_rows
from crosscope_worker.data.part import WHOLE, Part
from crosscope_worker.data.texts import DataError, TextStream
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer

SIZES = (7, 12, 3, 11, 9)
"""Rows of each file."""
FIRST = [sum(SIZES[:file]) for file in range(len(SIZES) + 1)]
NUMBERS = [[*range(FIRST[file], FIRST[file + 1])] for file in range(len(SIZES))]
TRAIN = [number for number in range(FIRST[-1]) if number % 5 != 4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of Parquet files and one of JSON lines, with the same rows."""
    for kind in ("parquet", "jsonl"):
        (tmp_path / kind).mkdir()
    for file, numbers in enumerate(NUMBERS):
        texts = [f"a {number}" for number in numbers]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"parquet/train-{file}.parquet", row_group_size=5)
        (tmp_path / f"jsonl/train-{file}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows that `datasets` has decoded since it was cleared, by file."""
    found: Counter[str] = Counter()

    def counting(kind: Any, files: str) -> None:
        really = kind._generate_tables

        def generate(self: Any, *given: Any, **named: Any) -> Iterator[Any]:
            for key, table in really(self, *given, **named):
                if "allow_full_read" not in named:  # else it looks for the columns
                    (file,) = named[files]
                    found[Path(file).stem] += len(table)
                yield key, table

        monkeypatch.setattr(kind, "_generate_tables", generate)

    counting(Parquet, "files")
    counting(Json, "original_files")
    return found


@pytest.fixture
def read(tiny_pair: Pair, folder: Path) -> Callable[..., TextStream]:
    def opened(kind: str, part: Part = WHOLE, tell: Any = lambda _: None, split: Any = "train") -> TextStream:
        spec = DataSpec(name="docs", source="hub", path=str(folder / kind), text_column="text")
        policy = TokenPolicy(held_out_every=5)
        return TextStream([spec], TextTokenizer(tiny_pair.tokenizer), policy, [folder], split, None, tell, part)

    return opened


@pytest.fixture
def numbers(tiny_pair: Pair) -> Callable[[Any], list[int]]:
    """The numbers of the rows of texts."""
    tokenizer = TextTokenizer(tiny_pair.tokenizer)
    return lambda texts: [int("".join(tokenizer.pieces(text.ids[1:])).removeprefix("a ")) for text in texts]


@pytest.mark.parametrize("of", [2, 3, 5])
def test_each_stream_reads_its_own_files_alone(
    read: Callable[..., TextStream], numbers: Callable[[Any], list[int]], decoded: Counter[str], of: int
) -> None:
    told: list[str] = []
    for index in range(of):
        decoded.clear()
        stream = read("parquet", Part(index, of), told.append)
        own = range(index, len(SIZES), of)
        expected = [number for file in own for number in NUMBERS[file] if number in TRAIN]
        assert numbers(stream) == expected
        assert decoded == {f"train-{file}": SIZES[file] for file in own}, "rows of other streams' files are not read"
        assert numbers(stream) == expected, "the next epoch is the same"
        assert stream.counts[0].read == 2 * len(expected)
    assert told == [
        f"data set 'docs': its 5 Parquet files are dealt to {of} streams, each of which reads its own alone"
    ]
    assert numbers(read("parquet", split="held_out")) == [*range(4, FIRST[-1], 5)], "no text of a stream is held out"


@pytest.mark.parametrize(
    ("kind", "of", "why"),
    [("jsonl", 2, "its files are no Parquet"), ("parquet", 6, "it has 5 files for 6 streams")],
)
def test_else_each_stream_reads_all_and_skips_others(
    read: Callable[..., TextStream],
    numbers: Callable[[Any], list[int]],
    decoded: Counter[str],
    kind: str,
    of: int,
    why: str,
) -> None:
    told: list[str] = []
    for index in range(of):
        decoded.clear()
        assert numbers(read(kind, Part(index, of), told.append)) == TRAIN[index::of]
        assert decoded.total() == FIRST[-1]
    said = (
        f"data set 'docs': {why}, so each of the {of} streams downloads and reads all of it and uses one text of {of}; "
    )
    assert told == [f"{said}{(of - 1) / of:.0%} of what is read is read in vain"]


@pytest.mark.parametrize("read_before", [0, 1, 5, 6, 7, 14])
def test_a_stream_of_files_resumes(
    read: Callable[..., TextStream], numbers: Callable[[Any], list[int]], decoded: Counter[str], read_before: int
) -> None:
    part = Part(0, 2)  # files of 7, 3 and 9 rows
    whole = numbers(read("parquet", part))
    first, second = read("parquet", part), read("parquet", part)
    begun = numbers(islice(first, read_before))
    second.restore(json.loads(json.dumps(first.state())))
    decoded.clear()
    assert begun + numbers(second) == whole
    assert ("train-0" in decoded) == (read_before <= 6), "files in front of the place are not read again"
    assert numbers(second) == whole, "the next pass starts over"


def test_a_stream_of_rows_of_an_earlier_version_goes_on_by_rows(
    read: Callable[..., TextStream], numbers: Callable[[Any], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Part(1, 2)
    with monkeypatch.context() as earlier:
        earlier.setattr(hub_rows, "files_to_deal", lambda *_: ([], "not yet"))
        first = read("parquet", part)
        begun = numbers(islice(first, 9))
        state = json.loads(json.dumps(first.state()))
    assert "file" not in state["rows"][0]
    second = read("parquet", part)
    second.restore(state)
    assert begun + numbers(second) == TRAIN[1::2]
    assert numbers(second) == TRAIN[1::2], "all epochs are dealt alike"


def test_files_that_were_dealt_and_are_gone_are_a_sentence(
    read: Callable[..., TextStream], numbers: Callable[[Any], list[int]], folder: Path
) -> None:
    first, second = read("parquet", Part(1, 5)), read("parquet", Part(1, 5))
    numbers(islice(first, 2))
    (folder / "parquet/train-4.parquet").unlink()
    second.restore(first.state())
    with pytest.raises(DataError, match=r"'docs' has changed: it has 4 files for 5 streams, and .* start the job anew"):
        numbers(second)
