"""Failed reads from the hub are tried again from the row where they stood; a resume goes on there too."""

import json
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import httpx2 as httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crosscope_proto.roots import Roots
from crosscope_proto.specs import DataSpec, TokenPolicy
from crosscope_worker.data import file_rows, hub_rows
from crosscope_worker.data.rows import Columns
from crosscope_worker.data.texts import DataError, TextStream
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import Cancelled

COMMIT = 40 * "a"
SHARDS, ROWS = 4, 25
SPEC = DataSpec(name="docs", source="hub", path="someone/docs", text_column="text")


class Hub:
    """A repository of four files of 25 rows as a real stream of `datasets`; reads of it can fail."""

    def __init__(self) -> None:
        self.failures: dict[int, list[Exception]] = {}
        """What the next reads of a row raise."""
        self.opened: list[int] = []
        """Files whose rows were asked for."""
        self.asked: list[Any] = []
        """Revisions that were asked for."""

    def builder(self, path: str, config: str | None, revision: str | None = None) -> Any:
        del path, config
        self.asked.append(revision)
        files = {"train": [f"hf://datasets/someone/docs@{COMMIT}/{shard}.jsonl" for shard in range(SHARDS)]}
        return SimpleNamespace(config=SimpleNamespace(data_files=files), as_streaming_dataset=self._stream)

    def _stream(self, split: str) -> datasets.IterableDataset:
        if split != "train":
            raise ValueError(f"Bad split: {split}")
        return datasets.IterableDataset.from_generator(self._rows, gen_kwargs={"shards": list(range(SHARDS))})

    def _rows(self, shards: list[int]) -> Iterator[dict[str, str]]:
        for shard in shards:
            self.opened.append(shard)
            for number in range(shard * ROWS, (shard + 1) * ROWS):
                if waiting := self.failures.get(number):
                    raise waiting.pop(0)
                yield {"text": f"a {number}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(datasets, "load_dataset_builder", made.builder)
    monkeypatch.setattr(hub_rows, "PAUSES_S", 10 * (0.0,))
    return made


@pytest.fixture
def read(tiny_pair: Pair, tmp_path: Path) -> Callable[..., TextStream]:
    def opened(spec: DataSpec = SPEC, tell: Any = lambda _: None) -> TextStream:
        tokenizer = TextTokenizer(tiny_pair.tokenizer)
        return TextStream([spec], tokenizer, TokenPolicy(held_out_every=5), [tmp_path], "train", None, tell)

    return opened


def said(texts: Any, pair: Pair) -> list[str]:
    tokenizer = TextTokenizer(pair.tokenizer)
    return ["".join(tokenizer.pieces(text.ids[1:])) for text in texts]


EXPECTED = [f"a {number}" for number in range(SHARDS * ROWS) if number % 5 != 4]


def test_a_failed_read_is_tried_again_where_it_stood(hub: Hub, read: Callable[..., TextStream], tiny_pair: Pair):
    request = httpx.Request("GET", "https://hub")
    hub.failures = {
        3: [httpx.ReadTimeout("timed out", request=request)],
        30: [zlib.error("incorrect data check"), ConnectionResetError(104, "reset"), httpx.RemoteProtocolError("gone")],
        77: [pa.ArrowInvalid("a cut block")],
    }
    told: list[str] = []
    stream = read(tell=told.append)
    assert said(stream, tiny_pair) == EXPECTED, "no text is lost or given twice"
    assert stream.counts[0].retries == 5
    assert len(told) == 5
    assert told[0].startswith(
        "row 3 of someone/docs (train) could not be read (ReadTimeout: timed out); trying again in 0"
    )
    assert "3 of 10" in told[3]
    assert hub.asked == [None, *5 * [COMMIT]], "the commit that was read first"
    assert hub.opened.count(0) == 2, "files in front of the failure are not read again"


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout("timed out"), zlib.error("bad"), RuntimeError("odd"), KeyError("k")]
)
def test_a_read_that_fails_for_good_names_data_set_and_row(hub: Hub, read: Callable[..., TextStream], error: Exception):
    hub.failures = {30: 50 * [error]}
    tries = 3 if isinstance(error, KeyError) else 11
    with pytest.raises(
        DataError, match=rf"'docs': row 30 of someone/docs \(train\) .* after {tries} tries: {type(error).__name__}"
    ):
        list(read())


def test_what_does_not_exist_is_refused_at_once(hub: Hub, read: Callable[..., TextStream]):
    stream = read(DataSpec(name="docs", source="hub", path="someone/docs", text_column="text", split="gone"))
    with pytest.raises(DataError, match=r"'docs': .* cannot be read from the hub: ValueError: Bad split: gone"):
        list(stream)
    assert len(hub.asked) == 1


def test_a_pause_ends_when_the_job_is_cancelled(hub: Hub, read: Callable[..., TextStream], monkeypatch):
    monkeypatch.setattr(hub_rows, "PAUSES_S", 10 * (60.0,))
    pauses: list[float] = []
    monkeypatch.setattr(hub_rows.time, "sleep", pauses.append)

    def tell(message: str) -> None:
        del message
        if len(pauses) == 2:
            raise Cancelled

    hub.failures = {3: [httpx.ReadTimeout("timed out")]}
    with pytest.raises(Cancelled):
        list(read(tell=tell))
    assert pauses == [1.0, 1.0], "asked every second"


@pytest.mark.parametrize("read_before", [0, 1, 19, 20, 61, 79, 80])
def test_a_resume_goes_on_by_the_streams_own_state(
    hub: Hub, read: Callable[..., TextStream], tiny_pair: Pair, read_before: int
):
    first, second = read(), read()
    begun = said(islice(first, read_before), tiny_pair)
    state = json.loads(json.dumps(first.state()))
    hub.opened, hub.asked = [], []
    second.restore(state)
    assert begun + said(second, tiny_pair) == EXPECTED
    if read_before:
        assert hub.asked == [COMMIT]
        assert min(hub.opened, default=SHARDS) >= (read_before * 5 // 4) // ROWS - (read_before % 20 == 0)
    assert said(second, tiny_pair) == EXPECTED, "the next pass starts over"
    assert second.counts[0].read == 2 * len(EXPECTED)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_folders_in_the_hubs_layout_resume_the_same_way(
    read: Callable[..., TextStream], tiny_pair: Pair, tmp_path: Path, kind: str
):
    """Real files read by `datasets` itself."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for shard in range(SHARDS):
        texts = [f"a {number}" for number in range(shard * ROWS, (shard + 1) * ROWS)]
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts}), folder / f"train-{shard}.parquet", row_group_size=10)
        else:
            (folder / f"train-{shard}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    spec = DataSpec(name="docs", source="hub", path=str(folder), text_column="text")
    first, second = read(spec), read(spec)
    begun = said(islice(first, 33), tiny_pair)
    second.restore(json.loads(json.dumps(first.state())))
    assert begun + said(second, tiny_pair) == EXPECTED


def test_any_error_of_a_reader_names_file_and_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 3)
    spec = DataSpec(name="docs", source="jsonl", path="a.jsonl", text_column="text")
    source = file_rows.FileRows(spec, [tmp_path], Roots([tmp_path]), Columns(("text",)))
    parsed = iter([{"text": "a"}])
    monkeypatch.setattr(file_rows, "_json_object", lambda *_: next(parsed, None) or 1 / 0)
    with pytest.raises(DataError, match=r"'docs': .*a\.jsonl, row 1 cannot be read: ZeroDivisionError"):
        list(source.read(0))
